"""Steps to a threshold, failures, sentences of two checkpoints."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from transformer_jax.ablation import sentences, survival
from transformer_jax.ablation.survival import Crossing


def crossing(steps, reached):
  return Crossing(np.array(steps, float), np.array(reached, bool))


def test_first_crossing_of_each_way():
  steps = [100, 200, 300]
  falling = [[3.0, 1.0, 0.5], [2.0, 2.0, 2.0], [np.nan] * 3]
  ours = survival.first_crossing(steps, falling, threshold=1.0, better='lower')
  np.testing.assert_array_equal(ours.steps_R, [200, 300, 300])
  np.testing.assert_array_equal(ours.reached_R, [True, False, False])
  rising = [[0.2, 0.97, 0.99]]
  ours = survival.first_crossing(steps, rising, threshold=0.98, better='higher')
  np.testing.assert_array_equal(ours.steps_R, [300])


def test_log_rank_scores_by_hand():
  # Events at 1 (of 4 under way) and 3 (of 2); censored at 2 and 3.
  scores = survival.log_rank_scores(
    np.array([1.0, 2, 3, 3]), np.array([True, False, True, False])
  )
  np.testing.assert_allclose(scores, [3 / 4, -1 / 4, 1 / 4, -3 / 4])


def test_log_rank_statistic_and_permutation():
  variant = crossing([3, 5, 7, 9], [True, True, True, False])
  baseline = crossing([6, 8, 9, 9], [True, True, False, False])
  ours = survival.log_rank(variant, baseline)
  # Observed minus expected of the variant, event by event:
  # 3: 4 of 8, 5: 3 of 7, 6: 2 of 6, 7: 2 of 5, 8: 1 of 4.
  excess = 3 - (4 / 8 + 3 / 7 + 2 / 6 + 2 / 5 + 1 / 4)
  variance = 16 / 64 + 12 / 49 + 8 / 36 + 6 / 25 + 3 / 16
  assert ours.statistic == pytest.approx(excess / np.sqrt(variance))
  assert ours.statistic > 0  # the variant gets there sooner
  steps = np.concatenate([variant.steps_R, baseline.steps_R])
  reached = np.concatenate([variant.reached_R, baseline.reached_R])
  scores = survival.log_rank_scores(steps, reached)
  extreme = sum(
    abs(scores[list(chosen)].sum()) >= abs(excess) - 1e-9
    for chosen in combinations(range(8), 4)
  )
  assert ours.p_value == pytest.approx(extreme / 70)


def test_log_rank_agrees_with_the_normal_approximation_at_many_runs():
  draw = np.random.default_rng(0)
  arms = [
    crossing(np.minimum(steps, 15), steps < 15)
    for steps in (draw.exponential(10, 40), draw.exponential(18, 40))
  ]
  ours = survival.log_rank(*arms)
  approximate = 2 * stats.norm.sf(abs(ours.statistic))
  assert ours.p_value == pytest.approx(approximate, abs=0.01)


def test_nothing_reached_is_no_evidence():
  never = crossing([9, 9, 9], [False] * 3)
  assert survival.log_rank(never, never).p_value == 1.0


def test_mcnemar_by_hand():
  # 5 against 1: 2 (C(6, 0) + C(6, 1)) / 2^6.
  variant = [True] * 5 + [False] + [True] * 3
  baseline = [False] * 5 + [True] + [True] * 3
  ours = survival.failure_rates(variant, baseline)
  assert ours.p_value == pytest.approx(14 / 64)
  assert (ours.only_variant, ours.only_baseline) == (5, 1)
  assert ours.variant_rate == pytest.approx(8 / 9)
  assert survival.failure_rates([True], [True]).p_value == 1.0
  with pytest.raises(ValueError, match='same seeds'):
    survival.failure_rates([True], [True, False])


def _losses(draw, shift):
  tokens = draw.integers(5, 30, 200).astype(float)
  nats = tokens * (2 + 0.3 * draw.normal(size=200))
  first = np.column_stack([nats + shift * tokens, tokens])
  return first, np.column_stack([nats, tokens])


def test_checkpoints_differ_over_sentences():
  first, second = _losses(np.random.default_rng(4), 0.05)
  ours = sentences.checkpoint_difference(first, second, resamples=300)
  # A shift of every token is the same in every drawn corpus.
  assert ours[:3] == pytest.approx((0.05, 0.05, 0.05))
  assert ours.statement == 'differs for these two checkpoints'
  same = sentences.checkpoint_difference(second, second, resamples=300)
  assert same.statement == 'not told apart for these two checkpoints'


def test_checkpoint_interval_is_that_of_a_mean():
  draw = np.random.default_rng(6)
  d = draw.normal(0.1, 1.0, 400)
  ones = np.ones(400)
  ours = sentences.checkpoint_difference(
    np.column_stack([d, ones]), np.column_stack([0 * d, ones])
  )
  half = 1.96 * d.std() / 20
  assert ours.difference == pytest.approx(d.mean())
  assert ours.ci_low == pytest.approx(d.mean() - half, abs=0.1 * half)
  assert ours.ci_high == pytest.approx(d.mean() + half, abs=0.1 * half)


def test_few_or_unequal_sentences_are_refused():
  with pytest.raises(ValueError, match='19 sentences'):
    sentences.checkpoint_difference(np.ones((19, 2)), np.ones((19, 2)))
  with pytest.raises(ValueError, match='both'):
    sentences.checkpoint_difference(np.ones((30, 2)), np.ones((31, 2)))
