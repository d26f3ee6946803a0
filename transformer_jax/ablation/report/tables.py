"""The report's tables as text, for the page and for Markdown alike."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.ablation import stats, survival
from transformer_jax.ablation.comparison import Pair
from transformer_jax.ablation.paired_tests import t_interval
from transformer_jax.ablation.report import answers
from transformer_jax.ablation.report.reading import (
  PAPER,
  PHASES,
  TUNED,
  Results,
  Row,
  Run,
  median_of,
)
from transformer_jax.ablation.study import arm_of

NONE = '–'


class Table(NamedTuple):
  """A title, columns, rows of text, and what a reader has to know of it."""

  title: str
  columns: tuple[str, ...]
  rows: list[tuple[str, ...]]
  note: str = ''


def _size(value: float) -> str:
  """1,536 -> 1.54 k: four letters or so, for a phone's column."""
  if math.isnan(value):
    return NONE
  for unit, limit in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if abs(value) >= limit:
      return f'{value / limit:.3g} {unit}'
  return f'{value:.3g}'


def _scaled(scale: float) -> Callable[[float], str]:
  return lambda value: answers.number(value * scale)


# What an arm costs: column, number of the result, how it is written.
COSTS = (
  ('parameters', 'parameters', lambda value: answers.number(value)),
  ('product FLOPs a token', 'flops_per_token', _size),
  ('ms a step', 'step_seconds', _scaled(1e3)),
  ('memory, MiB', 'peak_memory', _scaled(1 / 2**20)),
)


def mean_of(runs: Sequence[Run], metric: str) -> float:
  """Mean over seeds; nan where a run has no such number."""
  values = [run.value(metric) for run in runs]
  return float(np.mean(values)) if values else math.nan


def _costs(runs: Sequence[Run]) -> tuple[str, ...]:
  return tuple(form(median_of(runs, name)) for _, name, form in COSTS)


def _judged(row: Row) -> tuple[str, ...]:
  """The cells of a comparison, from its mean on."""
  p = row['p_adjusted'] if row['primary'] else row['p_value']
  return (
    answers.number(row['mean']),
    answers.number(row['difference'], signed=True),
    answers.interval(row),
    row['verdict'],
    answers.number(p),
    answers.number(row['effect_size'], signed=True),
    answers.number(row['minimum_detectable']),
  )


JUDGED = (
  'mean',
  'difference',
  'interval',
  'verdict',
  'p',
  'effect',
  'detectable',
)


def arms(results: Results, phase: str) -> Table:
  """Baseline first, then each comparison by the main metric, with its costs."""
  rows = []

  def add(name: str, runs: Sequence[Run], cells: Sequence[str]) -> None:
    exact = answers.number(mean_of(runs, 'exact'))
    failed = str(sum(run.diverged for run in runs))
    rows.append((name, *cells, exact, str(len(runs)), failed, *_costs(runs)))

  base = results.variants[0]
  runs = results.of(base, phase)
  mean = answers.number(mean_of(runs, results.metric))
  add(f'{base} (baseline)', runs, (results.metric, mean, *[NONE] * 6))
  for row in results.rows(phase):
    if row['primary'] or row['metric'] == results.metric:
      name, other = arm_of(row['variant']), arm_of(row['baseline'])
      metric = row['metric'] + ('' if row['primary'] else ' (not primary)')
      shown = name if other == base else f'{name}, against {other}'
      add(shown, results.of(name, phase), (metric, *_judged(row)))
  return Table(
    f'Variants, {PHASES[phase]}',
    (
      'variant',
      'metric',
      *JUDGED,
      'exact',
      'seeds',
      'diverged',
      *(column for column, _, _ in COSTS),
    ),
    rows,
    'At a fixed step, on held-out data, of the seeds that the verdicts count; '
    'seeds that were not planned stand apart. Difference: variant minus the '
    'arm it is held against. p: adjusted by Holm for primary comparisons. '
    'Effect: mean of the paired differences over their spread, or rank-'
    'biserial where ranks decide. Detectable: the smallest true difference '
    'that this many seeds find four times in five. Cost: median over seeds. '
    'Product FLOPs: of matrix products only, in a training step; what is done '
    'to their elements (the sum and tanh of additive scores, softmax, norms, '
    'Adam) is left out.',
  )


