"""The folder of a study: its declaration, one folder a cell, and tables.

    study.json                          declaration and hash, before any cell
    tuning.json                         what the learning-rate phase chose
    data/NAME.json                      what is trained and tested on
    cells/IDENTITY/cell.json            what is run here
    cells/IDENTITY/metrics.jsonl        as of any run
    cells/IDENTITY/result.json          with its own sum; marks the cell done
    results.csv, summary.json           made from result files only
    report/

Everything is written beside and renamed, so a kill leaves whole files only.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import pathlib
import secrets
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformer_jax import plugins
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import checks, tuning
from transformer_jax.ablation import study as study_lib
from transformer_jax.ablation.cells import Cell
from transformer_jax.ablation.study import Overrides, Study
from transformer_jax.config import ConfigError
from transformer_jax.training import record

STUDY, TUNING, SUMMARY = 'study.json', 'tuning.json', 'summary.json'
DATA, TABLE = 'data', 'results.csv'
RESULT, METRICS = 'result.json', 'metrics.jsonl'
COLUMNS = ('study', 'variant', 'seed', 'split', 'step', 'metric', 'value')
WRITING = '.writing'  # ends the names of files that are not whole yet
FINISHED, DIVERGED = 'finished', 'diverged'


class Result(NamedTuple):
  """A finished cell: body is result.json, metrics its lines."""

  cell: Cell
  body: dict[str, Any]
  metrics: tuple[dict[str, Any], ...]

  @property
  def diverged(self) -> bool:
    return self.body['status'] == DIVERGED


def write_text(path: pathlib.Path, text: str) -> None:
  """Whole or not at all, whoever else writes the same at the same time."""
  beside = path.with_name(f'{path.name}.{secrets.token_hex(4)}{WRITING}')
  with open(beside, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(beside, path)


def write_json(path: pathlib.Path, body: Any) -> None:
  """As `write_text`."""
  text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
  write_text(path, text + '\n')


def _read_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ConfigError(f'{path} cannot be read: {error}') from error


# The declaration.


def declare(
  folder: pathlib.Path,
  study: Study,
  *,
  seeds: int | None,
  overrides: Overrides | None = None,
  tune: bool = True,
) -> Study:
  """Write the declaration, or find it written; the study as planned there.

  Args:
    folder: of the study; exists.
    study: checked, with the user's overrides.
    seeds: asked for, None for those planned. They are the plan of a new
      folder; on one that is there, more than planned are exploratory.
    overrides: those of the user, to be repeated in commands; None: unknown.
    tune: false where the user took the tuning away, for commands as well.

  Raises:
    ConfigError: the folder is of another study.
  """
  path = folder / STUDY
  if not path.exists():
    planned = study if seeds is None else checks.with_seeds(study, seeds)
    body: dict[str, Any] = dict(
      study=study_lib.to_dict(planned), hash=study_lib.study_hash(planned)
    )
    if overrides is not None:
      body['overrides'] = dict(overrides)
    if not tune:
      body['tune'] = False
    write_json(path, body | _outside(cells_lib.outside(planned)))
  planned = read_study(folder)
  ours, theirs = study_lib.essence(study), study_lib.essence(planned)
  different = [
    name
    for name in sorted(ours.keys() | theirs.keys())
    if study_lib.digest(ours.get(name)) != study_lib.digest(theirs.get(name))
  ]
  if different:
    raise ConfigError(
      f'{folder} holds another study ({planned.name}: its '
      f'{", ".join(different)} differ); take another --workdir'
    )
  checks.check_apart(planned, seeds or planned.seeds)
  return planned


def read_study(folder: str | os.PathLike[str]) -> Study:
  """The declaration in a study's folder.

  Raises:
    ConfigError: there is none, it was changed after it was written, or a
      choice of its arms comes from a file that is not what it was.
  """
  path = pathlib.Path(folder).expanduser() / STUDY
  if not path.exists():
    raise ConfigError(f'{folder} holds no study: no {STUDY}')
  body = _read_json(path)
  try:
    study = study_lib.from_dict(body['study'])
    known = body['hash']
  except (KeyError, TypeError, AttributeError) as error:
    raise ConfigError(f'{path} is no declaration of a study') from error
  if study_lib.study_hash(study) != known:
    raise ConfigError(f'{path} was changed after it was written')
  before = body.get('plugins', {})
  for name, now in cells_lib.outside(study).items():
    if before.get(name) != now:
      raise ConfigError(
        f'{name} is not what {folder} began with: restore its file or take '
        'another --workdir'
      )
  return study


def command(folder: str | os.PathLike[str], study: Study) -> str:
  """What starts this very study: its seeds as planned, its overrides.

  A folder that does not say what the user overrode repeats all that the arms
  share. What it says is repeated whole: a field that only controls of equal
  size vary is the user's to set.
  """
  path = pathlib.Path(folder).expanduser()
  body = _read_json(path / STUDY)
  given = body.get('overrides', study.baseline.keys() - set(study.axes))
  words = [f'--study={study.name}', f'--workdir={folder}']
  words += [f'--seeds={study.seeds}']
  words += ['--tune=false'] * (not body.get('tune', True))
  words += [f'--plugin={module.__file__}' for module in plugins.modules()]
  words += [
    f'--{field}={value}'
    for field, value in study.baseline.items()
    if field in given and study_lib.decides(field)
  ]
  return shlex.join(['python', '-m', 'experiments.ablate', *words])


def _outside(used: dict[str, str]) -> dict[str, dict[str, str]]:
  """What a record says of choices from outside; nothing where there is none."""
  return {'plugins': used} if used else {}


# Cells.


def cell_folder(folder: pathlib.Path, cell: Cell) -> pathlib.Path:
  return folder / 'cells' / cell.identity


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
    **_outside(plugins.used(cell.config)),
  )
  write_json(place / 'cell.json', body)
  return place


def _sums(place: pathlib.Path) -> dict[str, str]:
  """{name: sha256} of what stands beside the result of a cell."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(place.iterdir())
    if path.name != RESULT and not path.name.endswith(WRITING)
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
    **_outside(plugins.used(cell.config)),
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
  except (OSError, ValueError, KeyError, AttributeError):
    return f'{RESULT} cannot be read'
  if study_lib.digest(body) != known or body['identity'] != cell.identity:
    return f'{RESULT} does not match its sum'
  # Results of before have the sum of their metrics only.
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
  """Away with a damaged result, aloud; only for who is to run it again."""
  place = cell_folder(folder, cell)
  if (place / RESULT).exists():
    print(
      f'warning: cell {cell.variant}, seed {cell.seed} ({cell.identity}): '
      f'{damage(folder, cell)}; it is run again',
      file=sys.stderr,
    )
    for path in place.iterdir():
      path.unlink()


