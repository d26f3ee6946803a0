"""Additive attention as one GPU program: a Pallas kernel (Triton).

The hidden layer tanh(q + k) of a tile is never whole anywhere: the program
walks over K and adds w_K tanh(q_K + k_K) to the scores of the tile, which lie
in registers; the softmax over all keys comes of a running maximum and sum. The
backward pass makes each tile again, once for queries, once for keys and values.

It has never run on a device yet: it was checked in Pallas's interpreter only,
against `attention.attention`. So `auto` does not choose it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from transformer_jax.nn import randomness
from transformer_jax.nn.attention import (
  MASKED,
  Drop,
  How,
  Sees,
  additive_scores,
)

TILES = (32, 32)
LEAST_WIDTH = 16  # of a matrix product in Triton


class Form(NamedTuple):
  """What the program is, known when it is traced."""

  queries: int  # of a tile
  keys: int
  length: int  # S before it was padded
  sees: Sees | None
  drops: str  # 'none' or 'weights'
  interpret: bool


class Given(NamedTuple):
  """What attention is not differentiated by."""

  mask_BTS: Array  # int8; axes of size 1 repeat
  key: Array
  rate: Array  # [1]


def attention(
  q_BTHK: Array,
  k_BSHK: Array,
  v_BSHE: Array,
  mask_BTS: Array,
  how: How,
  *,
  tiles: tuple[int, int] = TILES,
  interpret: bool = False,
) -> Array:
  """softmax(scale * sum_K w tanh(q + k)) v of each head.

  The arguments are those of `attention.attention`, and

  Args:
    tiles: queries and keys of a tile, powers of two.
    interpret: Pallas's interpreter, for a machine without a GPU.

  Returns:
    mixed_BTHE in the dtype of v.

  Raises:
    ValueError: another score, or a bias.
  """
  w = how.w
  if how.scores is not additive_scores or w is None or how.bias_HA is not None:
    raise ValueError('the kernel takes the additive score without a bias')
  T, S, K, E = q_BTHK.shape[1], *k_BSHK.shape[1::2], v_BSHE.shape[3]
  t, s = -T % tiles[0], -S % tiles[1]
  wide_k, wide_e = (
    max(1 << (n - 1).bit_length(), LEAST_WIDTH) - n for n in (K, E)
  )
  # Zeros in w: further hidden units add nothing.
  w_HK = w * jnp.asarray(how.scale, w.dtype).reshape(-1, 1)
  mask_BTS = jnp.broadcast_to(mask_BTS, (*mask_BTS.shape[:2], S))
  mask_BTS = jnp.pad(
    mask_BTS.astype(jnp.int8),
    ((0, 0), (0, t if mask_BTS.shape[1] > 1 else 0), (0, s)),
  )
  drop = how.drop or Drop(jnp.zeros((2,), jnp.uint32), 0.0)
  drops = 'weights' if how.drop else 'none'
  rate = jnp.asarray(drop.rate, jnp.float32).reshape(1)
  mixed_BHTE: Any = _attend(
    Form(*tiles, S, how.sees, drops, interpret),
    jnp.pad(q_BTHK, ((0, 0), (0, t), (0, 0), (0, wide_k))).transpose(
      0, 2, 3, 1
    ),
    jnp.pad(k_BSHK, ((0, 0), (0, s), (0, 0), (0, wide_k))).transpose(
      0, 2, 3, 1
    ),
    jnp.pad(v_BSHE, ((0, 0), (0, s), (0, 0), (0, wide_e))).transpose(
      0, 2, 1, 3
    ),
    jnp.pad(w_HK, ((0, 0), (0, wide_k))),
    Given(mask_BTS, drop.key, rate),
  )
  return jnp.swapaxes(mixed_BHTE[:, :, :T, :E], 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(form: Form, q, k, v, w, given: Given) -> Array:
  return _forward(form, q, k, v, w, given)[0]


def _forward(form: Form, q, k, v, w, given: Given) -> tuple[Array, Any]:
  B, H, _, T = q.shape
  E, f32 = v.shape[3], jnp.float32
  t2, t3 = (_tile(axis, form.queries) for axis in (2, 3))
  mixed, maximum, total = _call(
    form,
    _forward_kernel,
    [
      *zip((q, k, v, w), (t3, _of_head, _of_head, _weights), strict=True),
      *_rest(given, form.queries),
    ],
    [((B, H, T, E), v.dtype, t2), *[((B, H, T), f32, t2)] * 2],
    tiles=T // form.queries,
  )
  return mixed, (q, k, v, w, given, mixed, maximum, total)


def _backward(form: Form, saved: Any, cotangent: Array) -> Any:
  q, k, v, w, given, mixed, maximum, total = saved
  B, H, K, T = q.shape
  f32, tiles = jnp.float32, k.shape[3] // form.keys
  delta = jnp.einsum(
    'BHTE,BHTE->BHT', cotangent, mixed, preferred_element_type=f32
  )
  arrays = q, k, v, w
  rows = cotangent, maximum, total, delta
  t2, t3 = (_tile(axis, form.queries) for axis in (2, 3))
  s2, s3 = (_tile(axis, form.keys) for axis in (2, 3))
  [by_q] = _call(
    form,
    _query_kernel,
    [
      *zip(arrays, (t3, _of_head, _of_head, _weights), strict=True),
      *_rest(given, form.queries),
      *((x, t2) for x in rows),
    ],
    [(q.shape, q.dtype, t3)],
    tiles=T // form.queries,
  )
  by_k, by_v, by_w = _call(
    form,
    _key_kernel,
    [
      *zip(arrays, (_of_head, s3, s2, _weights), strict=True),
      *_rest(given, None),
      *((x, _of_head) for x in rows),
    ],
    [
      (k.shape, k.dtype, s3),
      (v.shape, v.dtype, s2),
      ((B, H, tiles, K), f32, _sum_of_tile),
    ],
    tiles=tiles,
  )
  return by_q, by_k, by_v, jnp.sum(by_w, (0, 2)).astype(w.dtype), None


_attend.defvjp(_forward, _backward)


# Shape of an array -> the part of it that program (b, h, n) has: row b, head h,
# tile n of the queries or of the keys.
Cut = Callable[[tuple[int, ...]], pl.BlockSpec]


def _whole(shape: tuple[int, ...]) -> pl.BlockSpec:
  """All of it."""
  return pl.BlockSpec(shape, lambda b, h, n: (0,) * len(shape))


def _of_head(shape: tuple[int, ...]) -> pl.BlockSpec:
  """Of [B, H, ...] all that the row and head have."""
  rest = (0,) * len(shape[2:])
  return pl.BlockSpec((None, None, *shape[2:]), lambda b, h, n: (b, h, *rest))


def _tile(axis: int, size: int) -> Cut:
  """Of [B, H, ...] a tile of so many along the axis."""

  def cut(shape: tuple[int, ...]) -> pl.BlockSpec:
    axes = range(2, len(shape))
    block = [size if a == axis else shape[a] for a in axes]
    return pl.BlockSpec(
      (None, None, *block),
      lambda b, h, n: (b, h, *(n if a == axis else 0 for a in axes)),
    )

  return cut


def _weights(shape: tuple[int, ...]) -> pl.BlockSpec:
  """Of w_HK the row of the head."""
  return pl.BlockSpec((None, shape[1]), lambda b, h, n: (h, 0))


def _sum_of_tile(shape: tuple[int, ...]) -> pl.BlockSpec:
  """Of [B, H, tiles, K] the row of the tile."""
  return pl.BlockSpec(
    (None, None, None, shape[3]), lambda b, h, n: (b, h, n, 0)
  )


def _mask(queries: int | None) -> Cut:
  """Of mask_BTS a tile of so many queries, or all; axes of size 1 repeat."""

  def cut(shape: tuple[int, ...]) -> pl.BlockSpec:
    rows = shape[1] if queries is None or shape[1] == 1 else queries
    return pl.BlockSpec(
      (None, rows, shape[2]),
      lambda b, h, n: (
        b if shape[0] > 1 else 0,
        n if rows != shape[1] else 0,
        0,
      ),
    )

  return cut


def _rest(given: Given, queries: int | None) -> list[tuple[Array, Cut]]:
  return [
    (given.mask_BTS, _mask(queries)),
    (given.key, _whole),
    (given.rate, _whole),
  ]


def _call(
  form: Form,
  body: Callable,
  inputs: list[tuple[Array, Cut]],
  outputs: list[tuple[tuple[int, ...], Any, Cut]],
  *,
  tiles: int,
) -> Any:
  """One program a batch row, head and tile of queries, or of keys.

  Args:
    form: of the whole.
    body: of the program.
    inputs: arrays, each with its cut; the first is [B, H, ...].
    outputs: (shape, dtype, cut) of each.
    tiles: of a row and head.
  """
  return pl.pallas_call(
    functools.partial(body, form),
    grid=(*inputs[0][0].shape[:2], tiles),
    in_specs=[cut(x.shape) for x, cut in inputs],
    out_specs=[cut(shape) for shape, _, cut in outputs],
    out_shape=[jax.ShapeDtypeStruct(x, dtype) for x, dtype, _ in outputs],
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
    interpret=form.interpret,
    name=body.__name__.strip('_'),
  )(*(x for x, _ in inputs))


class Tile(NamedTuple):
  """Where a tile begins: in its refs, and in the whole."""

  in_q: Any
  in_k: Any
  t: Any
  s: Any
  b: Any
  h: Any


def _hidden(form: Form, q_ref, k_ref, at: Tile, n: Any) -> Array:
  """tanh(q_n + k_n) of a tile, [T, S] in float32."""
  q_T = q_ref[n, pl.ds(at.in_q, form.queries)].astype(jnp.float32)
  k_S = k_ref[n, pl.ds(at.in_k, form.keys)].astype(jnp.float32)
  return jnp.tanh(q_T[:, None] + k_S[None, :])


def _scores(form: Form, q_ref, k_ref, w_ref, mask_ref, at: Tile) -> Any:
  """Masked scores of a tile, and where the mask allows; [T, S]."""

  def add(n, sum_TS):
    w = w_ref[n].astype(jnp.float32)
    return sum_TS + w * _hidden(form, q_ref, k_ref, at, n)

  zeros_TS = jnp.zeros((form.queries, form.keys), jnp.float32)
  scores_TS = jax.lax.fori_loop(0, q_ref.shape[0], add, zeros_TS)
  keys = pl.ds(at.s, form.keys)
  if mask_ref.shape[0] == 1:
    seen_TS = jnp.broadcast_to(mask_ref[0, keys][None], zeros_TS.shape) > 0
  else:
    start = at.t if mask_ref.shape[0] > form.queries else 0
    seen_TS = mask_ref[pl.ds(start, form.queries), keys] > 0
  s_1S = at.s + jax.lax.broadcasted_iota(jnp.int32, (1, form.keys), 1)
  if form.sees is not None:
    t_T1 = at.t + jax.lax.broadcasted_iota(jnp.int32, (form.queries, 1), 0)
    seen_TS = seen_TS & form.sees(t_T1, s_1S)
  scores_TS = jnp.where(seen_TS, scores_TS, MASKED)
  return jnp.where(s_1S < form.length, scores_TS, -jnp.inf), seen_TS


def _dropped(form: Form, x_TS: Array, key_ref, rate_ref, at: Tile) -> Array:
  if form.drops == 'none':
    return x_TS
  iota = jax.lax.broadcasted_iota
  coordinates = [
    at.b,
    at.h,
    at.t + iota(jnp.int32, (form.queries, 1), 0),
    at.s + iota(jnp.int32, (1, form.keys), 1),
  ]
  return randomness.drop_at(
    x_TS,
    cast(Any, (key_ref[0], key_ref[1])),
    rate_ref[0],
    [x.astype(jnp.uint32) for x in coordinates],
  )


def _dot(a: Array, b: Array, axes: tuple[int, int]) -> Array:
  """Sum over axis axes[0] of a and axes[1] of b, in float32."""
  contracted = ((axes[0],), (axes[1],)), ((), ())
  return jax.lax.dot_general(
    a, b, contracted, preferred_element_type=jnp.float32
  )


def _forward_kernel(
  form, q_ref, k_ref, v_ref, w_ref, mask_ref, key_ref, rate_ref,
  mixed_ref, maximum_ref, sum_ref,
):  # fmt: skip
  b, h, tile_t = (pl.program_id(axis) for axis in range(3))
  t = tile_t * form.queries
  E = v_ref.shape[1]

  def body(n, carry):
    maximum_T, sum_T, mixed_TE = carry
    at = Tile(0, n * form.keys, t, n * form.keys, b, h)
    scores_TS, _ = _scores(form, q_ref, k_ref, w_ref, mask_ref, at)
    higher_T = jnp.maximum(maximum_T, jnp.max(scores_TS, 1))
    shrink_T = jnp.exp(maximum_T - higher_T)
    weights_TS = jnp.exp(scores_TS - higher_T[:, None])
    sum_T = sum_T * shrink_T + jnp.sum(weights_TS, 1)
    weights_TS = _dropped(form, weights_TS, key_ref, rate_ref, at)
    v_SE = v_ref[pl.ds(at.s, form.keys), :]
    new_TE = _dot(weights_TS.astype(v_SE.dtype), v_SE, (1, 0))
    return higher_T, sum_T, mixed_TE * shrink_T[:, None] + new_TE

  start = (
    jnp.full((form.queries,), -jnp.inf, jnp.float32),
    jnp.zeros((form.queries,), jnp.float32),
    jnp.zeros((form.queries, E), jnp.float32),
  )
  tiles = k_ref.shape[1] // form.keys
  maximum_T, sum_T, mixed_TE = jax.lax.fori_loop(0, tiles, body, start)
  mixed_ref[...] = (mixed_TE / sum_T[:, None]).astype(mixed_ref.dtype)
  maximum_ref[...] = maximum_T
  sum_ref[...] = sum_T


def _by_score(form, refs, rows, v_SE, at: Tile) -> tuple[Array, Array]:
  """Gradient by the scores of a tile, and the weights that were mixed."""
  q_ref, k_ref, w_ref, mask_ref, key_ref, rate_ref = refs
  cotangent_TE, maximum_T, sum_T, delta_T = rows
  scores_TS, seen_TS = _scores(form, q_ref, k_ref, w_ref, mask_ref, at)
  weights_TS = jnp.exp(scores_TS - maximum_T[:, None]) / sum_T[:, None]
  by_weight_TS = _dot(cotangent_TE, v_SE, (1, 1))
  by_weight_TS = _dropped(form, by_weight_TS, key_ref, rate_ref, at)
  by_score_TS = weights_TS * (by_weight_TS - delta_T[:, None])
  mixed_TS = _dropped(form, weights_TS, key_ref, rate_ref, at)
  return jnp.where(seen_TS, by_score_TS, 0.0), mixed_TS


def _row_added(sum_KX: Array, n: Any, row_X: Array) -> Array:
  """row_X added to row n, without writing to memory."""
  is_n = jax.lax.broadcasted_iota(jnp.int32, sum_KX.shape, 0) == n
  return sum_KX + jnp.where(is_n, row_X[None, :], 0.0)


def _query_kernel(
  form, q_ref, k_ref, v_ref, w_ref, mask_ref, key_ref, rate_ref,
  cotangent_ref, maximum_ref, sum_ref, delta_ref, by_q_ref,
):  # fmt: skip
  b, h, tile_t = (pl.program_id(axis) for axis in range(3))
  t = tile_t * form.queries
  refs = q_ref, k_ref, w_ref, mask_ref, key_ref, rate_ref
  rows = cotangent_ref[...], maximum_ref[...], sum_ref[...], delta_ref[...]

  def body(tile, sum_KT):
    at = Tile(0, tile * form.keys, t, tile * form.keys, b, h)
    v_SE = v_ref[pl.ds(at.s, form.keys), :]
    by_score_TS, _ = _by_score(form, refs, rows, v_SE, at)

    def add(n, sum_KT):
      hidden_TS = _hidden(form, q_ref, k_ref, at, n)
      slope_TS = w_ref[n].astype(jnp.float32) * (1 - hidden_TS * hidden_TS)
      return _row_added(sum_KT, n, jnp.sum(by_score_TS * slope_TS, 1))

    return jax.lax.fori_loop(0, q_ref.shape[0], add, sum_KT)

  zeros_KT = jnp.zeros((q_ref.shape[0], form.queries), jnp.float32)
  tiles = k_ref.shape[1] // form.keys
  found_KT = jax.lax.fori_loop(0, tiles, body, zeros_KT)
  by_q_ref[...] = found_KT.astype(by_q_ref.dtype)


def _key_kernel(
  form, q_ref, k_ref, v_ref, w_ref, mask_ref, key_ref, rate_ref,
  cotangent_ref, maximum_ref, sum_ref, delta_ref, by_k_ref, by_v_ref, by_w_ref,
):  # fmt: skip
  b, h, tile_s = (pl.program_id(axis) for axis in range(3))
  s = tile_s * form.keys
  refs = q_ref, k_ref, w_ref, mask_ref, key_ref, rate_ref
  v_SE = v_ref[...]
  K, f32 = q_ref.shape[0], jnp.float32

  def body(tile, sums):
    by_k_KS, by_v_SE, by_w_K1 = sums
    at = Tile(tile * form.queries, 0, tile * form.queries, s, b, h)
    queries = pl.ds(at.t, form.queries)
    cotangent_TE = cotangent_ref[queries, :]
    rows = (
      cotangent_TE,
      *(ref[queries] for ref in (maximum_ref, sum_ref, delta_ref)),
    )
    by_score_TS, mixed_TS = _by_score(form, refs, rows, v_SE, at)
    mixed_TS = mixed_TS.astype(cotangent_TE.dtype)
    by_v_SE += _dot(mixed_TS, cotangent_TE, (0, 0))

    def add(n, sums):
      by_k_KS, by_w_K1 = sums
      hidden_TS = _hidden(form, q_ref, k_ref, at, n)
      slope_TS = w_ref[n].astype(f32) * (1 - hidden_TS * hidden_TS)
      by_k_KS = _row_added(by_k_KS, n, jnp.sum(by_score_TS * slope_TS, 0))
      by_w = jnp.sum(by_score_TS * hidden_TS).reshape(1)
      return by_k_KS, _row_added(by_w_K1, n, by_w)

    by_k_KS, by_w_K1 = jax.lax.fori_loop(0, K, add, (by_k_KS, by_w_K1))
    return by_k_KS, by_v_SE, by_w_K1

  start = (
    jnp.zeros((K, form.keys), f32),
    jnp.zeros(v_SE.shape, f32),
    jnp.zeros((K, 1), f32),
  )
  tiles = q_ref.shape[1] // form.queries
  by_k_KS, by_v_SE, by_w_K1 = jax.lax.fori_loop(0, tiles, body, start)
  by_k_ref[...] = by_k_KS.astype(by_k_ref.dtype)
  by_v_ref[...] = by_v_SE.astype(by_v_ref.dtype)
  by_w_ref[...] = by_w_K1[:, 0]
