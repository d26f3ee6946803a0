"""Comparisons of a study to verdicts (pure: numbers in, words out).

The rules, in the order they apply to a comparison:

1. Not primary, or fewer than three seeds: 'no verdict', an interval only.
2. The study could not have shown a difference (`insensitivity`), or both arms
   are at the floor or the ceiling of a score (`out_of_range`): 'not
   sensitive'.
3. A diverged run, or an arm that falls into two groups: ranks decide (exact
   signed-rank), never the mean, and nothing is called equivalent. Diverged
   runs count as a declared value, the loss of a unigram model. Steps to a
   threshold: the log-rank test decides.
4. Otherwise the mean: paired t below 8 seeds, sign-flip from there.
5. Equivalent: two one-sided tests against the declared margin. It goes before
   6, as the margin says what matters: a difference that is real and inside it
   is 'equivalent', with a note that it is detectable.
6. Better or worse: two-sided p at most alpha, and the sign.
7. 'not enough evidence', with about how many seeds would be.

p-values of differences are adjusted by Holm over the primary comparisons. Those
of equivalence are adjusted apart from these, over the comparisons that have a
margin. So under one recipe at most a share alpha of studies call any arm better
or worse that is not, and at most alpha call any equivalent that is not. The
paper's recipe, and tuning, which gives each arm its own rate, are two
questions: alpha holds for each, and 2 alpha for both together (`promise`).
Intervals are for one comparison each, unadjusted.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from transformer_jax.ablation import evidence, paired_tests, power
from transformer_jax.ablation.comparison import Pair, StepsPair, Weighed
from transformer_jax.ablation.evidence import (
  EQUIVALENT,
  NO_VERDICT,
  NOT_ENOUGH,
  NOT_SENSITIVE,
)
from transformer_jax.ablation.survival import LOG_RANK

MOST_PRIMARY = 4
CEILING = 0.98  # baseline accuracy above which a task asks nothing any more
FLOOR = 0.02  # share of right answers of both arms at which none can lose


class Comparison(NamedTuple):
  """One row of summary.json.

  seeds: pairs. diverged: diverged runs of the variant.
  mean: of the variant. difference: variant minus baseline, the mean of pairs
    (Hodges and Lehmann's centre where ranks decide). These, the interval, the
    minimum detectable difference and the margin are in the metric's unit.
  p_value: of `test`, two-sided. p_adjusted: by Holm, primary ones only.
  effect_size: d_z with Hedges' correction; rank-biserial where ranks decide.
  minimum_detectable: found with power 0.8 at the strictest step of Holm.
  A number that does not exist is nan, an open limit infinite; see `as_row`.
  """

  variant: str
  baseline: str
  metric: str
  primary: bool
  seeds: int
  diverged: int
  mean: float
  difference: float
  ci_low: float
  ci_high: float
  test: str
  p_value: float
  p_adjusted: float
  effect_size: float
  minimum_detectable: float
  margin: float
  verdict: str


class Finding(NamedTuple):
  """A comparison with what a reader needs beside it.

  seeds_needed: about how many seeds would decide; None: it is decided, or no
    number can be named.
  pairing: what pairing by seed bought.
  notes: sentences, the weightiest first.
  """

  comparison: Comparison
  seeds_needed: int | None
  pairing: paired_tests.Pairing
  notes: tuple[str, ...]


class _Planning(NamedTuple):
  effect_size: float
  minimum_detectable: float
  seeds_needed: int | None


def _from_signs(weighed: Weighed) -> bool:
  """Whether only signs and ranks count, so that no spread plans for more."""
  flat = paired_tests.is_flat(weighed.variant_R - weighed.baseline_R)
  return bool(weighed.evidence.ranked or flat)


def _planning(
  pair: Pair | StepsPair, weighed: Weighed, level: float
) -> _Planning:
  """Effect, smallest detectable difference, seeds needed at this level."""
  d_R = weighed.variant_R - weighed.baseline_R
  seeds = len(d_R)
  if seeds < power.FEWEST or weighed.test == LOG_RANK:
    return _Planning(np.nan, np.nan, None)
  if _from_signs(weighed):
    fewest = power.seeds_for_signs(level)
    ranked = bool(weighed.evidence.ranked)
    effect = power.rank_effect_size(d_R) if ranked else np.nan
    return _Planning(effect, np.nan, fewest if fewest > seeds else None)
  spread = float(d_R.std(ddof=1))
  if pair.margin is None:
    mean = float(d_R.mean())
    needed = power.seeds_for_difference(mean, spread=spread, alpha=level)
  else:
    needed = power.seeds_for_margin(pair.margin, spread=spread, alpha=level)
  smallest = power.minimum_detectable(spread=spread, seeds=seeds, alpha=level)
  return _Planning(power.effect_size(d_R), smallest, needed)


def _what_is_missing(
  pair: Pair | StepsPair, weighed: Weighed, needed: int | None
) -> str:
  """Said beside 'not enough evidence'."""
  if needed is None:
    return 'no number of seeds can be named that would be enough'
  if _from_signs(weighed):
    return f'such runs can decide from {needed} seeds on'
  if needed <= len(weighed.variant_R):
    return f'about {needed} seeds decide four times in five; not this time'
  if pair.margin is None:
    return f'about {needed} seeds would be enough, if this is the difference'
  return f'about {needed} seeds would be enough for the margin {pair.margin:g}'


def _row(
  pair: Pair | StepsPair,
  weighed: Weighed,
  planning: _Planning,
  p_adjusted: float,
  verdict: str,
) -> Comparison:
  return Comparison(
    variant=pair.variant,
    baseline=pair.baseline,
    metric=pair.metric,
    primary=pair.primary,
    seeds=len(weighed.variant_R),
    diverged=weighed.diverged,
    mean=float(weighed.variant_R.mean()),
    difference=float(weighed.evidence.difference),
    ci_low=float(weighed.evidence.ci_low),
    ci_high=float(weighed.evidence.ci_high),
    test=weighed.test,
    p_value=float(weighed.evidence.p_value),
    p_adjusted=p_adjusted,
    effect_size=planning.effect_size,
    minimum_detectable=planning.minimum_detectable,
    margin=np.nan if pair.margin is None else pair.margin,
    verdict=verdict,
  )


def _verdict(
  pair: Pair | StepsPair,
  weighed: Weighed,
  p: tuple[float, float],
  *,
  alpha: float,
  insensitive: str,
) -> str:
  if not pair.primary or len(weighed.variant_R) < power.FEWEST:
    return NO_VERDICT
  if insensitive:
    return NOT_SENSITIVE
  return str(evidence.judge(weighed.gain, *p, alpha=alpha))


def _finding(
  pair: Pair | StepsPair,
  weighed: Weighed,
  p: tuple[float, float],
  *,
  alpha: float,
  family: int,
  insensitive: str,
) -> Finding:
  """One comparison; p: adjusted, of a difference and of equivalence."""
  insensitive = insensitive or out_of_range(pair, weighed)
  verdict = _verdict(pair, weighed, p, alpha=alpha, insensitive=insensitive)
  # The strictest step of Holm: what is promised there holds at every step.
  planning = _planning(pair, weighed, alpha / family)
  notes = []
  if verdict == EQUIVALENT and p[0] <= alpha:
    notes.append('a difference is detectable, and inside the margin')
  if verdict == NOT_ENOUGH:
    notes.append(_what_is_missing(pair, weighed, planning.seeds_needed))
  if verdict == NOT_SENSITIVE:
    notes.append(insensitive)
  bought = paired_tests.pairing(weighed.variant_R, weighed.baseline_R)
  return Finding(
    comparison=_row(pair, weighed, planning, p[0], verdict),
    seeds_needed=planning.seeds_needed if verdict == NOT_ENOUGH else None,
    pairing=bought,
    notes=(*notes, bought.statement),
  )


def conclude(
  pairs: Sequence[Pair | StepsPair],
  *,
  alpha: float = 0.05,
  insensitive: str = '',
) -> tuple[Finding, ...]:
  """All comparisons of a study, judged together; in the order of `pairs`.

  Args:
    pairs: primary and other comparisons.
    alpha: level of this look (`sequential.level_at`). Primary intervals are
      at 1 - alpha, so that they hold over all looks; the others at 95 %.
    insensitive: why the study cannot answer, from `insensitivity`.

  Raises:
    ValueError: more than four primary comparisons, or runs that do not pair.

  >>> loss = np.array([1.0, 1.2, 1.1, 1.3, 1.2])
  >>> gain = np.array([0.5, 0.6, 0.5, 0.4, 0.6])
  >>> pair = Pair('b', 'a', 'loss', loss - gain, loss, better='lower')
  >>> conclude([pair])[0].comparison.verdict
  'better'
  """
  primary = [i for i, pair in enumerate(pairs) if pair.primary]
  if len(primary) > MOST_PRIMARY:
    raise ValueError(
      f'{len(primary)} primary comparisons: declare at most {MOST_PRIMARY}'
    )
  levels = [alpha if pair.primary else 0.05 for pair in pairs]
  weighed = [
    pair.weighed(level) for pair, level in zip(pairs, levels, strict=True)
  ]
  bounded = [i for i in primary if pairs[i].margin is not None]
  different, same = np.full((2, len(pairs)), np.nan)
  different[primary] = paired_tests.holm(
    [weighed[i].evidence.p_value for i in primary]
  )
  same[bounded] = paired_tests.holm(
    [weighed[i].evidence.p_equivalent for i in bounded]
  )
  return tuple(
    _finding(
      pair,
      weighed[i],
      (float(different[i]), float(same[i])),
      alpha=levels[i],
      family=len(primary) if pair.primary else 1,
      insensitive=insensitive,
    )
    for i, pair in enumerate(pairs)
  )


def promise(rows: Sequence[Mapping[str, Any]]) -> str:
  """What both verdicts on a comparison promise; '' where there is only one.

  Args:
    rows: of summary.json.
  """
  if len({row['phase'] for row in rows if row['primary']}) < 2:
    return ''
  return (
    "By the paper's recipe and tuned are two questions: where no arms differ, "
    'at most 5 % of studies call one better or worse in each, so up to 10 % in '
    'either.'
  )


def told_apart(known_bad: Comparison, *, better: str, alpha: float) -> bool:
  """Whether a control that must be worse is seen to be worse.

  Which way it goes is known beforehand, so the test is one-sided: half of
  the two-sided p-value, on the expected side.
  """
  worse = known_bad.difference * paired_tests.direction(better) < 0
  enough = known_bad.seeds >= power.FEWEST
  return enough and worse and known_bad.p_value / 2 <= alpha


def out_of_range(pair: Pair | StepsPair, weighed: Weighed) -> str:
  """Why a share of right answers could not differ; '' where it could.

  Nothing right in either arm, or all of it in both, is no evidence that the
  arms are equal; nor is a threshold that no run reached.
  """
  if isinstance(pair, StepsPair):
    arms = pair.variant_crossing, pair.baseline_crossing
    if any(arm.reached_R.any() for arm in arms):
      return ''
    return 'both arms are at the floor, no run reached the threshold'
  if pair.better != 'higher':
    return ''
  means = weighed.variant_R.mean(), weighed.baseline_R.mean()
  text = ''
  if max(means) <= FLOOR:
    text = f'both arms are at the floor, {FLOOR:.0%} or less'
  elif CEILING < min(means) <= 1:
    text = f'both arms are at the ceiling, above {CEILING:.0%}'
  return text.replace('%', ' %')


def insensitivity(
  *,
  baseline_accuracy: ArrayLike,
  known_bad: Comparison | None,
  better: str,
  alpha: float = 0.05,
) -> str:
  """Why a study could not have shown a difference; '' where it could.

  Args:
    baseline_accuracy: share of right answers of the baseline, in every
      condition of the study (means over seeds), 0 to 1; empty where the task
      has no ceiling.
    known_bad: the control that must be worse, against the baseline; None
      where none was declared.
    better: lower or higher, of the control's metric.
    alpha: one-sided, of the control; it is no primary comparison.

  >>> insensitivity(
  ...   baseline_accuracy=[0.99, 1.0], known_bad=None, better='lower'
  ... )
  'the baseline is above 98 % everywhere'
  """
  accuracy = np.asarray(baseline_accuracy, np.float64)
  if accuracy.size and np.all(accuracy > CEILING):
    return f'the baseline is above {CEILING:.0%} everywhere'.replace('%', ' %')
  if known_bad is None or told_apart(known_bad, better=better, alpha=alpha):
    return ''
  return f'the known-bad arm {known_bad.variant} is not told apart'


def as_row(comparison: Comparison) -> dict[str, Any]:
  """For JSON: numbers that do not exist and open limits become None."""
  return {
    name: None if isinstance(value, float) and not np.isfinite(value) else value
    for name, value in comparison._asdict().items()
  }
