"""Sentences of parallel files, aligned by line."""

import codecs
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, BinaryIO, NamedTuple

from transformer_jax.config import ConfigError, DataConfig
from transformer_jax.data.text import TextSource, another, languages_of

_CHUNK = 1 << 20  # bytes read at once


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
    self.languages = languages_of(data.pair)
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
        f'{another(split, known, self._data)}'
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
