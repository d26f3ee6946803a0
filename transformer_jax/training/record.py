"""The folder of a run, but for its checkpoints: config and metrics."""

import importlib.metadata
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import FIELDS, difference, from_json, to_json

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
  'sentencepiece',
)


# Programs of the same sums in another order: a run that goes on with another
# one is not, to the last bit, the run that was never broken. `auto` goes along
# to another kind of device.
ORDER_OF_SUMS = ('model.attention_implementation', 'model.layer_loop')


def write_atomically(path: pathlib.Path, text: str) -> None:
  """The whole text or, after a kill or on a full disk, what was there."""
  beside = path.with_name(path.name + '.writing')
  with open(beside, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(beside, path)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
  """Installed version of each package; by default what a result depends on."""
  found = {}
  for package in packages:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = 'absent'
  return found


def open_folder(workdir: str) -> pathlib.Path:
  """The run's folder, made and tried by writing to it.

  Raises:
    ConfigError: it cannot be made or written to.
  """
  folder = pathlib.Path(workdir).expanduser()
  # Several processes may try at once.
  trial = folder / f'.trial{os.getpid()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    trial.write_bytes(b'x' * 4096)
    trial.unlink()
  except OSError as error:
    raise ConfigError(
      f'workdir {folder} cannot be written: {error.strerror}; take another '
      '--workdir or make room'
    ) from error
  return folder


def read_config(workdir: str | os.PathLike[str]) -> Config:
  """The config of the run in a folder.

  Raises:
    ConfigError: there is no run, or its config cannot be read.
  """
  path = pathlib.Path(workdir).expanduser() / 'config.json'
  try:
    body = json.loads(path.read_text(encoding='utf-8'))
    return from_json(json.dumps(body['config']))
  except FileNotFoundError as error:
    raise ConfigError(f'{workdir} holds no run: no config.json') from error
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(f'{path} cannot be read: {error}') from error


def same_source(old: str, new: str) -> bool:
  """Whether two data.source can be the same data: a folder can move.

  What is in it is for `admit_data` to compare.

  >>> same_source('files:corpus', 'files:/data/corpus')
  True
  """
  kinds = {source.partition(':')[0] for source in (old, new)}
  return old == new or kinds == {'files'}


def admit(folder: pathlib.Path, config: Config) -> None:
  """Refuse a folder that holds a run with another result.

  Raises:
    ConfigError: names each field that would change the result.
  """
  if not (folder / 'config.json').exists():
    return
  changed = [
    f'{path} {old} -> {new}'
    for path, (old, new) in difference(read_config(folder), config).items()
    if (FIELDS[path].affects == 'result' or path in ORDER_OF_SUMS)
    and not (path == 'data.source' and same_source(old, new))
  ]
  if changed:
    raise ConfigError(
      f'{folder} holds a run of another config: {", ".join(changed)}; take '
      'another --workdir, or the same values to resume'
    )


def admit_data(folder: pathlib.Path, fingerprints: Mapping[str, str]) -> None:
  """Refuse to go on with other data, vocabulary or plugin than before.

  Raises:
    ConfigError: names what is not the same.
  """
  path = folder / 'config.json'
  if not path.exists():
    return
  before = json.loads(path.read_text(encoding='utf-8'))['fingerprints']
  for name, now in fingerprints.items():
    if before.get(name) != now:
      raise ConfigError(
        f'the {name} of {folder} is not what the run began with; restore it '
        'or take another --workdir'
      )


def describe(
  config: Config,
  fingerprints: Mapping[str, str],
  *,
  init_from: Mapping[str, Any] | None = None,
) -> str:
  """What config.json says, as text.

  Args:
    config: of the run.
    fingerprints: of its data and vocabulary.
    init_from: the checkpoint that it began from, if it did.
  """
  body: dict[str, Any] = dict(
    config=json.loads(to_json(config)),
    versions=versions(),
    fingerprints=dict(fingerprints),
  )
  if init_from is not None:
    body['init_from'] = dict(init_from)
  return json.dumps(body, indent=2, ensure_ascii=False) + '\n'


class MetricsFile:
  """metrics.jsonl: one object a line, each (step, split) once."""

  NAME = 'metrics.jsonl'

  def __init__(self, folder: pathlib.Path):
    self._path = folder / self.NAME

  def cut_back(self, step: int, *, without: str = '') -> None:
    """Forget what was written after `step`, the one that was restored.

    Args:
      step: the last one that counts.
      without: a split whose lines of that very step are forgotten as well.
    """
    if self._path.exists():
      kept = [
        line
        for line in self.lines()
        if line['step'] <= step
        and (line['step'], line['split']) != (step, without)
      ]
      text = ''.join(json.dumps(line) + '\n' for line in kept)
      write_atomically(self._path, text)

  def lines(self) -> Iterator[dict[str, Any]]:
    """Lines up to the first that is not whole, as a kill leaves one."""
    if not self._path.exists():
      return
    text = self._path.read_text(encoding='utf-8', errors='replace')
    for line in text.splitlines():
      try:
        body = json.loads(line)
      except ValueError:
        return
      if not (isinstance(body, dict) and {'step', 'split'} <= body.keys()):
        return
      yield body

  def append(
    self, rows: Sequence[tuple[int, str, Mapping[str, float | str]]]
  ) -> None:
    """Adds (step, split, {name: value}) rows, and sees them to the disk."""
    if not rows:
      return
    with open(self._path, 'a', encoding='utf-8') as file:
      for step, split, values in rows:
        file.write(json.dumps(dict(step=step, split=split, **values)) + '\n')
      file.flush()
      os.fsync(file.fileno())
