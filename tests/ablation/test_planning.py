"""Power, planned looks, groups within an arm, single published runs."""

import numpy as np
import pytest
from scipy import integrate, stats

from transformer_jax.ablation import bimodality, power, published, sequential


def test_power_by_integration():
  # P(T > c) = E over the chi of P(Z + shift > c chi / sqrt(v)).
  seeds, effect = 6, 0.9
  critical = stats.t.ppf(0.975, 5)

  def both_tails(x):
    edge = critical * x / np.sqrt(5)
    shift = effect * np.sqrt(seeds)
    return stats.chi.pdf(x, 5) * (
      stats.norm.sf(edge - shift) + stats.norm.cdf(-edge - shift)
    )

  expected = integrate.quad(both_tails, 0, 20)[0]
  ours = power.difference_power(-1.8, spread=2.0, seeds=seeds)
  assert ours == pytest.approx(expected, abs=1e-6)


def test_power_without_a_difference_is_alpha():
  ours = power.difference_power(0.0, spread=1.0, seeds=5, alpha=0.02)
  assert ours == pytest.approx(0.02)


def test_minimum_detectable_is_found_with_its_power():
  for seeds in (3, 5, 20):
    smallest = power.minimum_detectable(spread=0.3, seeds=seeds, alpha=0.0125)
    found = power.difference_power(
      smallest, spread=0.3, seeds=seeds, alpha=0.0125
    )
    assert found == pytest.approx(0.8, abs=1e-6)


def test_seeds_needed_are_the_fewest():
  # Textbook: d_z = 0.5 needs 34 pairs.
  assert power.seeds_for_difference(0.5, spread=1.0) == 34
  assert power.difference_power(0.5, spread=1.0, seeds=33) < 0.8
  assert power.seeds_for_difference(100.0, spread=1.0) == 3
  assert power.seeds_for_difference(1e-4, spread=1.0) is None
  assert power.seeds_for_difference(0.0, spread=1.0) is None


def test_seeds_for_a_margin_decide_either_way():
  seeds = power.seeds_for_margin(0.5, spread=1.0)
  assert seeds is not None
  for one in (seeds - 1, seeds):
    both = min(
      power.difference_power(0.5, spread=1.0, seeds=one),
      power.equivalence_power(0.5, spread=1.0, seeds=one),
    )
    assert (both >= 0.8) == (one == seeds)


@pytest.mark.parametrize('spread', [0.0, -1.0, np.nan])
def test_power_needs_a_spread(spread):
  with pytest.raises(ValueError, match='positive standard deviation'):
    power.minimum_detectable(spread=spread, seeds=5)


def test_upper_spread_of_a_pilot():
  expected = np.sqrt(4 / stats.chi2.ppf(0.2, 4))
  assert power.upper_spread(2.0, seeds=5) == pytest.approx(2 * expected)
  with pytest.raises(ValueError, match='two or more'):
    power.upper_spread(1.0, seeds=1)


def test_effect_size_by_hand():
  # 0 1 2 3 4: mean 2, s sqrt(2.5); with v = 4
  # J = Gamma(2) / (sqrt(2) Gamma(3/2)) = sqrt(8 / pi) / 2 = sqrt(2 / pi).
  ours = power.effect_size(np.arange(5.0))
  assert ours == pytest.approx(np.sqrt(2 / np.pi) * 2 / np.sqrt(2.5))
  assert np.isnan(power.effect_size(np.ones(5)))
  assert np.isnan(power.effect_size(np.ones(2)))


def test_rank_effect_size_leaves_zeros_out():
  assert power.rank_effect_size(np.array([0.0, 1.0, 2.0])) == 1.0
  assert np.isnan(power.rank_effect_size(np.zeros(3)))


