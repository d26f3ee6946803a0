"""Verdicts: every rule, on small studies made to meet it."""

import dataclasses
import json

import numpy as np
import pytest

from transformer_jax.ablation import paired_tests, stats
from transformer_jax.ablation.comparison import StepsPair
from transformer_jax.ablation.stats import Pair, conclude
from transformer_jax.ablation.survival import Crossing

FIELDS = (
  'variant',
  'baseline',
  'metric',
  'primary',
  'seeds',
  'diverged',
  'mean',
  'difference',
  'ci_low',
  'ci_high',
  'test',
  'p_value',
  'p_adjusted',
  'effect_size',
  'minimum_detectable',
  'margin',
  'verdict',
)
BASE = np.array([1.02, 1.13, 0.95, 1.21, 1.08])
NOISE = np.array([0.03, -0.02, 0.01, -0.04, 0.02])


def arms(variant_R, baseline_R, **changes) -> Pair:
  plain = Pair('v', 'b', 'loss', variant_R, baseline_R, better='lower')
  return dataclasses.replace(plain, **changes)


def pair(difference, **changes) -> Pair:
  """A variant that differs by this from a baseline of as many seeds."""
  difference = np.asarray(difference, float)
  base = np.resize(BASE, len(difference)) + 0.001 * np.arange(len(difference))
  return arms(base + difference, base, **changes)


def verdict(*pairs, **arguments) -> list[str]:
  return [f.comparison.verdict for f in conclude(pairs, **arguments)]


def row_of(pair, **arguments) -> stats.Comparison:
  return conclude([pair], **arguments)[0].comparison


def test_better_and_worse_follow_the_metric():
  assert verdict(pair(NOISE - 0.5)) == ['better']
  assert verdict(pair(NOISE + 0.5)) == ['worse']
  assert verdict(pair(NOISE + 0.5, better='higher')) == ['better']
  with pytest.raises(ValueError, match='lower or higher'):
    conclude([pair(NOISE, better='less')])


def test_the_row_is_the_contract_and_its_numbers():
  finding = conclude([pair(NOISE - 0.5, margin=0.1)])[0]
  row = stats.as_row(finding.comparison)
  assert tuple(row) == FIELDS
  low, high = paired_tests.t_interval(NOISE - 0.5)
  assert row['difference'] == pytest.approx(-0.5)
  assert row['ci_low'] == pytest.approx(float(low))
  assert row['ci_high'] == pytest.approx(float(high))
  assert row['test'] == 'paired t (assumes normality)'
  assert row['effect_size'] < -10
  assert (row['seeds'], row['diverged'], row['margin']) == (5, 0, 0.1)
  assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_none_below_three_seeds():
  for seeds in (1, 2):
    finding = conclude([pair(NOISE[:seeds] - 5.0)])[0]
    assert finding.comparison.verdict == 'no verdict'
  assert stats.as_row(row_of(pair([1.0])))['ci_low'] is None


def test_secondary_comparisons_get_an_interval_only():
  first, second = conclude(
    [
      pair(NOISE - 0.5),
      pair(NOISE - 0.5, primary=False),
    ]
  )
  assert first.comparison.verdict == 'better'
  assert second.comparison.verdict == 'no verdict'
  assert np.isnan(second.comparison.p_adjusted)
  assert second.comparison.ci_high < 0
  # It takes nothing from the primary one.
  assert first.comparison.p_adjusted == first.comparison.p_value


def test_holm_over_the_primary_comparisons_only():
  weak = NOISE * 4 - 0.16  # p about .04 alone
  assert verdict(pair(weak)) == ['better']
  assert verdict(pair(weak), pair(NOISE)) == ['not enough evidence'] * 2
  alone = verdict(pair(weak), pair(NOISE, primary=False))
  assert alone == ['better', 'no verdict']


def test_at_most_four_primary_comparisons():
  with pytest.raises(ValueError, match='5 primary comparisons'):
    conclude([pair(NOISE)] * 5)


