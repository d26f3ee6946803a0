"""The declared studies: one module each, with its `STUDY`.

A module's docstring is its lab note: what is expected, what it costs, the
exact command. `python -m experiments.ablate --study=list` shows them. The file
of a `--plugin` may be such a module as well.
"""

import dataclasses
import importlib
import pathlib
import pkgutil
import types

from transformer_jax import plugins
from transformer_jax.ablation.checks import check
from transformer_jax.ablation.study import Study
from transformer_jax.config import ConfigError, closest


def _here() -> list[str]:
  return [module.name for module in pkgutil.iter_modules(__path__)]


def _outside() -> dict[str, types.ModuleType]:
  """{name: module} of the studies that plugins declare.

  Raises:
    ConfigError: a STUDY that is none, or of a name that is taken.
  """
  found: dict[str, types.ModuleType] = {}
  for module in plugins.modules():
    study = getattr(module, 'STUDY', None)
    if study is None:
      continue
    if not isinstance(study, Study):
      raise ConfigError(f'STUDY of {module.__file__} is not a Study')
    if study.name in ('', 'list', *_here(), *found):
      raise ConfigError(
        f'STUDY of {module.__file__} is named {study.name!r}, which is taken: '
        'take another name'
      )
    found[study.name] = module
  return found


def names() -> list[str]:
  """Of all declared studies, those of plugins among them."""
  return sorted([*_here(), *_outside()])


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
  module = _outside().get(name)
  if module is None:
    module = importlib.import_module(f'{__name__}.{name}')
  note = (module.__doc__ or '').strip()
  return check(dataclasses.replace(module.STUDY, name=name, doc=note))


def tuned(name: str) -> str:
  """Text of the tuning.json committed with a study; '' where there is none."""
  path = pathlib.Path(__file__).parent / f'{name}.tuning.json'
  return path.read_text(encoding='utf-8') if path.exists() else ''
