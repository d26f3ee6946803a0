"""What the report is made of: result files of a study's folder, in memory."""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformer_jax.ablation import declaration, folder
from transformer_jax.ablation import results as results_lib
from transformer_jax.ablation.study import Study, study_hash
from transformer_jax.config import Config, ConfigError

PAPER, TUNED = 'paper', 'tuned'
PHASES = {PAPER: "the paper's recipe", TUNED: 'tuned learning rate'}

Row = Mapping[str, Any]  # of summary.json
# {split: {metric: [(step, value), ...]}}
Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]


class Run(NamedTuple):
  """One finished run: its result, its curves and where its maps lie."""

  variant: str
  seed: int
  phase: str
  config: Config
  identity: str
  diverged: bool
  body: Mapping[str, Any]
  curves: Curves
  attention: pathlib.Path | None

  @property
  def metrics(self) -> Mapping[str, Any]:
    return self.body['metrics']

  def value(self, metric: str) -> float:
    """The metric at the last step; nan where there is none.

    A diverged run counts as it does in the comparisons.
    """
    if self.diverged and metric != 'steps_to_threshold':
      return results_lib.diverged_value(metric, self.metrics)
    return as_number(self.metrics.get(metric))

  def number(self, name: str) -> float:
    """A number of the result; nan where the runner could not measure it."""
    return as_number(self.body.get(name))


class Results(NamedTuple):
  """A study with all that its folder says."""

  path: pathlib.Path
  study: Study
  runs: tuple[Run, ...]
  comparisons: tuple[Row, ...]
  tuning: Mapping[str, Any]

  @property
  def hash(self) -> str:
    return study_hash(self.study)

  @property
  def variants(self) -> tuple[str, ...]:
    """Names of the arms, the baseline first."""
    return tuple(arm.name for arm in self.study.arms)

  def rows(self, phase: str, *, exploratory: bool = False) -> list[Row]:
    """Rows of the summary: by planned seeds, or by all that there are."""
    return [
      row
      for row in self.comparisons
      if row['phase'] == phase and row['exploratory'] == exploratory
    ]

  def of(self, variant: str, phase: str) -> tuple[Run, ...]:
    """Finished runs of an arm, by seed."""
    return tuple(
      run for run in self.runs if run.variant == variant and run.phase == phase
    )

  @property
  def counted(self) -> 'Results':
    """The same with only those runs that its verdicts count.

    Runs of seeds that were not planned, and runs of the next look, are left
    out. A phase in which nothing is compared keeps all its runs.
    """
    planned = set(range(self.study.seeds))
    kept: list[Run] = []
    for phase in self.phases:
      every = [{run.seed for run in self.of(n, phase)} for n in self.variants]
      seeds = sorted(planned.intersection(*every))
      rows = self.rows(phase)
      kept += [
        run
        for run in self.runs
        if run.phase == phase
        and (not rows or run.seed in seeds[: rows[0]['seeds']])
      ]
    return self._replace(runs=tuple(kept))

  @property
  def phases(self) -> tuple[str, ...]:
    """Which verdicts there are: by the paper's recipe, tuned, or both."""
    ran = {run.phase for run in self.runs}
    return tuple(phase for phase in PHASES if phase in ran)

  @property
  def metric(self) -> str:
    """The metric of the first primary comparison: what pictures show."""
    return self.study.primary[0].metric if self.study.primary else 'loss'


def as_number(value: Any) -> float:
  """A number of a JSON file; null, which stands for none, becomes nan."""
  return math.nan if value is None else float(value)


def median_of(runs: Sequence[Run], name: str) -> float:
  """Median of a number of results; nan where no run has it."""
  known = [x for x in (run.number(name) for run in runs) if math.isfinite(x)]
  return statistics.median(known) if known else math.nan


def _curves(lines: Sequence[Mapping[str, Any]]) -> Curves:
  curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
  for line in lines:
    for name, value in line.items():
      if name not in ('step', 'split') and math.isfinite(value):
        named = curves.setdefault(str(line['split']), {}).setdefault(name, [])
        named.append((int(line['step']), float(value)))
  return curves


def _run(place: pathlib.Path, result: results_lib.Result) -> Run:
  cell = result.cell
  attention = folder.cell_folder(place, cell) / folder.MAPS
  return Run(
    variant=cell.variant,
    seed=cell.seed,
    phase=cell.phase,
    config=cell.config,
    identity=cell.identity,
    diverged=result.diverged,
    body=result.body,
    curves=_curves(result.metrics),
    attention=attention if attention.exists() else None,
  )


def read(workdir: str | pathlib.Path) -> Results:
  """The folder of a study that has come to its summary.

  Raises:
    ConfigError: it holds no study, no summary yet, or a damaged file.
  """
  place = pathlib.Path(workdir).expanduser()
  study = declaration.read_study(place)
  found = results_lib.read_results(place, study)
  if not found or not (place / folder.SUMMARY).exists():
    raise ConfigError(
      f'{place}: study {study.name} has no results yet; finish it with '
      f'{declaration.command(place, study)}'
    )
  return Results(
    path=place,
    study=study,
    runs=tuple(_run(place, result) for result in found),
    comparisons=tuple(results_lib.read_summary(place)),
    tuning=results_lib.read_tuning(place, study),
  )