def test_equivalent_needs_a_declared_margin():
  assert verdict(pair(NOISE)) == ['not enough evidence']
  assert verdict(pair(NOISE, margin=0.1)) == ['equivalent']
  assert verdict(pair(NOISE, margin=0.01)) == ['not enough evidence']


def test_real_and_inside_the_margin_is_equivalent_and_says_so():
  finding = conclude([pair(NOISE - 0.08, margin=0.2)])[0]
  assert finding.comparison.p_adjusted <= 0.05
  assert finding.comparison.verdict == 'equivalent'
  assert finding.notes[0] == 'a difference is detectable, and inside the margin'


def test_not_enough_says_how_many_seeds():
  finding = conclude([pair(NOISE * 4 - 0.08)])[0]
  assert finding.comparison.verdict == 'not enough evidence'
  assert finding.seeds_needed is not None
  assert finding.seeds_needed > 5
  needed = finding.seeds_needed
  assert finding.notes[0].startswith(f'about {needed} seeds would be enough')
  nothing = conclude([pair([0.1, -0.1, 0.1, -0.1])])[0]
  assert nothing.seeds_needed is None
  decided = conclude([pair(NOISE - 0.5)])[0]
  assert decided.seeds_needed is None


def test_smallest_detectable_grows_with_the_family():
  one = row_of(pair(NOISE))
  four = conclude([pair(NOISE)] * 4)[0].comparison
  assert one.minimum_detectable < four.minimum_detectable


def test_a_diverged_run_counts_as_declared_and_forces_ranks():
  diverged = [True] + [False] * 7
  whole = pair(np.linspace(0.2, 0.4, 8), margin=9.0)
  broken = np.where(diverged, np.nan, whole.variant_R)
  marked = dataclasses.replace(
    whole, variant_R=broken, variant_diverged_R=diverged
  )
  row = row_of(dataclasses.replace(marked, diverged_value=5.0))
  assert row.test == 'Wilcoxon signed-rank (exact), as runs diverged'
  # Eight differences of one sign; and no equivalence, whatever the margin.
  assert (row.p_value, row.verdict) == (2 / 256, 'worse')
  assert (row.diverged, row.effect_size) == (1, 1.0)
  assert row.mean == pytest.approx((5.0 + np.sum(broken[1:])) / 8)
  with pytest.raises(ValueError, match='say what they count as'):
    conclude([marked])


def test_a_diverged_baseline_forces_ranks_too():
  mark = np.arange(8) == 3
  row = row_of(pair(np.zeros(8), baseline_diverged_R=mark, diverged_value=5.0))
  assert row.test == 'Wilcoxon signed-rank (exact), as runs diverged'
  assert row.diverged == 0


def test_a_value_that_is_not_finite_is_named():
  with pytest.raises(ValueError, match='v against b on loss: a value'):
    conclude([pair([0.1, np.nan, 0.1])])


def test_an_arm_in_two_groups_gets_no_verdict_by_its_mean():
  # Half of the variant's seeds fail.
  d = np.array([3.0, 0.01, 3.02, -0.01, 3.01, 0.02, 2.98, -0.02])
  base = 0.1 + 0.01 * np.arange(8)
  row = row_of(arms(base + d, base, margin=2.0))
  assert row.test.endswith('as an arm falls into two groups')
  assert row.p_value == paired_tests.rank_tails(d).two_sided
  assert row.difference == paired_tests.rank_center(d)
  assert row.verdict == 'not enough evidence'
  assert np.isnan(row.minimum_detectable)


def test_few_ranked_seeds_say_when_they_can_decide():
  d = np.array([3.0, 3.01, 0.01, 0.02, 3.02])
  base = 0.1 + 0.01 * np.arange(5)
  finding = conclude([arms(base + d, base)])[0]
  assert finding.seeds_needed == 6  # 2 / 2^6 < .05 < 2 / 2^5
  assert finding.notes[0] == 'such runs can decide from 6 seeds on'


