"""Choices from outside the package: one user's file, no fork.

`--plugin=FILE.py` imports the file before any flag is read. The file adds an
entry to a table and the choice to its field, in one call:

    from transformer_jax import plugins
    from transformer_jax.nn import attention

    plugins.add('model.score', 'mine', attention.SCORES, attention.Score(mine))

From then on `--model.score=mine` is a choice like the others: in `--help`, in
sweeps, in studies, in what is recorded of a run. A file that holds a `STUDY`
declares it: `--study=NAME` of `experiments.ablate` finds it by its name.

What the file says is part of what a run is: its sum stands beside every choice
that it adds, and with other text there the results count as another's. What
the file imports is not looked at.
"""

import hashlib
import importlib.util
import pathlib
import types
from collections.abc import Sequence
from typing import Any

from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import add_choice, flatten

_LOADED: dict[pathlib.Path, types.ModuleType] = {}
_SUMS: dict[str, str] = {}  # PATH=CHOICE -> sha256 of the file that added it
_reading: list[str] = []  # sha256 of the file that is being imported


def add(path: str, name: str, table: dict[str, Any], entry: Any) -> None:
  """A choice and what it stands for.

  Args:
    path: of the field, such as model.score.
    name: of the choice.
    table: the dictionary beside the maths that the field looks into.
    entry: its new value.

  Raises:
    ConfigError: the field has no named values, or this one already.
  """
  add_choice(path, name)
  table[name] = entry
  if _reading:
    _SUMS[f'{path}={name}'] = _reading[-1]


def load(arguments: Sequence[str]) -> None:
  """Imports the file of each `--plugin=FILE` among the words, once.

  Raises:
    ConfigError: there is no such file, or it cannot be imported.
  """
  words = iter(arguments)
  for word in words:
    flag, equals, value = word.partition('=')
    if flag.lstrip('-') == 'plugin' and flag.startswith('-'):
      _import(value if equals else next(words, ''))


def used(config: Config) -> dict[str, str]:
  """{'plugin PATH=CHOICE': sha256 of its file}, of a config's choices."""
  chosen = [f'{p}={value}' for p, value in flatten(config).items()]
  return {f'plugin {one}': _SUMS[one] for one in chosen if one in _SUMS}


def modules() -> list[types.ModuleType]:
  """Those that were loaded."""
  return list(_LOADED.values())


def loaded(file: str) -> bool:
  return _absolute(file) in _LOADED


def _absolute(file: str) -> pathlib.Path:
  return pathlib.Path(file).expanduser().resolve()


def _import(file: str) -> None:
  path = _absolute(file)
  if path in _LOADED:
    return
  if path.suffix != '.py' or not path.is_file():
    raise ConfigError(f'--plugin={file} is not a Python file')
  spec = importlib.util.spec_from_file_location(f'plugin_{path.stem}', path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  _reading.append(hashlib.sha256(path.read_bytes()).hexdigest())
  try:
    spec.loader.exec_module(module)
  except Exception as error:
    raise ConfigError(
      f'--plugin={file} cannot be imported: {type(error).__name__}: {error}'
    ) from error
  finally:
    _reading.pop()
  _LOADED[path] = module
