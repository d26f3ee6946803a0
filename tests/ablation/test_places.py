"""What can be read from token and position after they are joined."""

import dataclasses

import numpy as np

from tests.ablation.test_probes import V, run
from transformer_jax.ablation import places
from transformer_jax.data.cache import Batch
from transformer_jax.nn.positions import sinusoid_TD


def random_batch():
  draw = np.random.default_rng(0)
  source_BS, target_BT = draw.integers(4, V, (2, 150, 7), dtype=np.int32)
  source_BS[::3, 4:] = 0  # Of every third the second half is padding.
  return Batch(source_BS, target_BT)


def test_a_wide_sum_keeps_both_and_no_position_keeps_one():
  batch = random_batch()
  config, model, params = run()
  both = places.decodability(model, params, batch)
  none = places.decodability(
    model.clone(config=dataclasses.replace(config.model, position='none')),
    params,
    batch,
  )
  for side in ('encoder', 'decoder'):
    # 8 tokens and 7 places in 16 numbers: there is room for both.
    assert both[side].token > 0.95 and both[side].position > 0.95
    assert both[side].token_chance < 0.35 and both[side].position_chance < 0.3
    assert none[side].token > 0.95
  assert none['encoder'].position < none['encoder'].position_chance + 0.1


def test_labels_apart_from_the_features_are_not_found():
  draw = np.random.default_rng(0)
  x_MD = draw.normal(size=(2000, 8))
  assert places.linear_accuracy(x_MD, draw.integers(4, size=2000)) < 0.35
  assert places.linear_accuracy(x_MD, x_MD[:, 0] > 0) > 0.9


def test_near_places_have_near_sinusoids():
  found = places.nearest(sinusoid_TD(40, 16))
  assert found.neighbours == 1.0
  assert np.all(found.cosine_T > 0.9)
  shuffled = np.random.default_rng(0).permutation(40)
  assert places.nearest(sinusoid_TD(40, 16)[shuffled]).neighbours < 0.3
