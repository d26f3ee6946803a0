"""Where arrays lie on a grid of devices: one table from letters to mesh axes.

Parameters, optimizer state and activations end in the letters of their axes,
so where they lie follows from their names. A parameter at rest is cut along
`fsdp` too; the layer that computes with it gets it whole along that axis.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.config import ConfigError, MeshConfig
from transformer_jax.training.loss import LossSums
from transformer_jax.training.mesh import make_mesh, of_one_run
from transformer_jax.training.state import ALONE, Alone, batch_cross_entropy

ROWS = ('data', 'fsdp')  # share out the rows of a batch


class Rule(NamedTuple):
  """Mesh axes that share out the axis of a letter."""

  parameter: tuple[str, ...] = ()
  activation: tuple[str, ...] = ()  # of an array that has a B among its letters


RULES = {
  'R': Rule(('replica',), ('replica',)),
  'N': Rule(),
  'B': Rule((), ROWS),
  'T': Rule((), ('sequence',)),
  'S': Rule((), ('sequence',)),
  'D': Rule(('fsdp',)),
  'F': Rule(('tensor',), ('tensor',)),
  'H': Rule(('tensor',), ('tensor',)),
  'V': Rule(('tensor',), ('tensor',)),
  'E': Rule(),
  'K': Rule(),
  'L': Rule(),
  'U': Rule(),
}


def spec(letters: str, sizes: Mapping[str, int], *, at_rest: bool = True) -> P:
  """How the axes of these letters are shared out.

  Args:
    letters: of the array; with a B among them it is an activation.
    sizes: of the mesh axes; those of 1 are left out.
    at_rest: whether a parameter is stored, or being computed with.

  Raises:
    ConfigError: two letters would lie along one mesh axis.

  >>> sizes = dict(replica=1, data=1, fsdp=2, tensor=2, sequence=2)
  >>> tuple(spec('DHK', sizes)), tuple(spec('DHK', sizes, at_rest=False))
  (('fsdp', 'tensor', None), (None, 'tensor', None))
  >>> tuple(spec('BTHK', sizes))
  ('fsdp', 'sequence', 'tensor', None)
  """
  places = []
  for letter in letters:
    axes = RULES[letter].activation
    if 'B' not in letters:
      axes = RULES[letter].parameter
      axes = axes if at_rest else tuple(a for a in axes if a != 'fsdp')
    places.append(tuple(axis for axis in axes if sizes[axis] > 1))
  used = [axis for axes in places for axis in axes]
  for axis in used:
    if used.count(axis) > 1:
      raise ConfigError(
        f'two axes of an array _{letters} would lie along one mesh axis: take '
        f'--mesh.{axis}=1'
      )
  return P(*(axes[0] if len(axes) == 1 else axes or None for axes in places))


def letters_of(path: tuple[Any, ...], rank: int) -> str:
  """The letters of a leaf of a state: those of its name, N if it is stacked.

  Raises:
    ValueError: its name does not say what its axes are.

  >>> tree = {'layers': {'w_1_DF': np.zeros((6, 2, 4))}, 'count': np.zeros(())}
  >>> [letters_of(path, x.ndim) for path, x in jax.tree.leaves_with_path(tree)]
  ['', 'NDF']
  """
  name = jax.tree_util.keystr(path, simple=True, separator='.')
  letters = name.rpartition('.')[2].rpartition('_')[2] if rank else ''
  if rank == len(letters) + 1:
    letters = 'N' + letters
  if rank != len(letters) or not set(letters) <= set(RULES):
    raise ValueError(f'the name {name} must end in the letters of {rank} axes')
  return letters


def _kept(primitive: Any, *_: Any, **params: Any) -> bool:
  """What of a layer is kept for its backward pass when parameters are cut up.

  Not the gathered parameters, nor casts of them: with these kept, the whole
  parameters of all layers would lie on every device. They are gathered again.
  """
  inner = params.get('call_jaxpr')
  names = [e.primitive.name for e in inner.jaxpr.eqns] if inner else []
  gathered = names == ['sharding_constraint']
  return not gathered and primitive.name != 'convert_element_type'


@dataclasses.dataclass(frozen=True)
class Layout(Alone):
  """A mesh, and what the loop needs to lay a step out on it."""

  mesh: Mesh

  def place(self, letters: str, *, at_rest: bool = True) -> NamedSharding:
    """Where an array of these letters lies."""
    sizes = self.mesh.shape
    return NamedSharding(self.mesh, spec(letters, sizes, at_rest=at_rest))

  def at_rest(self, state: Any) -> Any:
    """The place of each leaf of a state, or of parameters.

    Raises:
      ConfigError: an axis of an array cannot be cut into so many parts.
    """

    def one(path, leaf):
      letters = letters_of(path, len(leaf.shape))
      place = self.place(letters)
      for letter, size, axis in zip(
        letters, leaf.shape, place.spec, strict=True
      ):
        if axis is not None and size % self.mesh.shape[axis]:
          name = jax.tree_util.keystr(path, simple=True, separator='.')
          raise ConfigError(
            f'--mesh.{axis}={self.mesh.shape[axis]} does not divide axis '
            f'{letter} = {size} of {name}'
          )
      return place

    return jax.tree.map_with_path(one, state)

  def parameters(self, params: Any) -> Any:
    """Parameters as they are computed with: whole along `fsdp`.

    Stacked ones stay as they are: `wrap_layer` sees to one layer at a time.
    """

    def one(path, leaf):
      letters = letters_of(path, leaf.ndim)
      if letters[:1] == 'N':
        return leaf
      # Gather before the gradient is scattered; otherwise XLA shards the
      # embedding look-up along its width.
      used = self.place(letters, at_rest=False)
      return _moved(self._gather(leaf, letters), used, used)

    return jax.tree.map_with_path(one, params)

  def _gather(self, leaf: Array, letters: str) -> Array:
    stored, used = self.place(letters), self.place(letters, at_rest=False)
    if stored.spec == used.spec:
      return leaf
    return _moved(leaf, stored, used)

  def wrap_layer(self, body: Callable) -> Callable:
    """The body of a layer, told where its input and variables lie."""

    def placed(x_BTD, slice_N):
      n, variables, inputs = slice_N
      x_BTD = jax.lax.with_sharding_constraint(x_BTD, self.place('BTD'))
      variables = jax.tree.map_with_path(
        lambda path, leaf: self._gather(leaf, letters_of(path, leaf.ndim)),
        variables,
      )
      return body(x_BTD, (n, variables, inputs))

    if self.mesh.shape['fsdp'] == 1:
      return placed
    return jax.checkpoint(placed, policy=_kept, prevent_cse=False)

  def cross_entropy(
    self, h_BTD: Array, w_VD: Array, target_BT: Array, smoothing: Array | float
  ) -> LossSums:
    """`batch_cross_entropy` of the rows of each device, summed over all.

    Each device goes through its own tokens in parts. Left to XLA, the parts of
    the whole batch would be gathered one after the other.
    """
    spread = tuple(a for a in (*ROWS, 'sequence') if self.mesh.shape[a] > 1)
    if not spread:
      return batch_cross_entropy(h_BTD, w_VD, target_BT, smoothing)

    def own(h_BTD, w_VD, target_BT, smoothing):
      sums = batch_cross_entropy(h_BTD, w_VD, target_BT, smoothing)
      return jax.lax.psum(sums, spread)

    whole = P()
    sizes = self.mesh.shape
    return jax.shard_map(
      own,
      mesh=self.mesh,
      in_specs=(spec('BTD', sizes), whole, spec('BT', sizes), whole),
      out_specs=whole,
      axis_names=set(spread),
      check_vma=False,
    )(h_BTD, w_VD, target_BT, jnp.float32(smoothing))

  def batch(self, batch: Any, parts: int = 1) -> Any:
    """Host arrays of a batch, cut up over devices; each host keeps its part.

    Rows and columns of padding are added where the mesh does not divide them;
    they weigh nothing. Of a batch that is cut into parts every part is padded,
    and every device has its rows of each, one after the other: [R, parts, T].

    Args:
      batch: arrays [..., B, T], the same on all processes.
      parts: that the step cuts it into.
    """
    rows_columns = self.place('BT').spec

    def one(x_BT):
      *lead, rows, columns = x_BT.shape
      x_PRT = x_BT.reshape(*lead, parts, rows // parts, columns)
      sides = x_PRT.shape[-2:]
      more = np.subtract(self.padded(*sides), sides)
      widths = [(0, 0)] * (len(lead) + 1) + [(0, n) for n in more]
      x_PRT = np.pad(x_PRT, widths) if more.any() else x_PRT
      x_RPT = x_PRT.swapaxes(-3, -2)
      x_BT = x_RPT.reshape(*lead, -1, x_RPT.shape[-1])
      return self._put(x_BT, P(*[None] * len(lead), *rows_columns))

    return jax.tree.map(one, batch)

  def cut(self, batch: Any, parts: int) -> Any:
    """Inside a step: the parts of what `batch` gave; no row changes place."""

    def one(x_BT):
      x_RPT = x_BT.reshape(-1, parts, x_BT.shape[1])
      places = NamedSharding(self.mesh, P(None, *self.place('BT').spec))
      return jax.lax.with_sharding_constraint(x_RPT.swapaxes(0, 1), places)

    return jax.tree.map(one, batch)

  def padded(self, rows: int, columns: int, parts: int = 1) -> tuple[int, int]:
    """The size of a padded batch [B, T]: the mesh divides each of its parts."""
    more = -columns % self.mesh.shape['sequence']
    return parts * self.rows(rows // parts), columns + more

  def outputs(self, state: Any) -> dict[str, Any]:
    """Arguments of `jit` for what gives a state and numbers."""
    return {'out_shardings': (self.at_rest(state), self.place(''))}

  def rows(self, count: int) -> int:
    """The next number of rows that all devices share."""
    rows = math.prod(self.mesh.shape[axis] for axis in ROWS)
    return -(-count // rows) * rows

  def sentences(self, tree: Any) -> Any:
    """Host arrays [B, ...], their rows cut up over devices."""
    return jax.tree.map(lambda x_B: self._put(x_B, self.place('B').spec), tree)

  def to_decode(self, params: Any) -> Any:
    """Parameters of all layers, whole along `fsdp`.

    Every token goes through every layer: gathered in each, the parameters would
    cross the network once a token.
    """

    def one(path, leaf):
      return self.place(letters_of(path, leaf.ndim), at_rest=False)

    places = jax.tree.map_with_path(one, params)
    if isinstance(jax.tree.leaves(params)[0], jax.Array):
      return jax.jit(lambda params: params, out_shardings=places)(params)
    return jax.tree.map(
      lambda x, place: self._put(x, place.spec), params, places
    )

  def _put(self, x: Any, places: P) -> Array:
    """A host array, cut up."""
    place = NamedSharding(self.mesh, places)
    if jax.process_count() == 1:
      return jax.device_put(x, place)
    return jax.make_array_from_callback(x.shape, place, lambda at: x[at])


def placed(abstract: Any, places: Any) -> Any:
  """Shapes of a state with the place of each leaf, for it to be restored."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    abstract,
    places,
  )


def layout(config: MeshConfig) -> Alone:
  """How steps of this config lie on the devices there are.

  Raises:
    ConfigError: the sizes do not multiply to the devices, or not all of them
      would have a part in one run.
  """
  mesh = of_one_run(make_mesh(config))
  return ALONE if mesh.size == 1 else Layout(mesh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(leaf: Array, stored: NamedSharding, used: NamedSharding) -> Array:
  """A parameter where it is used; its gradient goes back where it rests."""
  del stored
  return jax.lax.with_sharding_constraint(leaf, used)


def _moved_forward(leaf, stored, used):
  return _moved(leaf, stored, used), None


def _moved_backward(stored, used, saved, cotangent):
  del used, saved
  return (jax.lax.with_sharding_constraint(cotangent, stored),)


_moved.defvjp(_moved_forward, _moved_backward)
