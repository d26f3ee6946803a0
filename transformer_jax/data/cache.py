"""The token cache: a split encoded once, then mapped from disk.

One folder a split: flat tokens and offsets of both sides. It is written beside
its place and renamed into it, so that it is there whole or not at all, and
two processes that build it at once do no harm.
"""

import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from transformer_jax.config import ConfigError
from transformer_jax.data.text import TextSource
from transformer_jax.data.tokens import EOS, PAD, Vocabularies

_FORMAT = 1  # of the files; part of the folder's name
_CHUNK = 20_000  # pairs encoded at once: bounds the memory
SIDES = ('source', 'target')
# What reading files raises that are not as they were written.
_DAMAGED = FileNotFoundError, EOFError, LookupError, TypeError, ValueError


class Batch(NamedTuple):
  """Rows of ids, each ended by EOS and padded with 0."""

  source_BS: np.ndarray  # int32
  target_BT: np.ndarray  # int32


class Pairs(Protocol):
  """Rows of both sides by index."""

  def __len__(self) -> int: ...

  @property
  def lengths(self) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row, end included: (source_n, target_n), int32."""
    ...

  def gather(self, ids_B: np.ndarray, s: int, t: int) -> Batch:
    """Rows `ids_B` padded to `s` and `t`; an id of -1 gives zeros."""
    ...


class Side(NamedTuple):
  """Row i is tokens[offsets[i]:offsets[i + 1]]."""

  tokens: np.ndarray
  offsets: np.ndarray

  def rows(self, ids_B: np.ndarray, width: int) -> np.ndarray:
    """Rows of at most `width` tokens as an int32 array [B, width]."""
    start_B = self.offsets[ids_B]
    length_B = self.offsets[ids_B + 1] - start_B
    length_B = np.where(ids_B < 0, 0, length_B)
    column_W = np.arange(width)
    inside_BW = column_W < length_B[:, None]
    rows_BW = np.zeros(inside_BW.shape, np.int32)
    at = (start_B[:, None] + column_W)[inside_BW]
    rows_BW[inside_BW] = self.tokens[at]
    return rows_BW


class StoredPairs:
  """Pairs in flat arrays, or the rows `kept` of them."""

  def __init__(
    self, source: Side, target: Side, kept: np.ndarray | None = None
  ):
    self._sides = source, target
    self._kept = kept

  def __len__(self) -> int:
    if self._kept is not None:
      return len(self._kept)
    return len(self._sides[0].offsets) - 1

  @classmethod
  def of(cls, batches: Iterable[Batch]) -> 'StoredPairs':
    """The rows of `batches` in memory, padding removed."""
    sides = []
    for rows in zip(*batches, strict=True):
      flat = np.concatenate([row_BL[row_BL != PAD] for row_BL in rows])
      length_n = np.concatenate([(row_BL != PAD).sum(1) for row_BL in rows])
      sides.append(Side(flat, np.cumsum([0, *length_n])))
    return cls(*sides)

  @property
  def lengths(self) -> tuple[np.ndarray, np.ndarray]:
    source_n, target_n = (
      np.diff(side.offsets).astype(np.int32) for side in self._sides
    )
    if self._kept is None:
      return source_n, target_n
    return source_n[self._kept], target_n[self._kept]

  def only(self, wanted_n: np.ndarray) -> 'StoredPairs':
    """The pairs that are marked."""
    if wanted_n.all():
      return self
    kept = np.flatnonzero(wanted_n).astype(np.int32)
    if self._kept is not None:
      kept = self._kept[kept]
    return StoredPairs(*self._sides, kept)

  def gather(self, ids_B: np.ndarray, s: int, t: int) -> Batch:
    rows_B = ids_B
    if self._kept is not None:
      rows_B = np.where(ids_B < 0, -1, self._kept[ids_B])
    source, target = self._sides
    return Batch(source.rows(rows_B, s), target.rows(rows_B, t))


def open_cache(
  text: TextSource,
  vocabularies: Vocabularies,
  *,
  split: str,
  folder: str,
  progress: Callable[[str], None],
) -> StoredPairs:
  """The tokens of `split`, from `folder` or encoded into it now.

  What is there and damaged is removed and encoded again.

  Raises:
    ConfigError: when the cache cannot be written, or the text is bad.
  """
  name = hashlib.sha256(
    json.dumps(
      [_FORMAT, text.identity(split), vocabularies.fingerprint]
    ).encode()
  ).hexdigest()[:24]
  final = os.path.join(os.path.expanduser(folder), f'tokens-{name}')
  if os.path.isdir(final):
    try:
      return _mapped(final)
    except ConfigError as error:
      progress(f'{error}: removed')
      shutil.rmtree(final)
  build_folder(
    final,
    lambda unfinished: _encode(text, vocabularies, split, unfinished, progress),
  )
  return _mapped(final)


def build_folder(final: str, write: Callable[[str], None]) -> None:
  """Make folder `final` by `write(unfinished folder)`, whole or not at all.

  Raises:
    ConfigError: when there is no room or no right to write.
  """
  parent, name = os.path.split(final)
  unfinished = os.path.join(parent, f'unfinished-{name}-{uuid.uuid4().hex}')
  try:
    os.makedirs(unfinished)
    write(unfinished)
    # The content first: after a power cut a folder that was renamed sooner
    # could have its name and no content.
    for file in os.listdir(unfinished):
      _sync(os.path.join(unfinished, file))
    _sync(unfinished)
    _rename(unfinished, final)
    _sync(parent)
  except OSError as error:
    raise ConfigError(
      f'cannot write {final}: {error.strerror or error}; make room there or '
      'name another folder'
    ) from None
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _sync(path: str) -> None:
  """Returns when a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError:
    # Not every file system does it for a folder.
    if not os.path.isdir(path):
      raise
  finally:
    os.close(descriptor)


