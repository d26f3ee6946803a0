"""The folder of a study: its declaration, one folder a cell, and tables.

    study.json                          declaration and hash, before any cell
    tuning.json                         what the learning-rate phase chose
    data/NAME.json                      what is trained and tested on
    cells/IDENTITY/cell.json            what is run here
    cells/IDENTITY/metrics.jsonl        as of any run
    cells/IDENTITY/probes.jsonl         what probes saw, one line a step
    cells/IDENTITY/generated.json       scores of what the run wrote by itself
    cells/IDENTITY/attention.npz        maps of one sentence; first seed only
    cells/IDENTITY/views.json           a closer look; first seed only
    cells/IDENTITY/result.json          with its own sum; marks the cell done
    populations/NAME/                   lock and checkpoints of cells that are
                                        trained together; emptied at the end
    results.csv, summary.json           made from result files only
    report/

A file is written under another name and renamed, so a kill leaves whole files
only. Lines are added to metrics.jsonl and probes.jsonl as they come.
"""

import json
import os
import pathlib
import secrets
import shutil
from typing import Any

from transformer_jax.ablation.cells import Cell
from transformer_jax.config import ConfigError

STUDY, TUNING, SUMMARY = 'study.json', 'tuning.json', 'summary.json'
DATA, TABLE = 'data', 'results.csv'
RESULT, METRICS = 'result.json', 'metrics.jsonl'
PROBED, GENERATED = 'probes.jsonl', 'generated.json'
MAPS, VIEWED = 'attention.npz', 'views.json'
POPULATIONS = 'populations'
WRITING = '.writing'  # ends the names of files that are not whole yet


def cell_folder(folder: pathlib.Path, cell: Cell) -> pathlib.Path:
  return folder / 'cells' / cell.identity


def write_text(path: pathlib.Path, text: str) -> None:
  """Whole or not at all, even where others write the same file at once."""
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


def read_json(path: pathlib.Path) -> Any:
  """The inverse; ConfigError where the file is not whole or not there."""
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ConfigError(f'{path} cannot be read: {error}') from error


def empty(place: pathlib.Path, *, keep: str) -> None:
  """Delete all that a folder holds, but names that begin with `keep`."""
  for path in place.iterdir():
    if path.name.startswith(keep):
      continue
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)


def outside(used: dict[str, str]) -> dict[str, dict[str, str]]:
  """What a record says of the choices that plugins add; {} without any."""
  return {'plugins': used} if used else {}
