"""The corpus of a run: its text or task, vocabularies and encoded pairs."""

import abc
import hashlib
import json
import os
from collections.abc import Callable, Iterator

import numpy as np

from transformer_jax.config import ConfigError, DataConfig
from transformer_jax.data import tasks
from transformer_jax.data.cache import (
  Batch,
  Pairs,
  StoredPairs,
  build_folder,
  open_cache,
)
from transformer_jax.data.korean.source import KoreanText
from transformer_jax.data.sources import open_text
from transformer_jax.data.text import TextSource
from transformer_jax.data.tokens import (
  EOS,
  SPECIAL,
  SymbolVocabulary,
  Vocabularies,
  learn,
  load_vocabularies,
)

# A vocabulary is learned from at most this many pairs, evenly spread: more
# change no piece that matters and would not fit beside the trainer.
VOCABULARY_PAIRS = 1_000_000
_GENERATED = 1 << 16  # rows of a task made at once
_PROBED = 1024  # rows of endless training that enter its fingerprint
_SEED_STRIDE = 1 << 40  # rows that one training seed draws before the next


class Corpus(abc.ABC):
  """Pairs of every split, encoded; what a loop and an evaluation read."""

  vocabularies: Vocabularies
  train: 'Pairs | EndlessPairs'
  dropped: dict[str, int]  # pairs of each opened split that are not trained on
  fingerprint: str  # of all that training and its validation read

  @abc.abstractmethod
  def pairs(self, split: str) -> Pairs:
    """The pairs of `split`; only those of training are ever dropped."""

  @abc.abstractmethod
  def identity(self, split: str) -> str:
    """sha256 of the content of `split`."""

  @abc.abstractmethod
  def references(self, split: str) -> list[tuple[str, str]]:
    """The sentences themselves, source and target, for scoring."""


def open_corpus(
  data: DataConfig, *, workdir: str | None, progress: Callable[[str], None]
) -> Corpus:
  """Text or task, vocabularies and training tokens, made now where needed.

  A vocabulary saved in `workdir` is the run's own and is used; otherwise it
  is learned from the training split and saved there.

  Args:
    data: what to open.
    workdir: folder of the run, None where there is no run.
    progress: is told what takes long, a line at a time.

  Raises:
    ConfigError: one line, for any input that cannot be used.
  """
  own, saved = None, None
  if workdir is not None:
    own = os.path.join(os.path.expanduser(workdir), 'vocabulary')
  if own is not None and os.path.isdir(own):
    saved = load_vocabularies(own)
  corpus: Corpus
  kind, _, name = data.source.partition(':')
  if kind == 'task' and name not in tasks.SENTENCES:
    corpus = TaskCorpus(data, saved)
  else:
    corpus = TextCorpus(data, saved, progress)
  if own is not None and saved is None:
    build_folder(own, corpus.vocabularies.save)
  return corpus


def vocabulary_size(data: DataConfig) -> int:
  """Tokens of each vocabulary, before anything is opened."""
  kind, _, name = data.source.partition(':')
  if kind == 'task' and name in tasks.TASKS:
    return len(SPECIAL) + len(tasks.TASKS[name].words(data))
  return data.vocabulary_size


def _digest(*parts: str) -> str:
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _open_sentences(data: DataConfig) -> TextSource:
  """Sentences of files, of TFDS or of a task that makes them."""
  if data.source == 'task:korean':
    return KoreanText(data)
  return open_text(data)