def _rename(unfinished: str, final: str) -> None:
  try:
    os.rename(unfinished, final)
  except OSError:
    # Another process was first; under the same name it has the same content.
    if not os.path.isdir(final):
      raise


def _encode(
  text: TextSource,
  vocabularies: Vocabularies,
  split: str,
  folder: str,
  progress: Callable[[str], None],
) -> None:
  """Write tokens and offsets of `split` into `folder`, in chunks."""
  total = text.size(split)
  done = 0
  lengths: tuple[list[np.ndarray], ...] = ([], [])
  with (
    open(os.path.join(folder, 'source.tokens'), 'wb') as source,
    open(os.path.join(folder, 'target.tokens'), 'wb') as target,
  ):
    for block in _chunks(text.pairs(split)):
      columns = zip(*block, strict=True)
      for sentences, vocabulary, file, found in zip(
        columns, vocabularies, (source, target), lengths, strict=True
      ):
        rows = vocabulary.encode(list(sentences))
        found.append(np.array([len(row) + 1 for row in rows], np.int32))
        flat = np.fromiter(
          itertools.chain.from_iterable((*row, EOS) for row in rows),
          dtype=token_type(vocabulary.size),
          count=int(found[-1].sum()),
        )
        file.write(flat.tobytes())
      done += len(block)
      progress(f'encoding {split}: {done:,} of {total:,} pairs')
  kinds = {}
  for side, vocabulary, found in zip(SIDES, vocabularies, lengths, strict=True):
    offsets = np.zeros(done + 1, np.int64)
    np.cumsum(np.concatenate(found), out=offsets[1:])
    np.save(os.path.join(folder, f'{side}.offsets.npy'), offsets)
    kinds[side] = np.dtype(token_type(vocabulary.size)).name
  with open(os.path.join(folder, 'types.json'), 'w') as file:
    json.dump(kinds, file)


def token_type(vocabulary_size: int) -> type:
  """The smallest type that holds every id."""
  return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def _chunks(
  pairs: Iterable[tuple[str, str]],
) -> Iterator[list[tuple[str, str]]]:
  pairs = iter(pairs)
  while block := list(itertools.islice(pairs, _CHUNK)):
    yield block


def _mapped(folder: str) -> StoredPairs:
  """What `_encode` wrote.

  Raises:
    ConfigError: it is damaged.
  """
  try:
    with open(os.path.join(folder, 'types.json')) as file:
      kinds = json.load(file)
    source, target = (_side(folder, side, kinds[side]) for side in SIDES)
    if len(source.offsets) != len(target.offsets):
      raise ValueError('one side has more rows than the other')
  except _DAMAGED as error:
    raise ConfigError(
      f'the token cache {folder} is damaged ({error})'
    ) from None
  return StoredPairs(source, target)


def _side(folder: str, side: str, kind: str) -> Side:
  """Tokens and offsets of `side`, seen to be whole.

  Checks that every row ends with EOS. A lost disk block reads as zeros, which
  would pass as padding; the check is cheap beside training.

  Raises:
    ValueError: a row does not, or a file is none of ours.
  """
  path = os.path.join(folder, side)
  tokens = np.memmap(f'{path}.tokens', dtype=kind, mode='r')
  offsets = np.load(f'{path}.offsets.npy', mmap_mode='r')
  # Plain views: indexing a memmap subclass costs several times more.
  found = Side(tokens.view(np.ndarray), offsets.view(np.ndarray))
  end_n = found.offsets[1:]
  if (
    found.offsets[0] != 0
    or (np.diff(found.offsets) < 1).any()
    or found.offsets[-1] != len(found.tokens)
    or (found.tokens[end_n - 1] != EOS).any()
  ):
    raise ValueError(f'rows of {side} do not end where they should')
  return found
