"""Attention in blocks is attention: values, gradients, dropout, memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.nn import attention, blockwise, randomness
from transformer_jax.nn.attention import SCORES, Drop, How, parameter_shape
from transformer_jax.nn.score_memory import held_by

# B, T, S, H, K, E; lengths that no block divides, and decoding one token.
LONG, ONE = (2, 13, 11, 3, 4, 6), (2, 1, 9, 2, 4, 4)
BLOCKS = (4, 5)


def arrays(score, shape, dtype=jnp.float32):
  """(q, k, v, w, scale, bias), and the cotangent of the result."""
  B, T, S, H, K, E = shape
  own = SCORES[score]
  shape_w = parameter_shape(own, heads=H, d_k=K) if own.parameter else ()
  shapes = [(B, T, H, K), (B, S, H, K), (B, S, H, E)]
  shapes += [shape_w, (H,), (H, T + S - 1), (B, T, H, E)]
  key = randomness.seed_key(7)
  drawn: list[Any] = [
    randomness.normal(randomness.at(key, n), one).astype(dtype)
    for n, one in enumerate(shapes)
  ]
  # Scores of a few, so that float32 leaves six digits after the softmax.
  drawn[3] = drawn[3] * dtype(0.3) if shape_w else None
  drawn[5] = drawn[5].astype(jnp.float32)
  return tuple(drawn[:-1]), drawn[-1]


def masked(shape, kind):
  B, T, S = shape[:3]
  draw = np.random.default_rng(5)
  mask_BTS = {
    'each': draw.random((B, T, S)) < 0.5,
    'padding': np.arange(S)[None, None] < np.array([S, S - 5])[:, None, None],
    'shared': draw.random((1, T, S)) < 0.7,
    'all': np.ones((1, 1, 1), bool),
  }[kind]
  if kind == 'each':
    mask_BTS[1, -1] = False  # a row that may see nothing
  return jnp.asarray(mask_BTS)


def value_and_gradients(
  attend, score, inputs, cotangent, mask_BTS, drop, sees=None
):
  """The result, and the gradient by every array of the inputs."""

  def attended(inputs):
    q, k, v, w, scale, bias = inputs
    how = How(scale, SCORES[score].scores, w, bias, drop, sees)
    return attend(q, k, v, mask_BTS, how)

  def both(inputs):
    mixed, back = jax.vjp(attended, inputs)
    return mixed, back(cotangent.astype(mixed.dtype))[0]

  return jax.jit(both)(inputs)


IN_BLOCKS = functools.partial(blockwise.attention, blocks=BLOCKS)


CASES = [(LONG, 'each', 0.3), (LONG, 'padding', None), (ONE, 'shared', 0.0)]
QUICK = {('additive', 'padding'), ('dot', 'shared')}


@pytest.mark.parametrize(
  ('score', 'shape', 'mask', 'rate'),
  [
    pytest.param(score, *case, marks=() if quick else pytest.mark.slow)
    for case in CASES
    for score in SCORES
    for quick in [case[1] == 'each' or (score, case[1]) in QUICK]
  ],
)
def test_values_and_gradients_are_the_formulas(score, shape, mask, rate):
  inputs, cotangent = arrays(score, shape)
  drop = None if rate is None else Drop(randomness.seed_key(3), rate)
  if mask == 'padding':
    inputs = (*inputs[:4], jnp.float32(0.4), None)
  sees = attention.not_later if mask == 'each' else None
  given = score, inputs, cotangent, masked(shape, mask), drop, sees
  wanted = value_and_gradients(attention.attention, *given)
  found = value_and_gradients(IN_BLOCKS, *given)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found,
    wanted,
  )


def unit_query_scores(q_BTHK, k_BSHK, w=None, *, scale):
  """A score from outside, without a gradient at a query of zeros."""
  length_BTH = jnp.linalg.norm(q_BTHK, axis=-1, keepdims=True)
  return attention.dot_scores(q_BTHK / length_BTH, k_BSHK, w, scale=scale)


def test_rows_that_fill_a_tile_are_such_as_a_score_is_made_for(monkeypatch):
  shape = 2, 5, 5, 2, 4, 3
  monkeypatch.setitem(SCORES, 'unit', attention.Score(unit_query_scores))
  inputs, cotangent = arrays('unit', shape)
  given = 'unit', inputs, cotangent, masked(shape, 'all'), None
  attend = functools.partial(blockwise.attention, blocks=(3, 3))
  wanted = value_and_gradients(attention.attention, *given)
  found = value_and_gradients(attend, *given)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found,
    wanted,
  )


def test_a_row_that_may_see_nothing_has_even_weights():
  (q, k, v, *_), _ = arrays('dot', LONG)
  mask_BTS = jnp.zeros((1, 1, 1), bool)
  attend = jax.jit(functools.partial(IN_BLOCKS, how=How(1.0)))
  found = attend(q, k, v, mask_BTS)
  mean = jnp.broadcast_to(jnp.mean(v, axis=1, keepdims=True), found.shape)
  np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


def test_the_same_weights_are_dropped_whatever_the_blocks():
  """Even weights over values that name their key: the result is the bits."""
  B, T, S, H = 2, 6, 8, 2
  q, k = jnp.zeros((B, T, H, 1)), jnp.zeros((B, S, H, 1))
  v = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, H, S))
  see_all = jnp.ones((1, 1, S), bool)
  key = randomness.seed_key(1)

  def kept(attend):
    attend = functools.partial(attend, how=How(1.0, drop=Drop(key, 0.5)))
    mixed = jax.jit(attend)(q, k, v, see_all)
    return np.asarray(mixed > 0).transpose(0, 2, 1, 3)

  bits = randomness.coordinate_bits(key, *randomness.grid((B, H, T, S)))
  wanted = np.asarray(bits) >= 1 << 31
  assert 0.3 < wanted.mean() < 0.7
  for blocks in [(6, 8), (4, 5), (1, 1), (3, 8)]:
    attend = functools.partial(blockwise.attention, blocks=blocks)
    np.testing.assert_array_equal(kept(attend), wanted)
  np.testing.assert_array_equal(kept(attention.attention), wanted)


def test_shards_of_the_keys_make_the_whole():
  """What attention over a sequence spread over devices does, in a loop."""
  (q, k, v, w, scale, _), cotangent = arrays('additive', LONG)
  mask_BTS = masked(LONG, 'each')
  drop = Drop(randomness.seed_key(3), 0.3)
  inputs = blockwise.Inputs(q, k, v, w, scale, None)
  wanted = value_and_gradients(
    attention.attention,
    'additive',
    (q, k, v, w, scale, None),
    cotangent,
    mask_BTS,
    drop,
  )

  def shard(at, end):
    own = inputs._replace(k_BSHK=k[:, at:end], v_BSHE=v[:, at:end])
    origin = blockwise.Origin(s=at)
    given = blockwise.Given(mask_BTS[:, :, at:end], drop, origin)
    scores = SCORES['additive'].scores
    return blockwise.form_of(own, scores, blocks=(4, 3)), own, given

  shards = [shard(0, 4), shard(4, 11)]
  found = functools.reduce(
    blockwise.merge,
    [jax.jit(blockwise.read, static_argnums=0)(*s) for s in shards],
  )
  mixed = blockwise.finish(found, v.dtype)
  np.testing.assert_allclose(mixed, wanted[0], rtol=1e-5, atol=1e-5)
  parts = [
    jax.jit(blockwise.gradients, static_argnums=0)(
      *s, found[:2], mixed, cotangent
    )
    for s in shards
  ]
  whole = blockwise.Inputs(
    parts[0].q_BTHK + parts[1].q_BTHK,
    jnp.concatenate([p.k_BSHK for p in parts], axis=1),
    jnp.concatenate([p.v_BSHE for p in parts], axis=1),
    parts[0].w + parts[1].w,
    parts[0].scale + parts[1].scale,
    None,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    tuple(whole),
    wanted[1],
  )


def test_bfloat16_stays_so_and_is_near():
  inputs, cotangent = arrays('dot', LONG, jnp.bfloat16)
  mask_BTS = masked(LONG, 'each')
  with jax.numpy_dtype_promotion('strict'):
    found = value_and_gradients(
      IN_BLOCKS, 'dot', inputs, cotangent, mask_BTS, None
    )
  exact = tuple(None if x is None else x.astype(jnp.float32) for x in inputs)
  wanted = value_and_gradients(
    attention.attention, 'dot', exact, cotangent, mask_BTS, None
  )
  assert found[0].dtype == jnp.bfloat16
  assert [x.dtype for x in found[1] if x is not None] == [
    x.dtype for x in inputs if x is not None
  ]
  np.testing.assert_allclose(
    found[0].astype(jnp.float32), wanted[0], rtol=0.05, atol=0.05
  )


def temporaries(attend, score, length):
  """Bytes that a step of two layers needs beside arguments and results."""
  H, K = 2, 8
  shape = jax.ShapeDtypeStruct((1, length, H, K), jnp.float32)
  w = jax.ShapeDtypeStruct((H, K), jnp.float32)
  bias = jax.ShapeDtypeStruct((H, 2 * length - 1), jnp.float32)
  mask_BTS = jnp.ones((1, 1, length), bool)

  def loss(q, k, v, w, bias):
    w = w if score == 'additive' else None
    how = How(1.0, SCORES[score].scores, w, bias, sees=attention.not_later)

    def layer(q, number):
      return attend(q, k, v * number, mask_BTS, how), None

    mixed, _ = jax.lax.scan(layer, q, jnp.arange(2.0))
    return jnp.sum(jnp.square(mixed))

  step = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4)))
  program = step.lower(shape, shape, shape, w, bias).compile()
  found: Any = program.memory_analysis()
  return found.temp_size_in_bytes


@pytest.mark.parametrize('score', ['dot', 'additive'])
def test_memory_grows_with_the_length_not_with_its_square(score):
  short, long = (
    temporaries(blockwise.attention, score, n) for n in (1024, 4096)
  )
  assert long < 4.2 * short
  # One array of naive scores alone, and for additive K times that.
  assert long < 4096**2 * 2 * 4 / 4


def by_queries(scores):
  """The same score, of one query after the other."""

  def looped(q_BTHK, k_BSHK, w, *, scale):
    return jnp.moveaxis(
      jax.lax.map(
        lambda q_BHK: scores(q_BHK[:, None], k_BSHK, w, scale=scale)[:, :, 0],
        jnp.moveaxis(q_BTHK, 1, 0),
      ),
      0,
      2,
    )

  return looped


@pytest.mark.parametrize('within', [lambda f: f, jax.jit, by_queries])
def test_what_a_score_holds_is_read_from_its_program(within):
  for score, held in [('dot', 1), ('additive', 4), ('general', 1)]:
    (q, k, _, w, scale, _), _ = arrays(score, LONG)
    how = How(scale, within(SCORES[score].scores), w)
    assert held_by(how, q, k) == held
