"""Choices that are the same mathematics give the same numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.choices import BATCH, V, base
from tests.generator import as_users_compile, passes_as_users_compile
from transformer_jax.config import ModelConfig
from transformer_jax.fields import override
from transformer_jax.nn import attention, layers, positions, randomness
from transformer_jax.nn.attention import How
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training.state import (
  initial_state,
  numbers,
  program,
  train_step,
)

QUERIES = [
  ('encoder', 'self_attention'),
  ('decoder', 'self_attention'),
  ('decoder', 'cross_attention'),
]


def after(steps, **model):
  """Parameters after that many steps at d_k = 64, with dropout and clipping."""
  fields = {f'model.{name}': value for name, value in model.items()}
  fields |= {
    'model.heads': 1,
    'model.d_k': 64,
    'optim.clip_norm': 0.5,
    'optim.schedule': 'constant',
    'optim.learning_rate': 0.01,
    # Large enough to matter, so that a wrong one would show.
    'optim.epsilon': 1e-3,
  }
  config = override(base(), fields)
  net = Transformer(config.model, V, V)
  step = jax.jit(train_step(config, net), donate_argnums=0)
  key = randomness.seed_key(0)
  state = jax.jit(initial_state(config, net))(key)
  for _ in range(steps):
    state, _ = step(state, BATCH, key, numbers(config))
  return jax.device_get(state.params)


def unfolded(params, factor):
  """`params` with the query's weights times `factor`."""
  params = jax.tree.map(np.copy, params)
  for stack, part in QUERIES:
    params[stack]['layers'][part]['w_q_DHK'] *= factor
  return params


def farthest(tree, other):
  pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
  return max(np.max(np.abs(a - b)) for a, b in pairs)


@pytest.mark.slow
def test_bits_as_users_compile():
  passes_as_users_compile(
    __file__, 'test_a_scale_folded_into_weights_rate_and_epsilon_is_the_scale'
  )


@as_users_compile
def test_a_scale_folded_into_weights_rate_and_epsilon_is_the_scale():
  """200 steps at d_k = 64, where 1/sqrt(d_k) = 1/8 rounds nothing."""
  scaled = after(200, scale='rsqrt_d_k')
  folded = unfolded(after(200, scale='folded_init_rate'), 8.0)
  assert farthest(scaled, folded) == 0.0
  start = after(0, scale='rsqrt_d_k')
  assert farthest(start, scaled) > 0.1
  # Folded into the initial values alone it starts the same and trains apart.
  only_start = unfolded(after(0, scale='folded_init'), 8.0)
  assert farthest(start, only_start) == 0.0
  apart = unfolded(after(200, scale='folded_init'), 8.0)
  assert farthest(scaled, apart) > 0.1


@pytest.mark.slow
def test_a_scale_folded_into_the_rate_alone_slows_the_query_alone():
  start = after(0, scale='none')
  assert farthest(start, after(0, scale='folded_rate')) == 0.0
  free, slow = after(1, scale='none'), after(1, scale='folded_rate')
  for stack, part in QUERIES:
    before, fast, slowed = (
      params[stack]['layers'][part]['w_q_DHK'] for params in (start, free, slow)
    )
    moved = np.max(np.abs(slowed - before))
    # An eighth, and less where epsilon counts.
    assert 0 < moved <= 1.01 * np.max(np.abs(fast - before)) / 8
  # All others move as they do without, but for the norm that is clipped.
  for stack, part in QUERIES:
    before, fast, slowed = (
      params[stack]['layers'][part]['w_k_DHK'] for params in (start, free, slow)
    )
    moved = np.max(np.abs(fast - before))
    assert np.max(np.abs(slowed - fast)) < 0.05 * moved


def test_scaled_and_unscaled_are_one_program():
  configs = [
    override(base(), values)
    for values in (
      {},
      {'model.scale': 'none'},
      {'model.scale_cross': 'inverse_d_k'},
      {'optim.learning_rate': 0.1, 'optim.warmup_steps': 3},
      {'optim.label_smoothing': 0.0, 'model.dropout': 0.3, 'train.seed': 4},
    )
  ]
  assert len({program(config) for config in configs}) == 1
  shared = program(configs[0])
  net = Transformer(shared.model, V, V)
  step: Any = jax.jit(train_step(shared, net))
  key = randomness.seed_key(0)
  start = jax.jit(initial_state(configs[0], net))(key)
  losses = [
    float(step(start, BATCH, key, numbers(config))[1].losses.smoothed)
    for config in configs[:3]
  ]
  assert len(set(losses)) == 3
  assert step._cache_size() == 1
  # What is more than a number is another program.
  for values in (
    {'model.scale': 'learned'},
    {'model.scale_cross': 'folded_init_rate'},
    {'model.dropout': 0.0},
    {'model.score': 'cosine'},
  ):
    assert program(override(base(), values)) != shared


def test_the_shared_program_computes_what_the_own_one_does():
  config = override(base(), {'model.scale_decoder_self': 'none'})
  key = randomness.seed_key(0)
  found = []
  for compiled in (config, program(config)):
    net = Transformer(compiled.model, V, V)
    start = jax.jit(initial_state(config, net))(key)
    step = jax.jit(train_step(compiled, net))
    found.append(step(start, BATCH, key, numbers(config))[0].params)
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_array_equal(a, b)


