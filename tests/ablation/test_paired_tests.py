"""Paired tests and intervals: by hand, against scipy, by their definition."""

import numpy as np
import pytest
from scipy import stats

from transformer_jax.ablation import paired_tests

D5 = np.array([0.3, -0.1, 0.45, 0.2, 0.7])
D8 = np.array([0.31, -0.12, 0.45, 0.22, 0.73, -0.05, 0.11, 0.6])


def test_t_by_hand():
  # t = 2 sqrt(3) with 2 degrees of freedom: tail 1/2 - t / (2 sqrt(2 + t^2)).
  tail = 0.5 - 2 * np.sqrt(3) / (2 * np.sqrt(14))
  tails = paired_tests.t_tails([1.0, 2.0, 3.0])
  assert tails.greater == pytest.approx(tail)
  assert tails.less == pytest.approx(1 - tail)
  assert tails.two_sided == pytest.approx(2 * tail)


def test_t_is_scipys():
  a, b = D5 + 3.0, np.full(5, 3.0)
  expected = stats.ttest_rel(a, b)
  assert paired_tests.t_tails(D5).two_sided == pytest.approx(expected.pvalue)
  low, high = paired_tests.t_interval(D5, alpha=0.1)
  ours = expected.confidence_interval(0.9)
  assert (low, high) == pytest.approx((ours.low, ours.high))


@pytest.mark.parametrize('center', [0.0, 0.2])
def test_sign_flip_is_scipys(center):
  expected = stats.permutation_test(
    (D8 - center,),
    lambda x, axis: np.mean(x, axis=axis),
    permutation_type='samples',
    n_resamples=1_000,
    vectorized=True,
  )
  ours = paired_tests.flip_tails(D8, center=center).two_sided
  assert ours == pytest.approx(expected.pvalue)


def test_sign_flip_by_hand():
  # Of 8 patterns of +-1 +-2 +-3, a sum of 4 or more: +6, +4.
  tails = paired_tests.flip_tails([-1.0, 2.0, 3.0])
  assert (tails.greater, tails.less) == (2 / 8, 7 / 8)
  # Ties count: with two zeros the pattern and its copies are all as extreme.
  assert paired_tests.flip_tails([0.0, 0.0, 1.0]).greater == 4 / 8


def test_sign_flip_beyond_enumeration_is_corrected_and_fixed():
  d_R = np.random.default_rng(3).normal(0.9, 1.0, 20)
  ours = paired_tests.flip_tails(d_R).two_sided
  assert ours == paired_tests.flip_tails(d_R).two_sided
  assert ours == pytest.approx(paired_tests.t_tails(d_R).two_sided, abs=0.01)
  # Nothing drawn is as far as twenty equal signs; p is still not zero.
  assert paired_tests.flip_tails(np.full(20, 1.0)).two_sided == 2 / 10_000
  assert (
    paired_tests.mean_test_name(20) == 'sign-flip (Monte Carlo, 9999 draws)'
  )


def test_signed_rank_is_scipys():
  _, expected = stats.wilcoxon(D8, method='exact')
  assert paired_tests.rank_tails(D8).two_sided == pytest.approx(expected)


def test_signed_rank_with_ties_and_zeros_by_enumeration():
  d_R = np.array([0.0, 1.0, 1.0, -1.0, 2.0, 0.0])
  # Ranks of the four that are not zero: 2, 2, -2, 4; W = 8 of 10.
  flips = np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1)
  w = np.array([2, 2, 2, 4]) @ flips
  tails = paired_tests.rank_tails(d_R)
  assert tails.greater == pytest.approx(np.mean(w >= 8))
  assert tails.less == pytest.approx(np.mean(w <= 8))


@pytest.mark.parametrize('kind', ['t', 'flip', 'rank'])
def test_interval_is_the_inverse_of_the_test(kind):
  tails = getattr(paired_tests, f'{kind}_tails')
  low, high = getattr(paired_tests, f'{kind}_interval')(D8, alpha=0.05)
  for inside in (low + 1e-6, (low + high) / 2, high - 1e-6):
    assert tails(D8, center=inside).two_sided > 0.05
  for outside in (low - 1e-6, high + 1e-6):
    assert tails(D8, center=outside).two_sided <= 0.05