def _list(title: str, rows: Sequence[Row], note: str) -> Table | None:
  if not rows:
    return None
  return Table(
    title,
    ('comparison', 'metric', *JUDGED, 'seeds'),
    [
      (_against(row), row['metric'], *_judged(row), str(row['seeds']))
      for row in rows
    ],
    note,
  )


def _against(row: Row) -> str:
  return f'{arm_of(row["variant"])} against {arm_of(row["baseline"])}'


def other_metrics(results: Results, phase: str) -> Table | None:
  """Comparisons for information: intervals without verdict."""
  rows = [
    row
    for row in results.rows(phase)
    if not row['primary'] and row['metric'] != results.metric
  ]
  note = 'For information: no verdict, and p is not adjusted.'
  threshold = results.study.threshold
  if any(row['metric'] == 'steps_to_threshold' for row in results.rows(phase)):
    note += (
      f' Steps to a validation loss of {threshold}: by the log-rank test, in '
      'which a run that never got there is censored.'
    )
  elif threshold is not None:
    note += (
      f' No run of any arm got to a validation loss of {threshold}, so steps '
      'to it have no row; --threshold sets another.'
    )
  return _list(f'Other metrics, {PHASES[phase]}', rows, note)


def exploratory(results: Results, phase: str) -> Table | None:
  """All comparisons once more, with seeds that were not planned too."""
  return _list(
    f'Exploratory, {PHASES[phase]}',
    results.rows(phase, exploratory=True),
    'With more seeds than were planned when the study was declared: no '
    'verdict.',
  )


def pronouns(results: Results, phase: str) -> Table | None:
  """Pronouns right, by distance; None where no run was asked for any."""

  def bins(run: Run) -> Mapping[str, Mapping[str, int]]:
    return run.metrics.get('pronoun_by_distance') or {}

  runs = {name: results.of(name, phase) for name in results.variants}
  distances = sorted(
    {int(k) for every in runs.values() for run in every for k in bins(run)}
  )
  if not distances:
    return None

  def cell(every: Sequence[Run], clauses: int) -> str:
    shares = []
    for run in every:
      tally = bins(run).get(str(clauses))
      if run.diverged:
        shares.append(run.value('pronoun'))
      elif tally is not None:
        shares.append(tally['right'] / tally['asked'])
    if not shares:
      return NONE
    mean = answers.number(float(np.mean(shares)))
    if len(shares) < 2:
      return mean
    low, high = (answers.number(float(x)) for x in t_interval(shares))
    return f'{mean} ({low} to {high})'

  return Table(
    f'Pronouns by distance, {PHASES[phase]}',
    ('variant', *(f'{clauses} clauses' for clauses in distances)),
    [
      (name, *(cell(every, clauses) for clauses in distances))
      for name, every in runs.items()
    ],
    'Share of pronouns whose noun is still right in what greedy decoding '
    'wrote, by the relative clauses between the two: mean over seeds and its '
    '95 % t interval; a run that diverged has none right.',
  )


def _at_time(runs: Sequence[Run], seconds: float) -> dict[int, float]:
  """{seed: loss at the last evaluation within this time}."""
  found = {}
  for run in runs:
    rate = run.number('step_seconds')
    points = run.curves.get('validation', {}).get('loss', ())
    reached = [value for step, value in points if step * rate <= seconds]
    found[run.seed] = reached[-1] if reached else math.nan
  return found


def _shortest(results: Results, phase: str) -> float:
  """Seconds in which the quickest run ends; nan where times are unknown."""
  whole = []
  for run in results.runs:
    points = run.curves.get('validation', {}).get('loss', ())
    if run.phase == phase and points and not run.diverged:
      whole.append(points[-1][0] * run.number('step_seconds'))
  return min(whole) if whole and np.all(np.isfinite(whole)) else math.nan


