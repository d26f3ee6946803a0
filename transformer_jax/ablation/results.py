"""Results of cells: written one by one, read as a whole study."""

import contextlib
import csv
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformer_jax import plugins
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import study as study_lib
from transformer_jax.ablation import tuning
from transformer_jax.ablation.cells import Cell
from transformer_jax.ablation.folder import (
  METRICS,
  RESULT,
  SUMMARY,
  TUNING,
  WRITING,
  cell_folder,
  outside,
  read_json,
  write_json,
)
from transformer_jax.ablation.study import Overrides, Study
from transformer_jax.config import ConfigError
from transformer_jax.training import record

COLUMNS = ('study', 'variant', 'seed', 'split', 'step', 'metric', 'value')
FINISHED, DIVERGED = 'finished', 'diverged'


class Result(NamedTuple):
  """A finished cell: body is result.json, metrics its lines."""

  cell: Cell
  body: dict[str, Any]
  metrics: tuple[dict[str, Any], ...]

  @property
  def diverged(self) -> bool:
    return self.body['status'] == DIVERGED


def begin(folder: pathlib.Path, study: Study, cell: Cell) -> pathlib.Path:
  """The folder of a cell, made, with cell.json."""
  place = cell_folder(folder, cell)
  place.mkdir(parents=True, exist_ok=True)
  body = dict(
    identity=cell.identity,
    study=cell.study,
    variant=cell.variant,
    seed=cell.seed,
    phase=cell.phase,
    exploratory=cells_lib.is_exploratory(study, cell),
    config=study_lib.deviations(cell.config),
    **outside(plugins.used(cell.config)),
  )
  write_json(place / 'cell.json', body)
  return place


def _sums(place: pathlib.Path) -> dict[str, str]:
  """{name: sha256} of what stands beside the result of a cell."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(place.iterdir())
    if path.name != RESULT
    and not path.name.endswith(WRITING)
    and path.is_file()
  }


def write_result(
  folder: pathlib.Path, cell: Cell, body: Mapping[str, Any]
) -> None:
  """Marks the cell done; its other files are on disk by now."""
  place = cell_folder(folder, cell)
  whole = dict(
    identity=cell.identity,
    variant=cell.variant,
    seed=cell.seed,
    phase=cell.phase,
    config=study_lib.deviations(cell.config),
    **outside(plugins.used(cell.config)),
    **body,
    files_sha256=_sums(place),
  )
  write_json(place / RESULT, whole | dict(sha256=study_lib.digest(whole)))


def damage(folder: pathlib.Path, cell: Cell) -> str:
  """What is wrong with a cell that has a result; '' for a whole one."""
  place = cell_folder(folder, cell)
  try:
    body = json.loads((place / RESULT).read_text(encoding='utf-8'))
    known = body.pop('sha256')
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return f'{RESULT} cannot be read'
  if study_lib.digest(body) != known or body['identity'] != cell.identity:
    return f'{RESULT} does not match its sum'
  # Older results have the sum of their metrics only.
  known = body.get('files_sha256', {METRICS: body.get('metrics_sha256')})
  now = _sums(place)
  for name, value in known.items():
    if now.get(name, '') != value:
      missing = 'is missing' if name not in now else 'does not match its sum'
      return f'{name} {missing}'
  return ''


def is_done(folder: pathlib.Path, cell: Cell) -> bool:
  """Whether the cell has a whole result."""
  there = (cell_folder(folder, cell) / RESULT).exists()
  return there and not damage(folder, cell)


def clear(folder: pathlib.Path, cell: Cell) -> None:
  """Delete a damaged result and say so; for the worker that runs it again."""
  place = cell_folder(folder, cell)
  if (place / RESULT).exists():
    print(
      f'warning: cell {cell.variant}, seed {cell.seed} ({cell.identity}): '
      f'{damage(folder, cell)}; it is run again',
      file=sys.stderr,
    )
    shutil.rmtree(place)


def read_result(folder: pathlib.Path, cell: Cell) -> Result | None:
  """The result of a cell; None where there is no whole one."""
  if not is_done(folder, cell):
    return None
  place = cell_folder(folder, cell)
  body = json.loads((place / RESULT).read_text(encoding='utf-8'))
  return Result(cell, body, tuple(record.MetricsFile(place).lines()))


def read_tuning(folder: pathlib.Path, study: Study) -> dict[str, Any]:
  """tuning.json, empty before it is there.

  Raises:
    ConfigError: it is not what was written for this study.
  """
  path = folder / TUNING
  if not path.exists():
    return {}
  try:
    return tuning.read(study, path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ConfigError(f'{path} was changed or is damaged: delete it') from error


def recipes(folder: pathlib.Path, study: Study) -> dict[str, Overrides] | None:
  """variant -> what tuning chose, None before it has."""
  body = read_tuning(folder, study)
  if not body:
    return None
  return {name: one['recipe'] for name, one in body['chosen'].items()}


def _seeds_begun(folder: pathlib.Path, study: Study) -> list[int]:
  """Planned seeds, and others that any cell was begun with, rising.

  A file that cannot be read is passed over. If its cell is asked for, its
  result is found damaged. A cell of tuning is not read again after the choice.
  """
  found = set(range(study.seeds))
  for path in (folder / 'cells').glob('*/cell.json'):
    with contextlib.suppress(ConfigError, KeyError, TypeError, ValueError):
      body = read_json(path)
      if body['phase'] != 'tune':
        found.add(int(body['seed']))
  return sorted(found)


def read_results(
  folder: str | os.PathLike[str], study: Study, *, look: int | None = None
) -> list[Result]:
  """Results of the paper and tuned phases, by seed and then by arm.

  Args:
    folder: of the study.
    study: as it is planned there.
    look: of seeds below this one only.

  Raises:
    ConfigError: one of them is damaged: without it the verdicts could be
      others.
  """
  place = pathlib.Path(folder).expanduser()
  begun = _seeds_begun(place, study)
  seeds = [seed for seed in begun if look is None or seed < look]
  every = cells_lib.cells(study, seeds, recipes(place, study))
  found = []
  for cell in every:
    found.append(read_result(place, cell))
    there = found[-1] is None and (cell_folder(place, cell) / RESULT).exists()
    # Another worker may have just finished it.
    if there and (wrong := damage(place, cell)):
      # With fewer seeds ablate would not come to this cell.
      needed = max(study.seeds, cell.seed + 1)
      raise ConfigError(
        f'{cell.label}, seed {cell.seed} ({cell_folder(place, cell)}): '
        f'{wrong}; run ablate again with --seeds={needed}'
      )
  return [result for result in found if result is not None]


def read_summary(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The rows of summary.json; ConfigError where the study has none yet."""
  return read_json(pathlib.Path(folder).expanduser() / SUMMARY)


def diverged_value(metric: str, metrics: Mapping[str, Any]) -> float:
  """What a diverged run counts as: a model that knows frequencies only.

  Args:
    metric: what is compared.
    metrics: of a result on the same data.
  """
  return float(metrics['unigram_loss']) if metric == 'loss' else 0.0


def table(results: Sequence[Result]) -> str:
  """results.csv: one number a line, in the order of the results."""
  rows: list[Iterable[Any]] = []
  for result in results:
    cell = result.cell
    for line in result.metrics:
      for name, value in line.items():
        if name not in ('step', 'split'):
          rows.append(
            (
              *(cell.study, cell.label, cell.seed),
              *(line['split'], line['step'], name, repr(float(value))),
            )
          )
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(COLUMNS)
  writer.writerows(rows)
  return text.getvalue()