class TextCorpus(Corpus):
  """Sentences of files, of TFDS or made, from the token cache."""

  def __init__(
    self,
    data: DataConfig,
    vocabularies: Vocabularies | None,
    progress: Callable[[str], None],
  ):
    self._data = data
    self._progress = progress
    self._text = _open_sentences(data)
    for split in (data.train_split, data.validation_split, data.test_split):
      self._text.check(split)
    self._pairs: dict[str, Pairs] = {}
    self.dropped = {}
    self.vocabularies = vocabularies or _learned(self._text, data, progress)
    self._empty = 0  # pairs of training that have an empty side
    self.train = self.pairs(data.train_split)
    self.fingerprint = _digest(
      self._text.identity(data.train_split),
      self._text.identity(data.validation_split),
      self.vocabularies.fingerprint,
      # A run that began when such pairs were trained on read other data.
      *(['empty sides dropped'] if self._empty else []),
    )

  def pairs(self, split: str) -> Pairs:
    if split not in self._pairs:
      every = open_cache(
        self._text,
        self.vocabularies,
        split=split,
        folder=self._data.cache_dir,
        progress=self._progress,
      )
      training = split == self._data.train_split
      kept = self._to_train_on(every) if training else every
      self._pairs[split] = kept
      self.dropped[split] = len(every) - len(kept)
    return self._pairs[split]

  def _to_train_on(self, every: StoredPairs) -> StoredPairs:
    """The pairs that are not over data.max_length and have two sides."""
    data, lengths = self._data, every.lengths
    over_n = np.maximum(*lengths) > data.max_length
    empty_n = ~over_n & (np.minimum(*lengths) == 1)  # The end alone.
    self._empty = int(empty_n.sum())
    counts = int(over_n.sum()), self._empty
    reasons = (
      f'more than data.max_length={data.max_length} tokens',
      'an empty side',
    )
    over, empty = (
      f'{count:,} of {len(every):,} pairs of {data.train_split} have {reason}'
      for count, reason in zip(counts, reasons, strict=True)
    )
    if counts[0] and data.over_length == 'refuse':
      raise ConfigError(f'{over}; raise it or take --data.over_length=drop')
    kept = every.only(~(over_n | empty_n))
    if not len(kept):
      raise ConfigError(f'{over}, {empty}: nothing is left to train on')
    for count, found in zip(counts, (over, empty), strict=True):
      if count:
        self._progress(f'{found}: dropped')
    return kept

  def identity(self, split: str) -> str:
    return self._text.identity(split)

  def references(self, split: str) -> list[tuple[str, str]]:
    return list(self._text.pairs(split))


def _learned(
  text: TextSource, data: DataConfig, progress: Callable[[str], None]
) -> Vocabularies:
  """Vocabularies of the training split, kept in the cache folder."""
  import sentencepiece

  settings = [
    text.identity(data.train_split),
    data.text,
    data.vocabulary,
    data.vocabulary_model,
    str(data.vocabulary_size),
    str(data.seed),
    str(VOCABULARY_PAIRS),
    sentencepiece.__version__,
  ]
  folder = os.path.join(
    os.path.expanduser(data.cache_dir), f'vocabulary-{_digest(*settings)[:24]}'
  )

  def write(unfinished: str) -> None:
    progress(
      f'learning {data.vocabulary_size:,} {data.vocabulary_model} pieces'
    )
    if data.vocabulary == 'joint':
      one = learn(_sentences(text, data, (0, 1)), data)
      vocabularies = Vocabularies(one, one)
    else:
      vocabularies = Vocabularies(
        learn(_sentences(text, data, (0,)), data),
        learn(_sentences(text, data, (1,)), data),
      )
    vocabularies.save(unfinished)

  if not os.path.isdir(folder):
    build_folder(folder, write)
  return load_vocabularies(folder)