def read_result(folder: pathlib.Path, cell: Cell) -> Result | None:
  """The result of a cell; None where there is no whole one."""
  if not is_done(folder, cell):
    return None
  place = cell_folder(folder, cell)
  body = json.loads((place / RESULT).read_text(encoding='utf-8'))
  return Result(cell, body, tuple(record.Metrics(place).lines()))


# Data.


def admit_data(
  folder: pathlib.Path, arms: str, prints: Mapping[str, str]
) -> None:
  """Write down the data of a study where it is new; refuse other data.

  Args:
    folder: of the study.
    arms: which arms share this data, from `cells.data_of`.
    prints: {'training': ..., 'test': ...}, of their content; the first holds
      validation and vocabulary too.

  Raises:
    ConfigError: it is not what the study began with.
  """
  path = folder / DATA / f'{study_lib.digest(arms)[:12]}.json'
  if not path.exists():
    path.parent.mkdir(exist_ok=True)
    write_json(path, dict(arms=arms, **prints))
  # As it is there: another worker may have written it at the same time.
  before = _data(path)
  changed = [name for name, now in prints.items() if before[name] != now]
  if changed:
    whose = f' of the arms with {arms}' * bool(arms)
    raise ConfigError(
      f'{folder}: the {" and ".join(changed)} data{whose} is not what the '
      'study began with; restore it or take another --workdir'
    )


def _data(path: pathlib.Path) -> dict[str, str]:
  try:
    body = json.loads(path.read_text(encoding='utf-8'))
    return {name: str(body[name]) for name in ('arms', 'training', 'test')}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(f'{path} was changed or is damaged: delete it') from error


def read_data(folder: pathlib.Path) -> list[dict[str, str]]:
  """What `admit_data` has written, by arms; empty in a folder of before."""
  found = [_data(path) for path in (folder / DATA).glob('*.json')]
  return sorted(found, key=lambda one: one['arms'])


# Tuning.


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


# Reading a whole study.


def _seeds_begun(folder: pathlib.Path, study: Study) -> list[int]:
  """Planned seeds, and others that any cell was begun with, rising.

  A file that cannot be read names no seed. If its cell is one of those asked
  for, its result says that it is damaged; of a cell of tuning, whose choice
  is made, nothing more is read.
  """
  found = set(range(study.seeds))
  for path in (folder / 'cells').glob('*/cell.json'):
    with contextlib.suppress(ConfigError, KeyError, TypeError, ValueError):
      body = _read_json(path)
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
    ConfigError: one of them is damaged: without it the others would say
      something else.
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
      late = f' with --seeds={cell.seed + 1}' * (cell.seed >= study.seeds)
      raise ConfigError(
        f'{label(cell)}, seed {cell.seed} ({cell_folder(place, cell)}): '
        f'{wrong}; run ablate again{late}'
      )
  return [result for result in found if result is not None]


def read_summary(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The rows of summary.json; ConfigError where the study has none yet."""
  return _read_json(pathlib.Path(folder).expanduser() / SUMMARY)


def label(cell: Cell) -> str:
  """How tables name the arm: tuned runs are told from those of the recipe."""
  return cell.variant + (' (tuned)' if cell.phase == 'tuned' else '')


def table(results: Sequence[Result]) -> str:
  """results.csv: one number a line, in an order that files do not decide."""
  rows: list[Iterable[Any]] = []
  for result in results:
    cell = result.cell
    for line in result.metrics:
      for name, value in line.items():
        if name not in ('step', 'split'):
          rows.append(
            (
              *(cell.study, label(cell), cell.seed),
              *(line['split'], line['step'], name, repr(float(value))),
            )
          )
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(COLUMNS)
  writer.writerows(rows)
  return text.getvalue()
