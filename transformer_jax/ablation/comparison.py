"""Two arms that are compared over the same seeds, checked and weighed."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transformer_jax.ablation import paired_tests
from transformer_jax.ablation.evidence import Evidence, weigh
from transformer_jax.ablation.paired_tests import Floats
from transformer_jax.ablation.survival import LOG_RANK, Crossing, log_rank


class Weighed(NamedTuple):
  """A pair with its evidence.

  variant_R, baseline_R: values, diverged runs counted as declared.
  diverged: runs of the variant that diverged.
  evidence: difference, interval, p-values.
  gain: positive where the variant is the better arm.
  test: the name of the test that gave the p-value.
  """

  variant_R: Floats
  baseline_R: Floats
  diverged: int
  evidence: Evidence
  gain: float
  test: str


@dataclass(frozen=True)
class Pair:
  """Two arms by a metric at a fixed step (never at the best checkpoint).

  variant_R, baseline_R: one value per seed, the same seeds in the same order;
    anything, nan too, where the run diverged.
  better: lower or higher, of the metric.
  margin: smallest difference that matters, in the metric's unit, declared
    beforehand; None: nothing can be called equivalent.
  variant_diverged_R, baseline_diverged_R: bool; empty: none did.
  diverged_value: what a diverged run counts as (loss of a unigram model).
  """

  variant: str
  baseline: str
  metric: str
  variant_R: ArrayLike
  baseline_R: ArrayLike
  better: str
  primary: bool = True
  margin: float | None = None
  variant_diverged_R: ArrayLike = ()
  baseline_diverged_R: ArrayLike = ()
  diverged_value: float | None = None

  def weighed(self, alpha: float) -> Weighed:
    """The evidence at this level; ValueError where the runs do not pair."""
    variant_R, v_R = _arm(self, self.variant_R, self.variant_diverged_R)
    baseline_R, b_R = _arm(self, self.baseline_R, self.baseline_diverged_R)
    _check_same_seeds(self, variant_R, baseline_R)
    diverged = bool(v_R.any() | b_R.any())
    evidence = weigh(
      variant_R,
      baseline_R,
      margin=self.margin,
      diverged=diverged,
      alpha=alpha,
    )
    return Weighed(
      variant_R=variant_R,
      baseline_R=baseline_R,
      diverged=int(v_R.sum()),
      evidence=evidence,
      gain=float(evidence.difference) * paired_tests.direction(self.better),
      test=_test_name(variant_R - baseline_R, evidence, diverged=diverged),
    )


@dataclass(frozen=True)
class StepsPair:
  """Two arms by the steps they take to a threshold: fewer are better.

  The p-value is the log-rank test's. The difference and its interval are of
  the mean steps up to the last evaluation, in which a run that never got
  there counts as that last step. No margin: nothing is called equivalent.
  """

  variant: str
  baseline: str
  metric: str
  variant_crossing: Crossing
  baseline_crossing: Crossing
  primary: bool = True
  diverged: int = 0

  @property
  def margin(self) -> None:
    return None

  def weighed(self, alpha: float) -> Weighed:
    """The evidence at this level; ValueError where the runs do not pair."""
    variant_R = np.asarray(self.variant_crossing.steps_R, np.float64)
    baseline_R = np.asarray(self.baseline_crossing.steps_R, np.float64)
    _check_same_seeds(self, variant_R, baseline_R)
    test = log_rank(self.variant_crossing, self.baseline_crossing)
    d_R = variant_R - baseline_R
    nothing = np.asarray(np.nan)
    interval = paired_tests.Interval(nothing, nothing)
    if len(d_R) > 1:
      interval = paired_tests.mean_interval(d_R, alpha=alpha)
    evidence = Evidence(
      difference=np.asarray(d_R.mean()),
      ci_low=interval.low,
      ci_high=interval.high,
      p_value=np.asarray(test.p_value),
      p_equivalent=nothing,
      ranked=np.asarray(False),
    )
    return Weighed(
      variant_R=variant_R,
      baseline_R=baseline_R,
      diverged=self.diverged,
      evidence=evidence,
      gain=test.statistic,
      test=LOG_RANK,
    )


def _name(pair: Pair | StepsPair) -> str:
  return f'{pair.variant} against {pair.baseline} on {pair.metric}'


def _check_same_seeds(
  pair: Pair | StepsPair, variant_R: Floats, baseline_R: Floats
) -> None:
  if variant_R.shape != baseline_R.shape or not variant_R.size:
    raise ValueError(
      f'{_name(pair)}: {variant_R.size} and {baseline_R.size} runs; '
      'both arms need the same seeds'
    )


def _arm(
  pair: Pair, values_R: ArrayLike, diverged_R: ArrayLike
) -> tuple[Floats, NDArray[np.bool_]]:
  """Values with diverged runs counted as declared, and which they are."""
  values_R = np.asarray(values_R, np.float64)
  diverged_R = np.asarray(diverged_R, bool)
  if not diverged_R.size:
    diverged_R = np.zeros(values_R.shape, bool)
  if diverged_R.shape != values_R.shape or values_R.ndim != 1:
    raise ValueError(f'{_name(pair)}: give one value and one mark per seed')
  if diverged_R.any():
    value = pair.diverged_value
    if value is None or not np.isfinite(value):
      raise ValueError(f'{_name(pair)}: runs diverged; say what they count as')
    values_R = np.where(diverged_R, value, values_R)
  if not np.all(np.isfinite(values_R)):
    raise ValueError(
      f'{_name(pair)}: a value is not finite; mark its run as diverged'
    )
  return values_R, diverged_R


def _test_name(
  difference_R: Floats, evidence: Evidence, *, diverged: bool
) -> str:
  seeds = len(difference_R)
  if seeds < 2:
    return 'none'
  if diverged:
    return f'{paired_tests.SIGNED_RANK}, as runs diverged'
  if evidence.ranked:
    return f'{paired_tests.SIGNED_RANK}, as an arm falls into two groups'
  if paired_tests.is_flat(difference_R):
    # Nothing to divide by: the t-test hands over to the sign-flip test.
    return paired_tests.mean_test_name(max(seeds, paired_tests.FLIP_FROM))
  return paired_tests.mean_test_name(seeds)
