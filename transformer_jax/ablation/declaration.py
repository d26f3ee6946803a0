"""What a study began with: its declaration and its data.

The first worker writes them down; later ones must match them.
"""

import json
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from transformer_jax import plugins
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import checks
from transformer_jax.ablation import study as study_lib
from transformer_jax.ablation.folder import (
  DATA,
  STUDY,
  outside,
  read_json,
  write_json,
)
from transformer_jax.ablation.study import Overrides, Study
from transformer_jax.config import ConfigError


def declare(
  folder: pathlib.Path,
  study: Study,
  *,
  seeds: int | None,
  overrides: Overrides | None = None,
  tune: bool = True,
  threshold: float = 0.0,
) -> Study:
  """Write the declaration, or find it written; the study as planned there.

  Args:
    folder: of the study; exists.
    study: checked, with the user's overrides.
    seeds: asked for; None: those of the study. A new folder plans these. In a
      folder that exists, seeds beyond its plan are exploratory.
    overrides: those of the user; None: unknown. Commands repeat them.
    tune: false where the user gave --tune=false. Commands repeat it.
    threshold: what the user gave, 0 for none. Commands repeat it.

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
    if threshold:
      body['threshold'] = threshold
    write_json(path, body | outside(cells_lib.outside(planned)))
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
  body = read_json(path)
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
  """The command that repeats this study: its planned seeds and its overrides.

  Every override is repeated that the folder says the user gave, also of a field
  that only controls of equal size vary. Of a folder that does not say so, every
  field is repeated that all arms share.
  """
  path = pathlib.Path(folder).expanduser()
  body = read_json(path / STUDY)
  given = body.get('overrides', study.baseline.keys() - set(study.axes))
  words = [f'--study={study.name}', f'--workdir={folder}']
  words += [f'--seeds={study.seeds}']
  words += ['--tune=false'] * (not body.get('tune', True))
  if 'threshold' in body:
    words.append(f'--threshold={body["threshold"]}')
  words += [f'--plugin={module.__file__}' for module in plugins.modules()]
  words += [
    f'--{field}={value}'
    for field, value in study.baseline.items()
    if field in given and study_lib.decides(field)
  ]
  return shlex.join(['python', '-m', 'experiments.ablate', *words])


def admit_data(
  folder: pathlib.Path, arms: str, prints: Mapping[str, str]
) -> None:
  """Write down the data of a new study; refuse other data in an old one.

  Args:
    folder: of the study.
    arms: which arms share this data, from `cells.data_of`.
    prints: {'training': hash, 'test': hash} of the content. 'training' covers
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
  """What `admit_data` has written, by arms; empty in an older folder."""
  found = [_data(path) for path in (folder / DATA).glob('*.json')]
  return sorted(found, key=lambda one: one['arms'])