def normal(seed, *shape):
  return randomness.normal(randomness.seed_key(seed), shape)


def test_rotary_scores_depend_on_distance_only():
  length, d_k = 40, 8
  q_K, k_K = normal(0, d_k), normal(1, d_k)
  angles = positions.rotary(length, d_k)
  q_BTHK, k_BTHK = (
    positions.turn(jnp.tile(x_K[None, None, None], (1, length, 1, 1)), angles)
    for x_K in (q_K, k_K)
  )
  scores_TS = attention.dot_scores(q_BTHK, k_BTHK, scale=1.0)[0, 0]
  for distance in (-7, 0, 3):
    diagonal = np.diagonal(scores_TS, distance)
    np.testing.assert_allclose(diagonal, diagonal[0], atol=2e-5)
  assert abs(scores_TS[0, 0] - scores_TS[0, 5]) > 1e-2
  # Turning keeps lengths; position 0 is not turned.
  np.testing.assert_allclose(
    jnp.linalg.norm(q_BTHK, axis=-1), np.linalg.norm(q_K), rtol=1e-5
  )
  np.testing.assert_array_equal(q_BTHK[0, 0, 0], q_K)


@pytest.mark.parametrize('both_ways', [True, False])
def test_relative_bias_shifts_with_positions(both_ways):
  w_UH = normal(0, positions.BUCKETS, 3)
  whole_HA = positions.relative_bias_HA(w_UH, 0, 300, 300, both_ways=both_ways)
  whole_HTS = attention.spread_HTS(whole_HA, 300)
  np.testing.assert_array_equal(whole_HTS[:, 1:, 1:], whole_HTS[:, :-1, :-1])
  # One row, as decoding asks for it.
  row_HA = positions.relative_bias_HA(w_UH, 7, 1, 300, both_ways=both_ways)
  row_HTS = attention.spread_HTS(row_HA, 1)
  np.testing.assert_array_equal(row_HTS[:, 0], whole_HTS[:, 7])
  past_H, future_H = whole_HTS[:, 9, 7], whole_HTS[:, 7, 9]
  assert not np.any(past_H == future_H)
  # Far is far, however far; the decoder has no bucket for the future.
  np.testing.assert_array_equal(whole_HTS[:, 299, 0], whole_HTS[:, 299, 100])
  same = np.array_equal(whole_HTS[:, 7, 9], whole_HTS[:, 7, 7])
  assert same == (not both_ways)


def test_heads_are_single_heads_summed_through_blocks_of_the_output():
  config = ModelConfig(d_model=12, heads=3, d_k=4, d_v=5)
  x_BTD, y_BSD = normal(0, 2, 5, 12), normal(1, 2, 7, 12)
  see_BTS = jnp.ones((1, 1, 7), bool)
  context = layers.LayerContext(layers.site_scales(config), see_BTS[0])

  def attend(config, params):
    own = layers.MultiHeadAttention(
      config, 'cross', attention.attention, parent=None
    ).bind({'params': params})
    return own.attend(x_BTD, own.keys_values(y_BSD), see_BTS, context, None)

  params = {
    'w_q_DHK': normal(2, 12, 3, 4),
    'w_k_DHK': normal(3, 12, 3, 4),
    'w_v_DHE': normal(4, 12, 3, 5),
    'w_o_HED': normal(5, 3, 5, 12),
  }
  one = dataclasses.replace(config, heads=1)
  total = sum(
    attend(
      one,
      {
        name: jnp.take(
          w, jnp.array([h]), axis=name.rpartition('_')[2].index('H')
        )
        for name, w in params.items()
      },
    )
    for h in range(3)
  )
  np.testing.assert_allclose(attend(config, params), total, atol=1e-5)


def test_feed_forward_does_not_see_where_a_position_stands():
  config = ModelConfig(d_model=6, d_ff=10)
  x_BTD = normal(0, 2, 5, 6)
  feed = layers.FeedForward(config, parent=None)
  params = {
    'w_1_DF': normal(1, 6, 10),
    'b_1_F': normal(2, 10),
    'w_2_FD': normal(3, 10, 6),
    'b_2_D': normal(4, 6),
  }
  own = feed.bind({'params': params})
  order = np.array([3, 1, 4, 0, 2])
  straight = own(x_BTD, None)[:, order]
  np.testing.assert_allclose(own(x_BTD[:, order], None), straight, atol=1e-5)


def test_as_the_scale_grows_attention_becomes_a_dictionary():
  k_BSHK = jnp.eye(4).reshape(1, 4, 1, 4)
  v_BSHE = normal(0, 1, 4, 1, 3)
  near_BTHK = k_BSHK[:, ::-1] + 0.2 * normal(1, 1, 4, 1, 4)
  see_BTS = jnp.ones((1, 1, 4), bool)
  distances = [
    farthest(
      attention.attention(near_BTHK, k_BSHK, v_BSHE, see_BTS, How(scale)),
      v_BSHE[:, ::-1],
    )
    for scale in (1.0, 10.0, 100.0)
  ]
  assert distances[0] > distances[1] > distances[2]
  assert distances[2] < 1e-3