def equal_time(results: Results, phase: str) -> Table | None:
  """Every arm read when the quickest run ends; None where no time is known.

  The time is that of training steps: evaluation is not counted.
  """
  seconds = _shortest(results, phase)
  if math.isnan(seconds):
    return None
  base = results.variants[0]
  base_runs = results.of(base, phase)
  base_values = _at_time(base_runs, seconds)
  rows = []
  for name in results.variants:
    runs = results.of(name, phase)
    values = _at_time(runs, seconds)
    shared = sorted(values.keys() & base_values.keys())
    sides = [[side[seed] for seed in shared] for side in (values, base_values)]
    failed = any(run.diverged for run in (*runs, *base_runs))
    cells, note = [NONE, NONE], ''
    if failed:
      note = 'a run diverged: not compared'
    elif name != base and len(shared) > 1 and np.all(np.isfinite(sides)):
      pair = Pair(
        name, base, 'loss', sides[0], sides[1], 'lower', primary=False
      )
      row = stats.as_row(stats.conclude([pair])[0].comparison)
      cells = [
        answers.number(row['difference'], signed=True),
        answers.interval(row),
      ]
    found = list(values.values())
    mean = float(np.mean(found)) if found else math.nan
    rows.append((name, answers.number(mean), *cells, str(len(found)), note))
  return Table(
    f'At equal time, {PHASES[phase]}',
    ('variant', 'held-out loss', 'difference', 'interval', 'seeds', 'note'),
    rows,
    f'Each run at its last evaluation within {seconds:.3g} s of training '
    'steps, when the quickest run ends; without verdict.',
  )


def _failures(results: Results, row: Row) -> str:
  """How often either arm diverged, over the seeds that both have."""
  sides = [
    {run.seed: run for run in results.of(arm_of(row[side]), row['phase'])}
    for side in ('variant', 'baseline')
  ]
  shared = sorted(sides[0].keys() & sides[1].keys())
  failed = [[side[seed].diverged for seed in shared] for side in sides]
  if not np.any(failed):
    return 'none diverged'
  rates = survival.failure_rates(*failed)
  return (
    f'diverged: {rates.variant_rate:.0%} against {rates.baseline_rate:.0%} '
    f'(exact McNemar p {answers.number(rates.p_value)})'
  )


def pairing(results: Results) -> Table:
  """Which test decided, what pairing by seed bought, which runs failed."""
  rows = [
    (
      _against(row),
      PHASES[row['phase']],
      row['metric'],
      row['test'],
      row['pairing']['statement'],
      _failures(results, row),
    )
    for row in results.comparisons
    if not row['exploratory']
    and (row['primary'] or row['metric'] == results.metric)
  ]
  return Table(
    'Tests, pairing and failures',
    ('comparison', 'recipe', 'metric', 'test', 'pairing by seed', 'failures'),
    rows,
  )


def _recipe(values: Mapping[str, Any]) -> str:
  return ', '.join(f'{path.split(".")[-1]} {v:g}' for path, v in values.items())


def learning_rates(results: Results) -> Table | None:
  """What tuning chose for each arm; None where nothing was tuned."""
  chosen = results.tuning.get('chosen')
  if not chosen:
    return None
  rows = []
  for name in results.variants:
    if name in chosen:
      one = chosen[name]
      rows.append(
        (
          name,
          _recipe(one['recipe']) + (' (on the edge)' if one['on_edge'] else ''),
          f'{one["basin_octaves"]:.3g} octaves',
          answers.number(mean_of(results.of(name, PAPER), results.metric)),
          answers.number(mean_of(results.of(name, TUNED), results.metric)),
        )
      )
  return Table(
    'Learning rates',
    (
      'variant',
      'chosen',
      'basin',
      f"{results.metric}, paper's recipe",
      f'{results.metric}, tuned',
    ),
    rows,
    'Chosen on validation, on seeds that judge nothing. Basin: how many '
    'doublings of the rate stay within '
    f'{results.tuning.get("tolerance", math.nan):g} of the best loss.',
  )


def what_ran(results: Results) -> Table:
  """What each arm sets apart from the study's baseline."""
  rows = []
  for arm in results.study.arms:
    seeds = {
      phase: [str(run.seed) for run in results.of(arm.name, phase)]
      for phase in results.phases
    }
    changed = ', '.join(f'{p}={v}' for p, v in arm.overrides.items())
    rows.append(
      (
        arm.name,
        arm.role.replace('_', ' ') or NONE,
        changed or 'nothing: the baseline',
        '; '.join(f'{phase}: {" ".join(s)}' for phase, s in seeds.items()),
      )
    )
  return Table('What was run', ('variant', 'role', 'differs in', 'seeds'), rows)