def test_identical_arms():
  row = row_of(pair(np.zeros(5), margin=0.1))
  assert (row.difference, row.p_value) == (0.0, 1.0)
  assert row.verdict == 'equivalent'
  assert row.test == 'sign-flip (exact)'


def test_a_look_uses_its_level():
  weak = pair(NOISE * 4 - 0.16)
  assert verdict(weak) == ['better']
  assert verdict(weak, alpha=0.003) == ['not enough evidence']
  wide = row_of(weak, alpha=0.003)
  assert wide.ci_high > row_of(weak).ci_high
  other = pair(NOISE, primary=False)
  late = conclude([weak, other], alpha=0.003)[1].comparison
  assert late.ci_high == row_of(other).ci_high


def test_steps_to_a_threshold_by_log_rank():
  soon = Crossing(np.array([100.0, 110, 120, 130, 140]), np.full(5, True))
  late = Crossing(np.array([300.0, 310, 400, 400, 400]), np.arange(5) < 2)
  steps = StepsPair('v', 'b', 'steps', soon, late)
  row = row_of(steps)
  assert row.test == 'log-rank (permutation of arms)'
  assert row.p_value == pytest.approx(2 / 252)
  assert (row.verdict, row.difference) == ('better', 120 - 362)
  assert verdict(StepsPair('b', 'v', 'steps', late, soon)) == ['worse']
  never = Crossing(np.full(5, 400.0), np.full(5, False))
  finding = conclude([StepsPair('v', 'b', 'steps', never, never)])[0]
  assert finding.comparison.verdict == 'not sensitive'
  assert finding.notes[0].endswith('at the floor, no run reached the threshold')


def test_runs_that_do_not_pair_are_refused():
  with pytest.raises(ValueError, match='5 and 4 runs'):
    conclude([arms(BASE, BASE[:4])])


def test_an_insensitive_study_gives_no_answer():
  finding = conclude([pair(NOISE - 0.5)], insensitive='the reason')[0]
  assert finding.comparison.verdict == 'not sensitive'
  assert finding.notes[0] == 'the reason'


def test_two_arms_at_an_end_of_a_score_are_not_equal():
  nothing = np.zeros(5)
  score = dict(metric='generated', better='higher', margin=0.02)
  finding = conclude([arms(nothing, nothing, **score)])[0]
  assert finding.comparison.verdict == 'not sensitive'
  assert finding.notes[0] == 'both arms are at the floor, 2 % or less'
  every = 1 - 0.001 * np.arange(5)
  finding = conclude([arms(every, every, **score)])[0]
  assert finding.comparison.verdict == 'not sensitive'
  assert finding.notes[0] == 'both arms are at the ceiling, above 98 %'
  # One that is above it can lose, and a loss of nothing is no floor.
  assert verdict(arms(nothing, 0.5 + NOISE, **score)) == ['worse']
  same = nothing + 0.5
  assert verdict(arms(same, same, **score)) == ['equivalent']
  assert verdict(arms(nothing, nothing, margin=0.02)) == ['equivalent']


def test_the_gate():
  def why(known_bad, accuracy=(0.7, 0.99)):
    return stats.insensitivity(
      baseline_accuracy=accuracy, known_bad=known_bad, better='lower'
    )

  bad = row_of(pair(NOISE + 0.5, primary=False))
  blind = row_of(pair(NOISE, primary=False))
  good = row_of(pair(NOISE - 0.5, primary=False))
  assert why(bad) == why(None) == ''
  assert why(bad, (0.99, 1.0)) == 'the baseline is above 98 % everywhere'
  assert why(bad, ()) == ''
  for other in (blind, good):
    assert why(other) == 'the known-bad arm v is not told apart'


def test_a_known_bad_arm_in_ruins_is_told_apart_at_five_seeds():
  control = arms(
    np.full(5, np.nan),
    BASE,
    primary=False,
    variant_diverged_R=np.full(5, True),
    diverged_value=4.0,
  )
  row = row_of(control)
  assert row.p_value == 2 / 32
  assert stats.told_apart(row, better='lower', alpha=0.05)