def test_sign_flip_interval_is_the_inverse_beyond_enumeration():
  d_R = np.random.default_rng(5).normal(0.3, 1.0, 18)
  low, high = map(float, paired_tests.flip_interval(d_R))
  assert paired_tests.flip_tails(d_R, center=low + 1e-6).two_sided > 0.05
  assert paired_tests.flip_tails(d_R, center=low - 1e-6).two_sided <= 0.05
  assert paired_tests.flip_tails(d_R, center=high + 1e-6).two_sided <= 0.05


def test_few_seeds_give_no_bound_to_ranks_and_signs():
  for interval in (paired_tests.flip_interval, paired_tests.rank_interval):
    assert interval(D5) == (-np.inf, np.inf)


def test_which_test_serves():
  assert paired_tests.mean_test_name(7) == 'paired t (assumes normality)'
  assert paired_tests.mean_test_name(8) == 'sign-flip (exact)'
  d_R = D8[:7]
  assert paired_tests.mean_tails(d_R) == paired_tests.t_tails(d_R)
  assert paired_tests.mean_tails(D8) == paired_tests.flip_tails(D8)
  assert paired_tests.mean_interval(D8) == paired_tests.flip_interval(D8)


def test_differences_without_spread_are_not_proof():
  # Exact match can be off by one example in all of 3 seeds, by chance.
  d_R = np.full(3, 1 / 128)
  assert paired_tests.t_tails(d_R).two_sided == 2 / 8
  assert paired_tests.t_interval(d_R) == (-np.inf, np.inf)
  assert paired_tests.t_tails(np.zeros(5)).two_sided == 1.0


def test_leading_axes_are_studies():
  d_XR = np.stack([D8, -D8, D8 - 0.3])
  for name in ('t', 'flip', 'rank'):
    tails = getattr(paired_tests, f'{name}_tails')
    interval = getattr(paired_tests, f'{name}_interval')
    many, limits = tails(d_XR), interval(d_XR)
    for x, d_R in enumerate(d_XR):
      alone, limit = tails(d_R), interval(d_R)
      np.testing.assert_allclose((many.greater[x], many.less[x]), alone)
      np.testing.assert_allclose((limits.low[x], limits.high[x]), limit)


def test_equivalence_is_two_one_sided_tests():
  error = stats.sem(D5)
  expected = max(
    stats.t.sf((D5.mean() + 0.9) / error, 4),
    stats.t.cdf((D5.mean() - 0.9) / error, 4),
  )
  assert paired_tests.equivalence_p(D5, margin=0.9) == pytest.approx(expected)


@pytest.mark.parametrize('margin', [0.0, -1.0, np.nan, np.inf])
def test_margin_is_declared_or_refused(margin):
  with pytest.raises(ValueError, match='positive number, declared'):
    paired_tests.equivalence_p(D5, margin=margin)


def test_holm_by_hand():
  # Sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .06.
  p_XK = [[0.03, 0.01, 0.04, 0.02], [0.5, 0.6, 0.7, 0.001]]
  expected = [[0.06, 0.04, 0.06, 0.06], [1.0, 1.0, 1.0, 0.004]]
  np.testing.assert_allclose(paired_tests.holm(p_XK), expected)
  np.testing.assert_allclose(paired_tests.holm([np.nan, 0.01]), [np.nan, 0.02])
  assert paired_tests.holm([]).shape == (0,)


def test_pairing_says_when_it_bought_nothing():
  draw = np.random.default_rng(0)
  data_R = draw.normal(size=10)
  together = paired_tests.pairing(
    data_R + 0.1 * draw.normal(size=10), data_R + 0.1 * draw.normal(size=10)
  )
  assert together.correlation > 0.95
  assert together.width_ratio < 0.5
  against = paired_tests.pairing(data_R, -data_R)
  assert against.width_ratio > 1
  assert against.statement == 'pairing bought nothing (correlation -1.00)'
  still = paired_tests.pairing(np.zeros(5), data_R[:5])
  assert still.statement == 'no correlation: an arm does not vary'


@pytest.mark.parametrize('bad', [[], [1.0, np.nan], [np.inf, 1.0]])
def test_bad_differences_are_refused(bad):
  with pytest.raises(ValueError):
    paired_tests.mean_tails(bad)


def test_better_is_lower_or_higher():
  assert (
    paired_tests.direction('lower'),
    paired_tests.direction('higher'),
  ) == (-1, 1)
  with pytest.raises(ValueError, match="'up': lower or higher"):
    paired_tests.direction('up')