def test_levels_are_the_published_ones():
  # Two and five equal looks, O'Brien-Fleming-type spending, two-sided .05.
  z = [stats.norm.isf(level / 2) for level in sequential.nominal_levels((1, 2))]
  assert z == pytest.approx([2.963, 1.969], abs=6e-4)
  levels = sequential.nominal_levels((2, 4, 6, 8, 10))
  z = [stats.norm.isf(level / 2) for level in levels]
  assert z == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=6e-4)


def test_one_look_spends_everything():
  assert sequential.nominal_levels((10,)) == pytest.approx((0.05,))
  assert sequential.level_at(10, (10,), alpha=0.01) == pytest.approx(0.01)


def test_looks_that_were_not_declared_are_refused():
  assert sequential.level_at(10, (5, 10)) == pytest.approx(0.049, abs=1e-4)
  with pytest.raises(ValueError, match='7 seeds: not a planned look'):
    sequential.level_at(7, (5, 10))
  for looks in ((), (5, 5), (10, 5), (0, 5)):
    with pytest.raises(ValueError, match='numbers of seeds that rise'):
      sequential.check_looks(looks)


def test_gap_ratio_by_hand():
  # Splits of 0 1 2 10 12: after the second 1 / s, after the third 8 / s with
  # SS = 2 + 2 over 3.
  ours = bimodality.gap_ratio([10.0, 2.0, 0.0, 12.0, 1.0])
  assert ours == pytest.approx(8 / np.sqrt(4 / 3))
  assert bimodality.gap_ratio([1.0, 2.0, 9.0]) == 0.0


@pytest.mark.parametrize('seeds', [5, 8, 12, 20])
def test_groups_rarely_seen_in_normal_arms(seeds):
  draw = np.random.default_rng(100 + seeds)
  assert bimodality.is_bimodal(draw.normal(size=(5_000, seeds))).mean() <= 0.015
  heavy = draw.standard_t(3, (5_000, seeds))
  assert bimodality.is_bimodal(heavy).mean() <= 0.02


def test_groups_are_seen():
  draw = np.random.default_rng(1)
  for seeds, least in ((5, 0.25), (8, 0.8), (10, 0.92)):
    learns = draw.random((2_000, seeds)) < 0.5
    values = 10.0 * learns + draw.normal(size=learns.shape)
    assert bimodality.is_bimodal(values).mean() >= least


def test_ties_and_small_gaps_are_no_groups():
  assert not bimodality.is_bimodal(np.ones(8))
  counts = np.array([0.98, 0.98, 0.98, 0.99, 0.99, 0.99])
  assert bimodality.is_bimodal(counts)
  assert not bimodality.is_bimodal(counts, smallest_gap=0.02)
  # Shifting and scaling an arm changes nothing.
  arm = np.array([1.0, 1.1, 0.9, 5.0, 5.1, 0.95])
  ours = bimodality.gap_ratio(1e6 + 1e-2 * arm)
  assert ours == pytest.approx(bimodality.gap_ratio(arm), rel=1e-6)


def test_prediction_interval_covers_the_next_run():
  draw = np.random.default_rng(2)
  runs = draw.normal(size=(1_500, 6))
  inside = 0
  for *ours, following in runs:
    low, high = published.prediction_interval(ours)
    inside += low <= following <= high
  assert 0.93 <= inside / len(runs) <= 0.97


def test_a_table_is_read_simultaneously():
  one = published.prediction_interval([1.0, 2.0, 3.0], confidence=0.99)
  five = published.prediction_interval([1.0, 2.0, 3.0], rows=5)
  np.testing.assert_allclose(five, one)


def test_published_run_held_against_ours():
  runs = [25.6, 25.9, 25.7, 25.8]
  inside = published.hold_against(25.8, runs)
  assert inside.statement == 'like one of our runs'
  assert inside.low < 25.8 < inside.high
  assert published.hold_against(28.4, runs).statement == 'unlike our runs'
  with pytest.raises(ValueError, match='three or more'):
    published.hold_against(1.0, [1.0, 2.0])
