"""The language as a text source: `--data.source=task:korean`."""

import hashlib
import itertools
import json
from collections.abc import Iterator

from transformer_jax.config import ConfigError, DataConfig
from transformer_jax.data.korean.generate import (
  SPLITS,
  TRAIN_SIZE,
  WORDS,
  sentences,
  smallest_training,
)
from transformer_jax.data.korean.meaning import Meaning
from transformer_jax.data.korean.render import pair
from transformer_jax.data.text import TextSource

_DIRECTIONS = {'en-ko': ('en', 'ko'), 'ko-en': ('ko', 'en')}
_PROBED = 1024  # first pairs of a split, for which all of it answers


class KoreanText(TextSource):
  """Sentences made from data.seed; the same in either direction.

  Training has data.task_train_size pairs, or TRAIN_SIZE when that is 0; every
  other split has data.task_held_out.
  """

  def __init__(self, data: DataConfig):
    if data.pair not in _DIRECTIONS:
      raise ConfigError(
        f'data.pair={data.pair!r} of task:korean is not one of '
        f'{", ".join(_DIRECTIONS)}'
      )
    self._data = data
    self.languages = _DIRECTIONS[data.pair]
    self._made: dict[str, list[Meaning]] = {}

  def prepare(self) -> None:
    """Sentences are made when they are asked for."""

  def check(self, split: str) -> None:
    if split not in SPLITS:
      raise ConfigError(
        f'no split {split!r} of task:korean; there is: {", ".join(SPLITS)}'
      )
    if split == 'train':
      self._check_training()
    else:
      self._held_out(split)

  def _check_training(self) -> None:
    size, seed = self.size('train'), self._data.seed
    # Each of the first pairs brings a word, so this many always do.
    if size >= len(WORDS):
      return
    if size < (least := smallest_training(seed)):
      raise ConfigError(
        f'data.task_train_size={size} leaves out words of the language: take '
        f'at least {least}, or 0 for {TRAIN_SIZE:,}'
      )

  def _held_out(self, split: str) -> list[Meaning]:
    if split in self._made:
      return self._made[split]
    wanted = self._data.task_held_out
    found = list(itertools.islice(sentences(split, self._data.seed), wanted))
    if len(found) < wanted:
      raise ConfigError(
        f'task:korean has {len(found):,} different sentences for {split}, '
        f'less than data.task_held_out={wanted}: lower it'
      )
    self._made[split] = found
    return found

  def size(self, split: str) -> int:
    if split == 'train':
      return self._data.task_train_size or TRAIN_SIZE
    return self._data.task_held_out

  def identity(self, split: str) -> str:
    first = list(itertools.islice(self.pairs(split), _PROBED))
    content = self.languages, split, self._data.seed, self.size(split), first
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

  def meanings(self, split: str) -> Iterator[Meaning]:
    """What the pairs of `split` say, in their order."""
    self.check(split)
    if split != 'train':
      return iter(self._held_out(split))
    endless = sentences('train', self._data.seed)
    return itertools.islice(endless, self.size('train'))

  def pairs(self, split: str) -> Iterator[tuple[str, str]]:
    for meaning in self.meanings(split):
      yield pair(meaning, self.languages)
