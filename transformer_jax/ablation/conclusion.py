"""From the results of a study to the rows of summary.json.

It is made from result files only, so every worker makes the same rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_jax.ablation import stats, survival
from transformer_jax.ablation.comparison import Pair, StepsPair
from transformer_jax.ablation.results import Result, diverged_value
from transformer_jax.ablation.sequential import level_at
from transformer_jax.ablation.study import (
  FREE_RUNNING,
  METRICS,
  Phase,
  Primary,
  Study,
  label,
)

AT_LAST_STEP = ('loss', 'accuracy', 'exact')


class Runs:
  """Results of one phase, by variant and seed."""

  def __init__(self, results: Sequence[Result], phase: Phase) -> None:
    self._found = {
      (r.cell.variant, r.cell.seed): r for r in results if r.cell.phase == phase
    }

  def seeds(self, *variants: str) -> list[int]:
    """Seeds that all of these have been run with."""
    every = sorted({seed for _, seed in self._found})
    return [s for s in every if all((v, s) in self._found for v in variants)]

  def of(self, variant: str, seeds: Sequence[int]) -> list[Result]:
    return [self._found[variant, seed] for seed in seeds]


def values(results: Sequence[Result], metric: str) -> np.ndarray:
  """[R], nan where the run diverged."""
  return np.array(
    [math.nan if r.diverged else r.body['metrics'][metric] for r in results],
    np.float64,
  )


def crossing(results: Sequence[Result], threshold: float) -> survival.Crossing:
  """Steps to a validation loss; a diverged run never gets there.

  It is censored at the planned last step, however early it ended.
  """
  rows = [
    {
      line['step']: line['loss']
      for line in r.metrics
      if line['split'] == 'validation'
    }
    for r in results
  ]
  steps = sorted({results[0].cell.config.train.steps}.union(*rows))
  return survival.first_crossing(
    steps,
    [[row.get(step, math.nan) for step in steps] for row in rows],
    threshold=threshold,
    better='lower',
  )


def pair_of(
  study: Study, runs: Runs, one: Primary, *, seeds: Sequence[int], primary: bool
) -> Pair | StepsPair:
  """The comparison, ready to be weighed."""
  variant = runs.of(one.variant, seeds)
  baseline = runs.of(one.baseline, seeds)
  if one.metric == 'steps_to_threshold' and study.threshold is not None:
    return StepsPair(
      one.variant,
      one.baseline,
      one.metric,
      crossing(variant, study.threshold),
      crossing(baseline, study.threshold),
      primary=primary,
      diverged=sum(r.diverged for r in variant),
    )
  return Pair(
    one.variant,
    one.baseline,
    one.metric,
    values(variant, one.metric),
    values(baseline, one.metric),
    better=one.better,
    primary=primary,
    margin=one.margin,
    variant_diverged_R=[r.diverged for r in variant],
    baseline_diverged_R=[r.diverged for r in baseline],
    diverged_value=diverged_value(one.metric, baseline[0].body['metrics']),
  )


def anyone_there(study: Study, runs: Runs, seeds: Sequence[int]) -> bool:
  """Whether any run of any arm reached the study's threshold."""
  return study.threshold is not None and any(
    crossing(runs.of(arm.name, seeds), study.threshold).reached_R.any()
    for arm in study.arms
  )


def comparisons(study: Study, *, steps: bool) -> list[Primary]:
  """Primary ones, then every arm by every metric against its baseline.

  Args:
    study: with its arms and scores.
    steps: whether steps to the threshold are among the metrics.
  """
  found = list(study.primary)
  have = {(one.variant, one.baseline, one.metric) for one in found}
  against = {one.variant: one.baseline for one in reversed(found)}
  metrics = [*AT_LAST_STEP, *study.free_running]
  if steps:
    metrics.append('steps_to_threshold')
  for arm in study.arms:
    baseline = against.get(arm.name, study.arms[0].name)
    for metric in metrics:
      key = (arm.name, baseline, metric)
      if arm.name != baseline and key not in have:
        have.add(key)
        found.append(Primary(*key, better=METRICS[metric]))
  return found


