"""Sentences of any TFDS translation dataset, read without TensorFlow."""

import dataclasses
import hashlib
import importlib
import os
import shlex
from collections.abc import Iterator
from typing import Any

from transformer_jax.config import ConfigError, DataConfig
from transformer_jax.data.text import (
  TextSource,
  another,
  languages_of,
  one_line,
)


class TfdsText(TextSource):
  """A TFDS data set with a Translation feature, read without TensorFlow."""

  def __init__(self, name: str, data: DataConfig):
    self._name = name
    self._data = data
    self.languages = languages_of(data.pair)
    self._builder = _tfds_builder(name, os.path.expanduser(data.tfds_dir))
    self._feature = self._translation()

  def _translation(self) -> str | None:
    """Name of the Translation feature; None when a row is one."""
    import tensorflow_datasets as tfds

    features = self._builder.info.features
    found = {None: features}
    if isinstance(features, tfds.features.FeaturesDict):
      found |= dict(features.items())
    for name, feature in found.items():
      if isinstance(feature, tfds.features.Translation):
        absent = [x for x in self.languages if x not in feature]
        if absent:
          raise ConfigError(
            f'tfds:{self._name} has no language {absent[0]!r} of '
            f'data.pair={self._data.pair}; it has: {", ".join(feature)}'
          )
        return name
    raise ConfigError(
      f'tfds:{self._name} has no Translation feature; it has: '
      f'{", ".join(str(name) for name in found if name)}'
    )

  def _is_prepared(self) -> bool:
    # Not builder.is_prepared(): that warns about what is simply not there.
    record = os.path.join(str(self._builder.data_dir), 'dataset_info.json')
    return os.path.exists(record)

  def prepare(self) -> None:
    if self._is_prepared():
      return
    from tensorflow_datasets.core.download import (
      download_manager,
      extractor,
      util,
    )

    try:
      self._builder.download_and_prepare()
    except ImportError as error:
      raise ConfigError(
        f'tfds:{self._name} needs TensorFlow to be prepared ({error}): '
        "pip install -e '.[tf]', once, for this command"
      ) from None
    except (
      OSError,  # No network, no room, no right to write.
      AssertionError,  # Files that have to be fetched by hand.
      util.DownloadError,
      download_manager.NonMatchingChecksumError,
      extractor.ExtractError,
    ) as error:
      raise ConfigError(
        f'tfds:{self._name} cannot be prepared in {self._data.tfds_dir}: '
        f'{_first_line(error)}; mend this and run the same command again'
      ) from None

  def _info(self, split: str) -> Any:
    """What TFDS knows of `split`."""
    builder, data = self._builder, self._data
    if not self._is_prepared():
      words = [
        f'--data.{field.name}={getattr(data, field.name)}'
        for field in dataclasses.fields(data)
        if getattr(data, field.name) != field.default
      ]
      raise ConfigError(
        f'tfds:{self._name} is not prepared in {data.tfds_dir}; run: python '
        f'-m experiments.prepare {shlex.join(words)}'
      )
    kind = builder.info.file_format
    if kind is None or kind.value != 'array_record':
      raise ConfigError(
        f'tfds:{self._name} in {data.tfds_dir} is stored as '
        f'{kind.value if kind else "nothing known"}, and only array_record '
        'is read: prepare it into another --data.tfds_dir'
      )
    try:
      found = builder.info.splits[split]  # or a part of one, `train[:10%]`
    except (ValueError, AssertionError):
      raise ConfigError(
        f'no split {split!r} in tfds:{self._name}; there is: '
        f'{", ".join(builder.info.splits)}, and parts of them such as '
        f'{next(iter(builder.info.splits))}[:10%]'
        f'{another(split, builder.info.splits, data)}'
      ) from None
    if not found.num_examples:
      raise ConfigError(f'split {split!r} of tfds:{self._name} has no pairs')
    return found

  def check(self, split: str) -> None:
    self._info(split)

  def size(self, split: str) -> int:
    return self._info(split).num_examples

  def identity(self, split: str) -> str:
    # A part is told from another by its name, a whole split by its files.
    named = split.partition('[')[2]
    read_as = '-'.join(self.languages) + named + ', each row one line'
    digest = hashlib.sha256(read_as.encode())
    for path in sorted(map(str, self._info(split).filepaths)):
      with open(path, 'rb') as file:
        digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()

  def pairs(self, split: str) -> Iterator[tuple[str, str]]:
    wanted = self.size(split)
    rows = self._builder.as_data_source(split=split)
    # Some file formats lose rows without a word.
    if len(rows) != wanted:
      raise ConfigError(
        f'tfds:{self._name} {split} holds {len(rows)} rows where its own '
        f'record says {wanted}: prepare it again'
      )
    for number, row in enumerate(rows):
      pair = row if self._feature is None else row[self._feature]
      source, target = (pair[language] for language in self.languages)
      try:
        yield one_line(_decoded(source)), one_line(_decoded(target))
      except UnicodeDecodeError:
        raise ConfigError(
          f'tfds:{self._name} {split}, row {number}: not valid UTF-8'
        ) from None


def _decoded(text: bytes | str) -> str:
  return text.decode() if isinstance(text, bytes) else str(text)


def _tfds_builder(name: str, folder: str) -> Any:
  """The builder of `name`, registered or found among prepared files."""
  import tensorflow_datasets as tfds

  # Older translation sets (WMT among them) register only on this import.
  importlib.import_module('tensorflow_datasets.translate')
  try:
    try:
      return tfds.builder(name, data_dir=folder, file_format='array_record')
    except ValueError as error:
      if 'File format' not in str(error):
        raise
      # A copy in another format: it is refused where it is to be read.
      return tfds.builder(name, data_dir=folder)
  except (ValueError, AssertionError) as error:
    # `Failed to construct ...": REASON. More lines`: the reason is enough.
    reason = str(error).split('\n', 1)[0].rpartition('": ')[2]
    raise ConfigError(
      f'data.source=tfds:{name}: {reason.split(". ")[0].rstrip(".")}'
    ) from None
  except OSError as error:
    raise ConfigError(
      f'data.source=tfds:{name} in {folder}: {_first_line(error)}'
    ) from None


def _first_line(error: Exception) -> str:
  """What an error of the system or of TFDS says, in a line."""
  text = getattr(error, 'strerror', None) or str(error).strip()
  return (text or type(error).__name__).splitlines()[0]
