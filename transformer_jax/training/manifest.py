"""A folder's manifest: the sha256 of every file, and a number that goes along.

Readers of large arrays do not check what they read; `damage` checks every byte.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

NAME = 'manifest.json'


def _digest(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _seal(body: Mapping[str, Any]) -> str:
  text = json.dumps(body, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write(folder: pathlib.Path, *, step: int, metric: float | None) -> None:
  """Name every file of a finished step with its sha256, atomically."""
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  body = {
    'step': step,
    'metric': metric,
    'files': {str(p.relative_to(folder)): _digest(p) for p in files},
  }
  _put(folder, body)


def score(folder: pathlib.Path, metric: float) -> None:
  """Gives a step another metric; its files are not read again."""
  _put(folder, read(folder) | {'metric': metric})


def _put(folder: pathlib.Path, body: Mapping[str, Any]) -> None:
  # Written beside and renamed: a manifest is whole or absent.
  unfinished = folder / (NAME + '.unfinished')
  with unfinished.open('w') as file:
    json.dump({**body, 'sha256': _seal(body)}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  unfinished.rename(folder / NAME)


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The manifest of a step; ValueError or OSError if it cannot be trusted."""
  body = json.loads((folder / NAME).read_text())
  if not isinstance(body, dict) or body.pop('sha256', '') != _seal(body):
    raise ValueError('the manifest does not match its own sum')
  return body


def damage(folder: pathlib.Path) -> str:
  """What is wrong with a step's folder; '' if every byte is as written."""
  try:
    body = read(folder)
  except OSError:
    return f'{NAME} is missing'
  except ValueError:
    return f'{NAME} is damaged'
  if str(body['step']) != folder.name:
    return f'it was written as step {body["step"]}'
  for name, digest in body['files'].items():
    try:
      if _digest(folder / name) != digest:
        return f'{name} is damaged'
    except OSError:
      return f'{name} is missing'
  return ''
