"""Where sentences come from: parallel files, any TFDS translation dataset."""

import abc
import codecs
import dataclasses
import difflib
import gzip
import hashlib
import importlib
import os
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, BinaryIO, NamedTuple

from transformer_jax.config import ConfigError, DataConfig

_CHUNK = 1 << 20  # bytes read at once


class TextSource(abc.ABC):
  """Pairs of sentences by split, streamed."""

  languages: tuple[str, str]

  @abc.abstractmethod
  def prepare(self) -> None:
    """Download what can be downloaded; training never does."""

  @abc.abstractmethod
  def check(self, split: str) -> None:
    """Raise ConfigError unless `split` exists."""

  @abc.abstractmethod
  def size(self, split: str) -> int:
    """Number of pairs in `split`."""

  @abc.abstractmethod
  def identity(self, split: str) -> str:
    """sha256 of the content of `split`.

    Of the content, not of file names and times: it is the same on every
    machine, and a file that changed under its name is noticed.
    """

  @abc.abstractmethod
  def pairs(self, split: str) -> Iterator[tuple[str, str]]:
    """(source sentence, target sentence), one at a time."""


def open_text(data: DataConfig) -> TextSource:
  """The source of sentences that data.source names; tasks are not text.

  Raises:
    ConfigError: for an unknown kind of source, or one that is not there.
  """
  kind, _, name = data.source.partition(':')
  if kind not in SOURCES or not name:
    raise ConfigError(
      f'data.source={data.source} is not one of files:DIR, tfds:NAME/CONFIG, '
      'task:NAME'
    )
  return SOURCES[kind](name, data)


def _languages(pair: str) -> tuple[str, str]:
  source, dash, target = pair.partition('-')
  if not (source and dash and target):
    raise ConfigError(
      f'data.pair={pair!r} does not name two languages, source first: take '
      'for instance --data.pair=en-de'
    )
  return source, target


def _another(split: str, known: Iterable[str], data: DataConfig) -> str:
  """The flag that names another of `known`, if a field names `split`."""
  for field in ('train_split', 'validation_split', 'test_split'):
    if getattr(data, field) == split:
      # Never training data where held-out data is missing.
      trained_on = data.train_split.partition('[')[0]
      others = [name for name in known if name != trained_on]
      near = difflib.get_close_matches(split, others, n=1, cutoff=0)
      return f'; --data.{field}={near[0]} would do' if near else ''
  return ''


class _Scan(NamedTuple):
  """What one pass over a file found."""

  lines: int
  digest: str


def _open_bytes(path: str) -> gzip.GzipFile | BinaryIO:
  return gzip.open(path, 'rb') if path.endswith('.gz') else open(path, 'rb')


def _scan(path: str) -> _Scan:
  """Count lines, hash the unpacked content, prove that it is UTF-8."""
  digest = hashlib.sha256()
  decoder = codecs.getincrementaldecoder('utf-8')()
  lines, last = 0, b'\n'
  try:
    with _open_bytes(path) as file:
      while chunk := file.read(_CHUNK):
        digest.update(chunk)
        decoder.decode(chunk)
        lines += chunk.count(b'\n')
        last = chunk[-1:]
      decoder.decode(b'', final=True)
  except UnicodeDecodeError:
    raise ConfigError(
      f'{path}, line {_bad_line(path)}: not valid UTF-8; convert the file or '
      'mend the line'
    ) from None
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ConfigError(f'{path}: not a whole gzip file: {error}') from None
  except OSError as error:
    raise ConfigError(f'cannot read {path}: {error.strerror}') from None
  if not lines and last == b'\n':
    raise ConfigError(f'{path} is empty')
  return _Scan(lines + (last != b'\n'), digest.hexdigest())


def decoded_lines(lines: Iterable[bytes], name: str) -> list[str]:
  """Sentences of `lines`, without their ends.

  Args:
    lines: UTF-8, such as a file opened for bytes.
    name: of the file, for an error.

  Raises:
    ConfigError: naming the first line that is not UTF-8.
  """
  sentences = []
  for number, line in enumerate(lines, 1):
    try:
      sentences.append(line.decode().rstrip('\r\n'))
    except UnicodeDecodeError:
      raise ConfigError(
        f'{name}, line {number}: not valid UTF-8; convert the text or mend '
        'the line'
      ) from None
  if sentences:
    sentences[0] = sentences[0].removeprefix('\ufeff')
  return sentences


