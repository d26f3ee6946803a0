"""What a run begins from, where that is another run's parameters.

A checkpoint is named by a person once, at the start. The run's config.json
keeps which one it was, so that the same command resumes the same run, and
nothing of the other run is read again once this one has a checkpoint.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformer_jax.config import ConfigError
from transformer_jax.training import manifest
from transformer_jax.training.checkpoint import Checkpoints


class Origin(NamedTuple):
  """A checkpoint that a run began from.

  named: what --init_from said, as a whole path.
  step: of the checkpoint, a folder CHECKPOINTS/STEP.
  checkpoints: the folder that it lies in.
  sha256: of the names and sums of its files.
  """

  named: str
  step: int
  checkpoints: str
  sha256: str

  @property
  def place(self) -> pathlib.Path:
    """The folder of the checkpoint."""
    return pathlib.Path(self.checkpoints, str(self.step))


def admit(folder: pathlib.Path, init_from: str) -> Origin | None:
  """The checkpoint that the run in `folder` begins or began from, if any.

  Args:
    folder: of the run, new or not.
    init_from: WORKDIR or WORKDIR/checkpoints/STEP of another run, or ''.

  Raises:
    ConfigError: the run in the folder began otherwise, or there is no such
      checkpoint.
  """
  named = str(pathlib.Path(init_from).expanduser().resolve())
  if not (folder / 'config.json').exists():
    return _found(named) if init_from else None
  body = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  before = Origin(**body['init_from']) if 'init_from' in body else None
  if (before.named if before else '') != (named if init_from else ''):
    began = f'--init_from={before.named}' if before else 'initial values'
    same = began if before else 'no --init_from'
    raise ConfigError(
      f'{folder} holds a run that began from {began}: give {same} to resume '
      'it, or take another --workdir'
    )
  return before


def _found(named: str) -> Origin:
  """The checkpoint of that name; of a whole run the newest."""
  path = pathlib.Path(named)
  if path.name.isdecimal() and path.parent.name == 'checkpoints':
    folder, steps = path.parent, [int(path.name)]
  else:
    folder = path / 'checkpoints'
    steps = Checkpoints(folder).good(1)
  if not steps or not (folder / str(steps[0])).is_dir():
    raise ConfigError(
      f'--init_from={named} holds no checkpoint: give a run with one, or '
      'WORKDIR/checkpoints/STEP'
    )
  return Origin(named, steps[0], str(folder), _sum(folder / str(steps[0])))


def _sum(step: pathlib.Path) -> str:
  try:
    files = manifest.read(step)['files']
  except (OSError, ValueError):
    raise ConfigError(
      f'checkpoint {step} of --init_from is gone or damaged: put it back, or '
      'take another --workdir and --init_from'
    ) from None
  text = json.dumps(files, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def admit_vocabulary(
  origin: Origin, fingerprint: str, folder: pathlib.Path
) -> None:
  """Refuse ids that meant other pieces there.

  Raises:
    ConfigError: the run began with another vocabulary.
  """
  text = Checkpoints(origin.checkpoints).config(origin.step)
  fingerprints: Mapping[str, str] = json.loads(text).get('fingerprints', {})
  if fingerprints.get('vocabulary') != fingerprint:
    own = pathlib.Path(origin.checkpoints).parent / 'vocabulary'
    raise ConfigError(
      f'--init_from={origin.named} was trained with another vocabulary than '
      f'{folder} has: copy {own} into a new --workdir first'
    )


def verify(origin: Origin) -> None:
  """Refuse a checkpoint that is not what it was at the run's first start.

  Raises:
    ConfigError: then, or when it is gone.
  """
  if _sum(origin.place) != origin.sha256:
    raise ConfigError(
      f'checkpoint {origin.place} is not the one that the run began from: put '
      'that back, or take another --workdir'
    )


def weights(origin: Origin, like: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of the state of that checkpoint, as arrays of the host.

  Args:
    origin: of `admit`.
    like: {field: tree of shapes}, params and statistics.

  Raises:
    ConfigError: the checkpoint is of another model.
  """
  return Checkpoints(origin.checkpoints).restore_parts(dict(like), origin.step)
