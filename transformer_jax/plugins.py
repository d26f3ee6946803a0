"""Choices from outside the package: one user's file, no fork.

`--plugin=FILE.py` imports the file before any flag is read. The file adds an
entry to a table and the choice to its field, in one call:

    from transformer_jax import plugins
    from transformer_jax.nn import attention

    plugins.add('model.score', 'mine', attention.SCORES, attention.Score(mine))

From then on `--model.score=mine` is a choice like the others: in `--help`, in
sweeps, in studies, in what is recorded of a run.
"""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

from transformer_jax import config as config_lib
from transformer_jax.config import ConfigError

_LOADED: set[pathlib.Path] = set()


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
  config_lib.add_choice(path, name)
  table[name] = entry


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
  try:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
  except Exception as error:
    raise ConfigError(
      f'--plugin={file} cannot be imported: {type(error).__name__}: {error}'
    ) from error
  _LOADED.add(path)