def one_line(text: str) -> str:
  r"""The text with spaces where a line would end: a sentence is one line.

  >>> one_line('a\r\nb')
  'a  b'
  """
  return text.replace('\r', ' ').replace('\n', ' ')


def _bad_line(path: str) -> int:
  with _open_bytes(path) as file:
    for number, line in enumerate(file, 1):
      try:
        line.decode()
      except UnicodeDecodeError:
        return number
  raise AssertionError(f'{path} changed while it was read')


class FileText(TextSource):
  """DIR/SPLIT.LANG or DIR/SPLIT.LANG.gz, aligned by line."""

  def __init__(self, folder: str, data: DataConfig):
    self._folder = os.path.expanduser(folder)
    self._data = data
    self.languages = _languages(data.pair)
    self._scans: dict[str, tuple[_Scan, _Scan]] = {}
    if not os.path.isdir(self._folder):
      raise ConfigError(f'data.source=files:{folder} is not a folder')

  def prepare(self) -> None:
    """Files are there or they are not."""

  def _path(self, split: str, language: str) -> str | None:
    path = os.path.join(self._folder, f'{split}.{language}')
    found = [p for p in (path, path + '.gz') if os.path.isfile(p)]
    if len(found) > 1:
      raise ConfigError(
        f'{" and ".join(found)} are both there, and which is meant is not '
        'known: remove one'
      )
    return found[0] if found else None

  def _splits(self) -> list[str]:
    """Names for which both languages are there."""
    names = sorted(os.listdir(self._folder))
    plain = [name.removesuffix('.gz') for name in names]
    ends = ['.' + language for language in self.languages]
    stems = [
      {name.removesuffix(end) for name in plain if name.endswith(end)}
      for end in ends
    ]
    return sorted(stems[0] & stems[1])

  def check(self, split: str) -> None:
    self._paths(split)

  def _paths(self, split: str) -> list[str]:
    paths = [self._path(split, language) for language in self.languages]
    if not any(paths):
      known = self._splits()
      raise ConfigError(
        f'no split {split!r} of {"-".join(self.languages)} in '
        f'{self._folder}; there is: '
        f'{", ".join(known) or "none for this pair"}'
        f'{_another(split, known, self._data)}'
      )
    for path, language in zip(paths, self.languages, strict=True):
      if path is None:
        raise ConfigError(
          f'missing file {os.path.join(self._folder, split)}.{language} '
          '(or .gz)'
        )
    return [path for path in paths if path is not None]

  def _scanned(self, split: str) -> tuple[_Scan, _Scan]:
    if split not in self._scans:
      paths = self._paths(split)
      source, target = (_scan(path) for path in paths)
      if source.lines != target.lines:
        raise ConfigError(
          f'{paths[0]} has {source.lines} lines but {paths[1]} has '
          f'{target.lines}: the files must be aligned line by line'
        )
      self._scans[split] = source, target
    return self._scans[split]

  def size(self, split: str) -> int:
    return self._scanned(split)[0].lines

  def identity(self, split: str) -> str:
    both = ''.join(scan.digest for scan in self._scanned(split))
    return hashlib.sha256(both.encode()).hexdigest()

  def pairs(self, split: str) -> Iterator[tuple[str, str]]:
    self._scanned(split)
    source, target = self._paths(split)
    with _open_text(source) as left, _open_text(target) as right:
      for pair in zip(left, right, strict=True):
        yield pair[0].rstrip('\r\n'), pair[1].rstrip('\r\n')


def _open_text(path: str) -> IO[str]:
  # Only \n ends a line: a carriage return or a Unicode separator inside a
  # sentence must not shift one side against the other.
  opener = gzip.open if path.endswith('.gz') else open
  return opener(path, 'rt', encoding='utf-8-sig', newline='\n')


class TfdsText(TextSource):
  """A TFDS data set with a Translation feature, read without TensorFlow."""

  def __init__(self, name: str, data: DataConfig):
    self._name = name
    self._data = data
    self.languages = _languages(data.pair)
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
        f'{_another(split, builder.info.splits, data)}'
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


SOURCES: dict[str, Callable[[str, DataConfig], TextSource]] = {
  'files': FileText,
  'tfds': TfdsText,
}
