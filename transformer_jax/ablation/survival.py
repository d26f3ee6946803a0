"""Which runs fail, and how soon the others get to a threshold (pure)."""

from functools import lru_cache
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from transformer_jax.ablation.paired_tests import direction

EXACT_LABELLINGS = 12_870  # 8 runs a side
DRAWS = 9_999
TIE = 1e-9
LOG_RANK = 'log-rank (permutation of arms)'


class Failures(NamedTuple):
  """Failure rates of two paired arms.

  variant_rate, baseline_rate: share of seeds that failed.
  only_variant, only_baseline: seeds that failed in that arm alone.
  p_value: two-sided, exact.
  """

  variant_rate: float
  baseline_rate: float
  only_variant: int
  only_baseline: int
  p_value: float


class Crossing(NamedTuple):
  """When runs first meet a threshold.

  steps_R: step of the first evaluation that meets it; the last evaluated step
    where none does.
  reached_R: whether it was met; a run that was not is censored.
  """

  steps_R: NDArray[np.float64]
  reached_R: NDArray[np.bool_]


class LogRank(NamedTuple):
  """The log-rank test of two arms by their steps to a threshold.

  statistic: normal deviate; positive: the variant gets there sooner.
  p_value: two-sided.
  """

  statistic: float
  p_value: float


def first_crossing(
  steps_P: ArrayLike, values_RP: ArrayLike, *, threshold: float, better: str
) -> Crossing:
  """First evaluation at which each run is as good as the threshold.

  The values of a diverged run are nan and never meet the threshold: it is
  censored at the last step, and not where it ended.

  Args:
    steps_P: P steps of evaluation, rising, the same for all runs.
    values_RP: the metric of R runs at them.
    threshold: in the metric's unit, declared beforehand.
    better: lower or higher.

  >>> first_crossing(
  ...   [10, 20, 30], [[3, 1, 2], [3, 3, 3]], threshold=1.5, better='lower'
  ... )
  Crossing(steps_R=array([20., 30.]), reached_R=array([ True, False]))
  """
  steps_P = np.asarray(steps_P, np.float64)
  sign = direction(better)
  met_RP = sign * np.asarray(values_RP, np.float64) >= sign * threshold
  reached_R = np.asarray(met_RP.any(axis=-1))
  first_R = np.where(reached_R, met_RP.argmax(axis=-1), len(steps_P) - 1)
  return Crossing(steps_R=steps_P[first_R], reached_R=reached_R)


def log_rank_scores(
  steps_I: NDArray[np.float64], reached_I: NDArray[np.bool_]
) -> NDArray[np.float64]:
  """reached - sum over steps s <= own of (reached at s) / (still under way).

  Summed over an arm: observed minus expected of the log-rank test.
  """
  event_E = np.unique(steps_I[reached_I])
  at_E = np.sum((steps_I[:, None] == event_E) & reached_I[:, None], axis=0)
  under_way_E = np.sum(steps_I[:, None] >= event_E, axis=0)
  hazard_IE = np.where(steps_I[:, None] >= event_E, at_E / under_way_E, 0.0)
  return reached_I - hazard_IE.sum(axis=-1)


@lru_cache(maxsize=8)
def _labellings(runs: int, of: int) -> NDArray[np.float64]:
  """0/1 [M, runs]: which runs could be the first arm; all ways, or drawn."""
  if comb(runs, of) <= EXACT_LABELLINGS:
    chosen_MI = np.array(list(combinations(range(runs), of)))
  else:
    draws = np.random.default_rng(runs).random((DRAWS, runs))
    chosen_MI = np.argsort(draws, axis=-1)[:, :of]
  labels_MI = np.zeros((len(chosen_MI), runs))
  np.put_along_axis(labels_MI, chosen_MI, 1.0, axis=-1)
  return labels_MI


def log_rank(variant: Crossing, baseline: Crossing) -> LogRank:
  """Log-rank test of two arms, its p-value by exchanging the arms' runs.

    U = sum over the variant's runs of `log_rank_scores`
    p = (1 + #{labellings: |U*| >= |U|}) / (m + 1)     for drawn labellings,
        #{labellings: |U*| >= |U|} / M                 where all are counted

  The usual normal approximation finds too much with a handful of runs; the
  exchange is exact for arms that do not differ. It does not use the pairing by
  seed, so positively correlated pairs make it cautious. Where no run got there,
  p is 1.

  >>> soon = Crossing(np.array([1.0, 2, 3]), np.full(3, True))
  >>> late = Crossing(np.array([9.0, 9, 9]), np.full(3, False))
  >>> log_rank(soon, late).p_value  # 2 of the 20 labellings
  0.1

  Reference: Peto and Peto (1972), Asymptotically efficient rank invariant
  test procedures; the statistic is scipy.stats.logrank's.
  """
  runs = len(variant.steps_R)
  steps_I = np.concatenate([variant.steps_R, baseline.steps_R])
  reached_I = np.concatenate([variant.reached_R, baseline.reached_R])
  score_I = log_rank_scores(steps_I, reached_I)
  if not reached_I.any() or np.ptp(score_I) < TIE:
    return LogRank(0.0, 1.0)
  labels_MI = _labellings(len(steps_I), runs)
  size_M = np.abs(labels_MI @ score_I)
  as_far = int(np.count_nonzero(size_M >= abs(score_I[:runs].sum()) - TIE))
  exact = comb(len(steps_I), runs) == len(labels_MI)
  p_value = as_far / len(labels_MI) if exact else (as_far + 1) / (DRAWS + 1)
  first, second = (
    stats.CensoredData.right_censored(arm.steps_R, ~arm.reached_R)
    for arm in (variant, baseline)
  )
  # scipy's sign is that of the second arm lasting longer.
  statistic = float(stats.logrank(x=first, y=second).statistic)
  return LogRank(statistic, p_value)


def failure_rates(variant_R: ArrayLike, baseline_R: ArrayLike) -> Failures:
  """McNemar's exact test of two paired failure rates.

    p = P(as far from n / 2 as b), b ~ Binomial(n, 1 / 2)

  with n the seeds that failed in one arm only, b those of the variant.

  Args:
    variant_R: bool, whether the run of each seed failed.
    baseline_R: the same for the other arm, same seeds in the same order.

  >>> failure_rates([True] * 6 + [False], [False] * 7).p_value  # 2 / 2^6
  0.03125

  Reference: McNemar (1947), Psychometrika 12.
  """
  variant_R = np.asarray(variant_R, bool)
  baseline_R = np.asarray(baseline_R, bool)
  if variant_R.shape != baseline_R.shape or not variant_R.size:
    raise ValueError('failures of two arms: one per seed, of the same seeds')
  only_variant = int(np.count_nonzero(variant_R & ~baseline_R))
  only_baseline = int(np.count_nonzero(baseline_R & ~variant_R))
  either = only_variant + only_baseline
  p = stats.binomtest(only_variant, either).pvalue if either else 1.0
  return Failures(
    float(variant_R.mean()),
    float(baseline_R.mean()),
    only_variant,
    only_baseline,
    float(p),
  )