def _alpha(study: Study, seeds: int) -> float | None:
  """The level of this look; None: it is not a planned one."""
  if seeds not in study.looks:
    return None
  return level_at(seeds, study.looks)


def insensitive(study: Study, runs: Runs, seeds: Sequence[int]) -> str:
  """Why the study cannot answer; '' where it can."""
  against = {one.variant: one.baseline for one in study.primary}
  baselines = {study.arms[0].name, *against.values()}
  accuracy = [
    float(np.nan_to_num(values(runs.of(name, seeds), 'accuracy')).mean())
    for name in sorted(baselines)
  ]
  # The control is compared by the metrics that are judged: a loss can tell
  # apart what a score cannot. For steps to a threshold the loss is taken.
  judged = {
    one.metric if one.metric in AT_LAST_STEP + tuple(FREE_RUNNING) else 'loss'
    for one in study.primary
  }
  known_bad: list[tuple[str, stats.Comparison | None]] = [
    (
      METRICS[metric],
      stats.conclude(
        [
          pair_of(
            study,
            runs,
            Primary(
              arm.name,
              against.get(arm.name, study.arms[0].name),
              metric,
              METRICS[metric],
            ),
            seeds=seeds,
            primary=False,
          )
        ]
      )[0].comparison,
    )
    for arm in study.arms
    if arm.role == 'known_bad'
    for metric in sorted(judged or {'loss'})
  ]
  reasons = (
    stats.insensitivity(
      baseline_accuracy=accuracy, known_bad=one, better=better
    )
    for better, one in known_bad or [('lower', None)]
  )
  return next(filter(None, reasons), '')


def _rows(
  study: Study, runs: Runs, phase: Phase, seeds: Sequence[int], *, planned: bool
) -> list[dict[str, Any]]:
  """Rows of one phase; only intervals, no verdict, unless `planned`."""
  alpha = _alpha(study, len(seeds)) if planned else None
  asked = comparisons(study, steps=anyone_there(study, runs, seeds))
  declared = set(map(id, study.primary))
  pairs = [
    pair_of(
      study,
      runs,
      one,
      seeds=seeds,
      primary=alpha is not None and id(one) in declared,
    )
    for one in asked
  ]
  reason = insensitive(study, runs, seeds)
  found = stats.conclude(pairs, alpha=alpha or 0.05, insensitive=reason)
  rows = []
  for finding in found:
    row = stats.as_row(finding.comparison)
    pairing = finding.pairing._asdict()
    rows.append(
      row
      | dict(
        variant=label(row['variant'], phase),
        baseline=label(row['baseline'], phase),
        phase=phase,
        exploratory=not planned,
        seeds_needed=finding.seeds_needed,
        pairing={
          key: None if isinstance(v, float) and not math.isfinite(v) else v
          for key, v in pairing.items()
        },
        notes=list(finding.notes),
      )
    )
  return rows


def summary(study: Study, results: Sequence[Result]) -> list[dict[str, Any]]:
  """All comparisons: by the paper's recipe, then tuned.

  They count the seeds of the latest complete look, even where runs of the next
  look are done. Before the first look they count all seeds that are there, and
  give no verdict. Where seeds were run that were not planned, all comparisons
  follow once more, over all seeds and marked exploratory. A seed that one arm
  still lacks is left out for all arms.
  """
  rows = []
  phases: tuple[Phase, ...] = ('paper', 'tuned')
  for phase in phases:
    runs = Runs(results, phase)
    seeds = runs.seeds(*(arm.name for arm in study.arms))
    planned = [seed for seed in seeds if seed < study.seeds]
    late = len(seeds) > len(planned)
    taken = [n for n in study.looks if planned[:n] == list(range(n))]
    planned = planned[: max(taken, default=len(planned))]
    if planned and len(study.arms) > 1:
      rows += _rows(study, runs, phase, planned, planned=True)
    if late and len(study.arms) > 1:
      rows += _rows(study, runs, phase, seeds, planned=False)
  return rows