def _sentences(
  text: TextSource, data: DataConfig, sides: tuple[int, ...]
) -> Iterator[str]:
  """Training sentences; of more than VOCABULARY_PAIRS, every n-th pair."""
  stride = -(-text.size(data.train_split) // VOCABULARY_PAIRS)
  for number, pair in enumerate(text.pairs(data.train_split)):
    if number % stride == data.seed % stride:
      for side in sides:
        yield pair[side]


class EndlessPairs:
  """Training rows of a task, made when asked for: any id at all."""

  def __init__(self, name: str, data: DataConfig):
    self._name = name
    self._data = data
    source, target = tasks.TASKS[name].longest(data)
    # The one shape that rows are padded to, ends included.
    self.longest = source + 1, target + 1

  def ids(self, seed: int, first: int, rows: int) -> np.ndarray:
    """Ids of `rows` rows from `first` on; no two seeds below 2^22 share one."""
    start = seed % (1 << 22) * _SEED_STRIDE + first
    return np.arange(start, start + rows, dtype=np.int64)

  def gather(self, ids_B: np.ndarray, s: int, t: int) -> Batch:
    return _generated(self._name, self._data, 'train', ids_B, (s, t))


def _generated(
  name: str,
  data: DataConfig,
  split: str,
  ids_B: np.ndarray,
  widths: tuple[int, int],
) -> Batch:
  rows = tasks.generate(name, data, split=split, row_B=ids_B)
  return Batch(
    _ended(rows.source_BS, rows.source_length_B, widths[0]),
    _ended(rows.target_BT, rows.target_length_B, widths[1]),
  )


def _ended(
  symbol_BL: np.ndarray, length_B: np.ndarray, width: int
) -> np.ndarray:
  """Ids of symbols, ended by EOS and padded to `width`."""
  ids_BL = np.zeros((len(symbol_BL), width), np.int32)
  shared = min(width, symbol_BL.shape[1])
  inside_BL = np.arange(shared) < length_B[:, None]
  symbol_ids_BL = symbol_BL[:, :shared] + len(SPECIAL)
  ids_BL[:, :shared] = np.where(inside_BL, symbol_ids_BL, 0)
  ids_BL[np.arange(len(ids_BL)), length_B] = EOS
  return ids_BL


class TaskCorpus(Corpus):
  """A generated task; its splits are named train, validation and test."""

  def __init__(self, data: DataConfig, vocabularies: Vocabularies | None):
    self._data = data
    self._name = data.source.removeprefix('task:')
    tasks.check(self._name, data)
    for split in (data.train_split, data.validation_split, data.test_split):
      self._size(split)
    words = SymbolVocabulary(tasks.TASKS[self._name].words(data))
    self.vocabularies = Vocabularies(words, words)
    if (
      vocabularies and vocabularies.fingerprint != self.vocabularies.fingerprint
    ):
      raise ConfigError(
        f'the vocabulary saved with this run is not that of {data.source} '
        f'with data.task_symbols={data.task_symbols}'
      )
    self._pairs: dict[str, Pairs] = {}
    self.dropped = dict.fromkeys(tasks.SPLITS, 0)
    endless = EndlessPairs(self._name, data)
    self.train = endless
    if self._size(data.train_split):
      self.train = self.pairs(data.train_split)
    probe = endless.gather(endless.ids(0, 0, _PROBED), *endless.longest)
    held_out = self.pairs(data.validation_split)
    every = np.arange(len(held_out))
    content = (*probe, *held_out.gather(every, *endless.longest))
    self.fingerprint = _digest(
      *(hashlib.sha256(part.tobytes()).hexdigest() for part in content),
      str(data.task_train_size),
      self.vocabularies.fingerprint,
    )

  def _size(self, split: str) -> int:
    """Rows of `split`; 0 for training without end."""
    if split not in tasks.SPLITS:
      raise ConfigError(
        f'no split {split!r} of a task; there is: {", ".join(tasks.SPLITS)}'
      )
    data = self._data
    return data.task_train_size if split == 'train' else data.task_held_out

  def pairs(self, split: str) -> Pairs:
    if split not in self._pairs:
      total = self._size(split)
      if not total:
        raise ConfigError(
          'training without end is no split to evaluate: take validation or '
          'test, or give --data.task_train_size'
        )
      widths = EndlessPairs(self._name, self._data).longest
      self._pairs[split] = StoredPairs.of(
        _generated(
          self._name,
          self._data,
          split,
          np.arange(start, min(start + _GENERATED, total)),
          widths,
        )
        for start in range(0, total, _GENERATED)
      )
    return self._pairs[split]

  def _whole(self, split: str) -> Batch:
    pairs = self.pairs(split)
    longest = EndlessPairs(self._name, self._data).longest
    return pairs.gather(np.arange(len(pairs)), *longest)

  def identity(self, split: str) -> str:
    batch = self._whole(split)
    return _digest(*(hashlib.sha256(x.tobytes()).hexdigest() for x in batch))

  def references(self, split: str) -> list[tuple[str, str]]:
    source, target = (
      vocabulary.decode(rows.tolist())
      for vocabulary, rows in zip(
        self.vocabularies, self._whole(split), strict=True
      )
    )
    return list(zip(source, target, strict=True))
