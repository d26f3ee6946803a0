"""Attention over a sequence that lies on several devices.

Each device keeps its queries and passes its keys and values around a ring;
what it reads of each shard is merged by maximum and sum, as between the tiles
of `blockwise`. The backward pass goes around once more, the gradients of keys
and values with them. So it serves every score that looks at one query and one
key at a time (Liu et al. 2023, "Ring Attention with Blockwise Transformers").
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from transformer_jax.config import SIDES, ConfigError, ModelConfig
from transformer_jax.nn import blockwise, implementations
from transformer_jax.nn.attention import Drop, How, Sees
from transformer_jax.training.sharding import ROWS, Layout, spec
from transformer_jax.training.state import Alone

AXIS = 'sequence'


def serve(
  config: ModelConfig, layout: Alone, *, platform: str
) -> implementations.Served:
  """`implementations.serve`, or the ring where positions are shared out.

  Raises:
    ConfigError: an implementation is asked for that reads whole sequences, or
      sentences padded to the devices could need positions that are not there.
  """
  if not isinstance(layout, Layout) or layout.mesh.shape[AXIS] == 1:
    found = implementations.serve(config, platform=platform)
    looks = found.attend in implementations.BY_SHAPE
    if isinstance(layout, Layout) and looks:
      # A program has the shapes of the whole batch, a device has its part.
      shared = functools.partial(found.attend, devices=layout.mesh.size)
      return found._replace(attend=shared)
    return found
  devices = layout.mesh.shape[AXIS]
  # The ring is blockwise: a run of either goes on here.
  if config.attention_implementation not in ('auto', 'blockwise'):
    raise ConfigError(
      f'--mesh.sequence={devices} has its own attention, which is blockwise: '
      'a new run takes --model.attention_implementation=auto; one that began '
      f'with {config.attention_implementation} goes on with --mesh.sequence=1'
    )
  if any((config.longest(side) or 0) % devices for side in SIDES):
    raise ConfigError(
      f'--mesh.sequence={devices} does not divide '
      f'model.max_positions={config.max_positions}, and learned positions '
      'have no more: raise it to a multiple'
    )
  return implementations.Served(Ring(layout.mesh), 'a ring of devices')


@dataclasses.dataclass(frozen=True)
class Ring:
  """`attention.attention` for positions that lie along the axis `sequence`.

  Called as every implementation is. The mesh axes divide the axes B, H, T and
  S; a mask comes with all its keys, a bias whole.
  """

  mesh: Mesh

  def __call__(
    self,
    q_BTHK: Array,
    k_BSHK: Array,
    v_BSHE: Array,
    mask_BTS: Array,
    how: How,
  ) -> Array:
    B, T = q_BTHK.shape[:2]
    S = k_BSHK.shape[1]
    mask_BTS = jnp.broadcast_to(mask_BTS, (*mask_BTS.shape[:2], S))
    sizes = self.mesh.shape
    rows, sequence, heads, _ = spec('BTHK', sizes)
    mask_spec = P(
      rows if mask_BTS.shape[0] == B > 1 else None,
      sequence if mask_BTS.shape[1] == T > 1 else None,
    )
    inputs = blockwise.inputs_of(q_BTHK, k_BSHK, v_BSHE, how)
    places = [spec(letters, sizes) for letters in ('BTHK', 'BSHK', 'BSHE')]
    places += [
      P(heads),
      P(heads) if inputs.scale.ndim else P(),
      P(heads),
    ]
    placed = blockwise.Inputs._make(places)
    return jax.shard_map(
      functools.partial(_own, how.scores, how.sees, sizes[AXIS]),
      mesh=self.mesh,
      in_specs=(placed, mask_spec, P()),
      out_specs=spec('BTHE', sizes),
      check_vma=False,
    )(inputs, mask_BTS, how.drop)


def _own(
  scores: Callable[..., Array],
  sees: Sees | None,
  devices: int,
  inputs: blockwise.Inputs,
  mask_BTS: Array,
  drop: Drop | None,
) -> Array:
  """The part of one device, on its shards."""
  form = blockwise.form_of(inputs, scores, sees)
  B, T, H, _ = inputs.q_BTHK.shape
  # Where the shard lies in the whole: it decides which weights drop.
  origin = blockwise.Origin(
    b=jax.lax.axis_index(ROWS) * B,
    h=jax.lax.axis_index('tensor') * H,
    t=jax.lax.axis_index(AXIS) * T,
  )
  given = blockwise.Given(mask_BTS, drop, origin)
  return _around((form, devices), inputs, given)


def _at(
  inputs: blockwise.Inputs, given: blockwise.Given, place: Array | int
) -> tuple[blockwise.Inputs, blockwise.Given]:
  """Bias and mask of the keys that lie on device `place` of the ring."""
  T, S = inputs.q_BTHK.shape[1], inputs.k_BSHK.shape[1]
  if inputs.bias_HA is not None:
    start = _first_apart(inputs, given, place)
    own_HA = jax.lax.dynamic_slice_in_dim(
      inputs.bias_HA, start, T + S - 1, axis=1
    )
    inputs = inputs._replace(bias_HA=own_HA)
  mask_BTS = jax.lax.dynamic_slice_in_dim(given.mask_BTS, place * S, S, 2)
  return inputs, given._replace(
    mask_BTS=mask_BTS, origin=given.origin._replace(s=place * S)
  )


def _first_apart(
  inputs: blockwise.Inputs, given: blockwise.Given, place: Array | int
) -> Array | int:
  """Where the bias of the own queries and those keys begins in the whole."""
  assert inputs.bias_HA is not None
  T, S = inputs.q_BTHK.shape[1], inputs.k_BSHK.shape[1]
  queries = inputs.bias_HA.shape[1] + 1 - given.mask_BTS.shape[2]
  return place * S - given.origin.t + queries - T


def _next(tree: Any, devices: int) -> Any:
  """To the following device of the ring."""
  pairs = [(n, (n + 1) % devices) for n in range(devices)]
  return jax.lax.ppermute(tree, AXIS, pairs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _around(
  program: tuple[blockwise.Form, int],
  inputs: blockwise.Inputs,
  given: blockwise.Given,
) -> Array:
  return _forward(program, inputs, given)[0]


def _forward(program, inputs, given):
  form, devices = program
  own = jax.lax.axis_index(AXIS)

  def body(carry, turn):
    done, keys_values = carry
    k_BSHK, v_BSHE = keys_values = _next(keys_values, devices)
    shard = inputs._replace(k_BSHK=k_BSHK, v_BSHE=v_BSHE)
    found = blockwise.read(form, *_at(shard, given, (own - turn) % devices))
    return (blockwise.merge(done, found), keys_values), None

  done = blockwise.read(form, *_at(inputs, given, own))
  start = done, (inputs.k_BSHK, inputs.v_BSHE)
  (done, _), _ = jax.lax.scan(body, start, jnp.arange(1, devices))
  mixed_BTHE = blockwise.finish(done, inputs.v_BSHE.dtype)
  return mixed_BTHE, (inputs, given, done[:2], mixed_BTHE)


def _backward(program, saved, cotangent_BTHE):
  form, devices = program
  inputs, given, statistics, mixed_BTHE = saved
  own = jax.lax.axis_index(AXIS)

  def part(shard, place):
    """What the keys of device `place` add to the gradient; float32."""
    found = blockwise.gradients(
      form,
      *_at(shard, given, place),
      statistics,
      mixed_BTHE,
      cotangent_BTHE,
    )
    found = jax.tree.map(lambda x: x.astype(jnp.float32), found)
    if found.bias_HA is None:
      return found
    whole_HA = jnp.zeros(inputs.bias_HA.shape, jnp.float32)
    start = _first_apart(inputs, given, place)
    return found._replace(
      bias_HA=jax.lax.dynamic_update_slice_in_dim(
        whole_HA, found.bias_HA, start, 1
      )
    )

  def body(carry, turn):
    total, shard = carry
    # The gradients of keys and values travel with these.
    dk, dv, k, v = _next(
      (total.k_BSHK, total.v_BSHE, shard.k_BSHK, shard.v_BSHE), devices
    )
    total = total._replace(k_BSHK=dk, v_BSHE=dv)
    shard = shard._replace(k_BSHK=k, v_BSHE=v)
    found = part(shard, (own - turn) % devices)
    return (jax.tree.map(jnp.add, total, found), shard), None

  start = part(inputs, own), inputs
  (total, _), _ = jax.lax.scan(body, start, jnp.arange(1, devices))
  dk, dv = _next((total.k_BSHK, total.v_BSHE), devices)
  total = total._replace(k_BSHK=dk, v_BSHE=dv)
  return jax.tree.map(lambda x, like: x.astype(like.dtype), total, inputs), None


_around.defvjp(_forward, _backward)
