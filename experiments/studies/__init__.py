"""The declared studies: one module each, with its `STUDY`.

A module's docstring is its lab note: what is expected, what it costs, the
exact command. `python -m experiments.ablate --study=list` shows them.
"""

import dataclasses
import importlib
import pathlib
import pkgutil

from transformer_jax.ablation.checks import check
from transformer_jax.ablation.study import Study
from transformer_jax.config import ConfigError, closest

DEFAULT = 'paper'


def names() -> list[str]:
  """Of all declared studies."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Study:
  """A declared study, checked, with its lab note.

  Raises:
    ConfigError: there is none of that name, or it cannot be run.
  """
  known = names()
  if name not in known:
    raise ConfigError(
      f'--study={name} is not one of {", ".join(known)}{closest(name, known)}'
    )
  module = importlib.import_module(f'{__name__}.{name}')
  note = (module.__doc__ or '').strip()
  return check(dataclasses.replace(module.STUDY, name=name, doc=note))


def tuned(name: str) -> str:
  """Text of the tuning.json committed with a study; '' where there is none."""
  path = pathlib.Path(__file__).parent / f'{name}.tuning.json'
  return path.read_text(encoding='utf-8') if path.exists() else ''
