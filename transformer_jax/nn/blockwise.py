"""Attention in blocks: memory grows with the length, not with its square.

The same function as `attention.attention`, forward and backward, for any score
that looks at one query and one key at a time. Scores exist for one tile of
queries and keys only; the softmax over all keys comes of a running maximum and
sum (pure; Milakov & Gimelshein 2018; Rabe & Staats 2021; Dao et al. 2022). The
backward pass makes each tile again, from q, k, v, the output, the maximum and
the sum of each row.

Each tile computes its own part of `sees` and of the bias. A mask given per
query already costs one byte a pair.

`read`, `merge`, `finish` and `gradients` are the parts that attention over a
sequence spread over devices is made of: each device reads its shard of the
keys, with `Origin` saying where the shard lies, and merges what was read.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.nn import randomness
from transformer_jax.nn.attention import MASKED, Drop, How, Sees, all_scores
from transformer_jax.nn.score_memory import held_by

# Numbers that a tile may hold; measured on two cores, where a tile then stays
# in the cache: `python -m experiments.bench --suite=attention`.
TILE_NUMBERS = 1 << 19
# Rows of a tile. Below, a step of the loop costs more than its arithmetic.
LEAST_BLOCK, LARGEST_BLOCK = 16, 512


class Origin(NamedTuple):
  """Where the arrays begin in the whole: it decides which weights drop."""

  b: Array | int = 0
  h: Array | int = 0
  t: Array | int = 0
  s: Array | int = 0


class Inputs(NamedTuple):
  """What attention is differentiated by; see `attention.attention`."""

  q_BTHK: Array
  k_BSHK: Array
  v_BSHE: Array
  w: Array | None
  scale: Array
  bias_HA: Array | None


class Given(NamedTuple):
  """What it is not differentiated by."""

  mask_BTS: Array
  drop: Drop | None
  origin: Origin


class Form(NamedTuple):
  """What the program is, known when it is traced."""

  scores: Callable[..., Array]
  sees: Sees | None
  queries: int  # of a tile
  keys: int


class Read(NamedTuple):
  """What rows have read of the keys so far; float32."""

  maximum_BHT: Array  # of the scores
  sum_BHT: Array  # of exp(score - maximum)
  mixed_BTHE: Array  # of exp(score - maximum) times the value


def attention(
  q_BTHK: Array,
  k_BSHK: Array,
  v_BSHE: Array,
  mask_BTS: Array,
  how: How,
  *,
  blocks: tuple[int, int] | None = None,
) -> Array:
  """softmax(scale * scores(q, k) + bias) v of each head, tile by tile.

  The arguments are those of `attention.attention`, and

  Args:
    blocks: queries and keys of a tile, at most; None: from the shapes, so that
      what the score holds of a tile stays small.

  Returns:
    mixed_BTHE in the dtype of v.

  >>> q = k = v = jnp.ones((1, 1000, 1, 2))
  >>> see_all = jnp.ones((1, 1, 1000), bool)
  >>> attention(q, k, v, see_all, How(1.0), blocks=(64, 64))[0, 999, 0]
  Array([1., 1.], dtype=float32)
  """
  inputs = inputs_of(q_BTHK, k_BSHK, v_BSHE, how)
  mask_BTS = jnp.broadcast_to(mask_BTS, (*mask_BTS.shape[:2], k_BSHK.shape[1]))
  given = Given(mask_BTS, how.drop, Origin())
  form = form_of(inputs, how.scores, how.sees, blocks)
  return _attend(form, inputs, given)


def inputs_of(q_BTHK: Array, k_BSHK: Array, v_BSHE: Array, how: How) -> Inputs:
  """All of it that has a gradient."""
  scale = jnp.asarray(how.scale, jnp.float32)
  return Inputs(q_BTHK, k_BSHK, v_BSHE, how.w, scale, how.bias_HA)


def form_of(
  inputs: Inputs,
  scores: Callable[..., Array],
  sees: Sees | None = None,
  blocks: tuple[int, int] | None = None,
) -> Form:
  """The form with tiles of `blocks`, evened out over the lengths.

  Args:
    inputs: arrays or their shapes.
    scores: of `How`.
    sees: of `How`.
    blocks: as in `attention`.
  """
  B, T, H, _ = inputs.q_BTHK.shape
  S = inputs.k_BSHK.shape[1]
  if blocks is None:
    how = How(inputs.scale, scores, inputs.w)
    held = held_by(how, inputs.q_BTHK, inputs.k_BSHK)
    pairs = TILE_NUMBERS // (B * H * held)
    side = 1 << max(pairs, 1).bit_length() // 2
    side = min(max(side, LEAST_BLOCK), LARGEST_BLOCK)
    blocks = (side, side)
  return Form(scores, sees, *map(_even, (T, S), blocks))


def _even(length: int, block: int) -> int:
  """The least block that needs no more of them than `block` does.

  >>> _even(300, 256), _even(5, 256)
  (150, 5)
  """
  return -(-length // -(-length // block))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form: Form, inputs: Inputs, given: Given) -> Array:
  return finish(read(form, inputs, given), inputs.v_BSHE.dtype)


def _forward(form: Form, inputs: Inputs, given: Given) -> tuple[Array, Any]:
  found = read(form, inputs, given)
  mixed_BTHE = finish(found, inputs.v_BSHE.dtype)
  return mixed_BTHE, (inputs, given, found[:2], mixed_BTHE)


def _backward(form: Form, saved: Any, cotangent_BTHE: Array) -> Any:
  inputs, given, statistics, mixed_BTHE = saved
  found = gradients(form, inputs, given, statistics, mixed_BTHE, cotangent_BTHE)
  return found, None


_attend.defvjp(_forward, _backward)


def read(form: Form, inputs: Inputs, given: Given) -> Read:
  """All queries read all keys, tile by tile.

  Args:
    form: of `form_of`.
    inputs: of one shard of the keys, or of all.
    given: its mask, with all axes S long; dropout; where the shard lies.
  """
  B, T, H, _ = inputs.q_BTHK.shape
  inputs, given, inside_S = _padded(form, inputs, given)
  E = inputs.v_BSHE.shape[3]
  each_t, each_s = _starts(form, inputs)

  def rows(t: Array) -> Read:
    start = Read(
      jnp.full((B, H, form.queries), -jnp.inf),
      jnp.zeros((B, H, form.queries)),
      jnp.zeros((B, form.queries, H, E)),
    )

    def body(done: Read, s: Array) -> tuple[Read, None]:
      tile = _tile(form, inputs, given, inside_S, t, s)
      return merge(done, _read_tile(form, *tile)), None

    return jax.lax.scan(body, start, each_s)[0]

  found = jax.lax.map(rows, each_t)
  return Read(
    _joined(found.maximum_BHT, 2)[..., :T],
    _joined(found.sum_BHT, 2)[..., :T],
    _joined(found.mixed_BTHE, 1)[:, :T],
  )


def merge(one: Read, other: Read) -> Read:
  """What was read of one part of the keys and of another, as one reading."""
  maximum = jnp.maximum(one.maximum_BHT, other.maximum_BHT)
  # A maximum of -inf stands for no key at all; at least one is finite.
  a, b = (jnp.exp(x.maximum_BHT - maximum) for x in (one, other))
  return Read(
    maximum,
    one.sum_BHT * a + other.sum_BHT * b,
    one.mixed_BTHE * _beside(a) + other.mixed_BTHE * _beside(b),
  )


def finish(found: Read, dtype: Any) -> Array:
  """mixed_BTHE of rows that have read every key."""
  return (found.mixed_BTHE / _beside(found.sum_BHT)).astype(dtype)


def gradients(
  form: Form,
  inputs: Inputs,
  given: Given,
  statistics: tuple[Array, Array],
  mixed_BTHE: Array,
  cotangent_BTHE: Array,
) -> Inputs:
  """The gradient by each of the inputs, tile by tile.

  Args:
    form: as in `read`.
    inputs: as in `read`.
    given: as in `read`.
    statistics: maximum_BHT and sum_BHT over all keys, not the shard's alone.
    mixed_BTHE: the result over all keys.
    cotangent_BTHE: of it.

  Returns:
    The part that these keys have in it, in the dtypes of the inputs.
  """
  T, S = inputs.q_BTHK.shape[1], inputs.k_BSHK.shape[1]
  delta_BHT = jnp.einsum(
    'BTHE,BTHE->BHT',
    cotangent_BTHE,
    mixed_BTHE,
    preferred_element_type=jnp.float32,
  )
  extra = -T % form.queries
  # Rows beyond the last have weights exp(-inf) = 0, whatever they score.
  maximum_BHT, sum_BHT = statistics
  rows_of = (
    _extended(maximum_BHT, 2, extra, jnp.inf),
    _extended(sum_BHT, 2, extra, 1),
    _extended(delta_BHT, 2, extra),
    _extended(cotangent_BTHE, 1, extra),
  )
  padded, given, inside_S = _padded(form, inputs, given)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), padded)
  each_t, each_s = _starts(form, padded)

  def rows(sums: tuple, t: Array) -> tuple[tuple, Array]:
    own = [
      _taken(x, axis, t, form.queries)
      for x, axis in zip(rows_of, (2, 2, 2, 1), strict=True)
    ]

    def body(sums: tuple, s: Array) -> tuple[tuple, None]:
      tile = _tile(form, padded, given, inside_S, t, s)
      new = _tile_gradients(form, *tile, own)
      q, k, v, w, scale, bias = sums
      k = _added(k, new.k_BSHK, s)
      v = _added(v, new.v_BSHE, s)
      w, scale = jax.tree.map(jnp.add, (w, scale), (new.w, new.scale))
      if new.bias_HA is not None:
        bias = _added(bias, new.bias_HA, _first_apart(form, padded, t, s))
      return (q + new.q_BTHK, k, v, w, scale, bias), None

    q = _taken(zeros.q_BTHK, 1, t, form.queries)
    sums, _ = jax.lax.scan(body, (q, *sums), each_s)
    return sums[1:], sums[0]

  (k, v, w, scale, bias), q = jax.lax.scan(rows, zeros[1:], each_t)
  if bias is not None:
    bias = bias[:, extra : extra + T + S - 1]
  found = Inputs(_joined(q, 1)[:, :T], k[:, :S], v[:, :S], w, scale, bias)
  return jax.tree.map(lambda x, like: x.astype(like.dtype), found, inputs)


def _read_tile(
  form: Form, tile: Inputs, seen_BTS: Array, inside_S: Array, drop: Any
) -> Read:
  """`Read` of one tile."""
  scores_BHTS = _scores(form, tile)
  scores_BHTS = _masked(scores_BHTS, seen_BTS, inside_S)
  maximum_BHT = jnp.max(scores_BHTS, axis=-1)
  weights_BHTS = jnp.exp(scores_BHTS - maximum_BHT[..., None])
  sum_BHT = jnp.sum(weights_BHTS, axis=-1)
  weights_BHTS = _dropped(weights_BHTS, drop).astype(tile.v_BSHE.dtype)
  mixed_BTHE = jnp.einsum(
    'BHTS,BSHE->BTHE',
    weights_BHTS,
    tile.v_BSHE,
    preferred_element_type=jnp.float32,
  )
  return Read(maximum_BHT, sum_BHT, mixed_BTHE)


def _tile_gradients(
  form: Form,
  tile: Inputs,
  seen_BTS: Array,
  inside_S: Array,
  drop: Any,
  rows: Sequence[Array],
) -> Inputs:
  """What one tile adds to the gradient of each input; float32.

  delta is the term that the softmax's backward pass subtracts, one a row:
  sum_S weight * gradient = sum_E cotangent * mixed.
  """
  maximum_BHT, sum_BHT, delta_BHT, cotangent_BTHE = rows
  scores_BHTS, back = jax.vjp(functools.partial(_scores, form), tile)
  scores_BHTS = _masked(scores_BHTS, seen_BTS, inside_S)
  weights_BHTS = jnp.exp(scores_BHTS - maximum_BHT[..., None])
  weights_BHTS = weights_BHTS / sum_BHT[..., None]
  v_BSHE, f32 = tile.v_BSHE, jnp.float32
  by_weight_BHTS = jnp.einsum(
    'BTHE,BSHE->BHTS', cotangent_BTHE, v_BSHE, preferred_element_type=f32
  )
  by_v_BSHE = jnp.einsum(
    'BHTS,BTHE->BSHE',
    _dropped(weights_BHTS, drop).astype(v_BSHE.dtype),
    cotangent_BTHE,
    preferred_element_type=f32,
  )
  by_weight_BHTS = _dropped(by_weight_BHTS, drop) - delta_BHT[..., None]
  by_score_BHTS = jnp.where(
    seen_BTS[:, None], weights_BHTS * by_weight_BHTS, jnp.float32(0)
  )
  (by_tile,) = back(by_score_BHTS)
  found = by_tile._replace(v_BSHE=by_v_BSHE)
  return jax.tree.map(lambda x: x.astype(f32), found)


def _scores(form: Form, tile: Inputs) -> Array:
  how = How(tile.scale, form.scores, tile.w, tile.bias_HA)
  return all_scores(tile.q_BTHK, tile.k_BSHK, how)


def _masked(scores_BHTS: Array, seen_BTS: Array, inside_S: Array) -> Array:
  """Scores as softmax takes them; -inf, and not MASKED, beyond the last key.

  So a row that may see no key still has even weights over the real ones.
  """
  scores_BHTS = jnp.where(seen_BTS[:, None], scores_BHTS, jnp.float32(MASKED))
  return jnp.where(inside_S[None, None, None], scores_BHTS, -jnp.inf)


def _dropped(x_BHTS: Array, drop: Any) -> Array:
  """x with the elements at the coordinates of `drop` dropped, if any."""
  if drop is None:
    return x_BHTS
  key, rate, coordinates = drop
  return randomness.drop_at(x_BHTS, key, rate, coordinates)


def _padded(
  form: Form, inputs: Inputs, given: Given
) -> tuple[Inputs, Given, Array]:
  """Everything a whole number of tiles long, and which keys are real."""
  T, S = inputs.q_BTHK.shape[1], inputs.k_BSHK.shape[1]
  t, s = -T % form.queries, -S % form.keys
  bias, mask = inputs.bias_HA, _extended(given.mask_BTS, 2, s)
  if mask.shape[1] > 1:
    mask = _extended(mask, 1, t)
  inputs = inputs._replace(
    q_BTHK=_repeated(inputs.q_BTHK, t),
    k_BSHK=_repeated(inputs.k_BSHK, s),
    v_BSHE=_repeated(inputs.v_BSHE, s),
    bias_HA=None if bias is None else jnp.pad(bias, ((0, 0), (t, s))),
  )
  return inputs, given._replace(mask_BTS=mask), jnp.arange(S + s) < S


def _starts(form: Form, padded: Inputs) -> tuple[Array, Array]:
  """First query and first key of each row and column of tiles.

  Tied to the queries. Otherwise JAX, when it differentiates the loop over
  layers, moves what depends on positions alone (such as the mask of a tile) out
  of that loop and keeps it for all tiles: T*S numbers a head.
  """
  t = jnp.arange(0, padded.q_BTHK.shape[1], form.queries)
  s = jnp.arange(0, padded.k_BSHK.shape[1], form.keys)
  return jax.lax.optimization_barrier((t, s, padded.q_BTHK))[:2]


def _tile(
  form: Form, inputs: Inputs, given: Given, inside_S: Array, t: Array, s: Array
) -> tuple[Inputs, Array, Array, Any]:
  """The tile whose first query is t and first key s."""

  def cut(x: Array, axis_t: int | None, axis_s: int | None) -> Array:
    if axis_t is not None:
      x = _taken(x, axis_t, t, form.queries)
    return x if axis_s is None else _taken(x, axis_s, s, form.keys)

  bias, drop, origin = inputs.bias_HA, given.drop, given.origin
  tile = inputs._replace(
    q_BTHK=cut(inputs.q_BTHK, 1, None),
    k_BSHK=cut(inputs.k_BSHK, None, 1),
    v_BSHE=cut(inputs.v_BSHE, None, 1),
  )
  if bias is not None:
    start, size = _first_apart(form, inputs, t, s), form.queries + form.keys - 1
    tile = tile._replace(bias_HA=_taken(bias, 1, start, size))
  seen_BTS = cut(given.mask_BTS, None, 2)
  if seen_BTS.shape[1] > 1:
    seen_BTS = cut(seen_BTS, 1, None)
  if form.sees is not None:
    t_T = origin.t + t + jnp.arange(form.queries)
    s_S = origin.s + s + jnp.arange(form.keys)
    seen_BTS = seen_BTS & form.sees(t_T[:, None], s_S[None])[None]
  dropped = None
  if drop is not None:
    B, _, H, _ = inputs.q_BTHK.shape
    starts = origin.b, origin.h, origin.t + t, origin.s + s
    coordinates = [
      own + jnp.asarray(start).astype(jnp.uint32)
      for own, start in zip(
        randomness.grid((B, H, form.queries, form.keys)), starts, strict=True
      )
    ]
    dropped = drop.key, drop.rate, coordinates
  return tile, seen_BTS, cut(inside_S, None, 0), dropped


def _first_apart(form: Form, padded: Inputs, t: Array, s: Array) -> Array:
  """Where the bias of the tile at t and s begins in that of all."""
  return s - t + padded.q_BTHK.shape[1] - form.queries


def _taken(x: Array, axis: int, start: Array, size: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _added(x: Array, new: Array, start: Array) -> Array:
  """x with `new` added from `start` on along axis 1."""
  own = _taken(x, 1, start, new.shape[1])
  return jax.lax.dynamic_update_slice_in_dim(x, own + new, start, 1)


def _extended(x: Array, axis: int, count: int, value: float = 0) -> Array:
  """x with `count` more elements along an axis."""
  if not count:
    return x
  pads = [(0, count if axis == own else 0) for own in range(x.ndim)]
  return jnp.pad(x, pads, constant_values=value)


def _repeated(x: Array, count: int) -> Array:
  """x with its last row, along axis 1, `count` more times.

  Not with zeros: a score may have no gradient there, such as one that divides
  by the length of q, and 0 times NaN is NaN.
  """
  pads = [(0, count if axis == 1 else 0) for axis in range(x.ndim)]
  return jnp.pad(x, pads, mode='edge') if count else x


def _joined(blocks: Array, axis: int) -> Array:
  """[blocks, ..., length, ...] with the blocks side by side along `axis`."""
  x = jnp.moveaxis(blocks, 0, axis)
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _beside(x_BHT: Array) -> Array:
  return jnp.swapaxes(x_BHT, 1, 2)[..., None]
