"""What a source of sentences is: pairs by split, streamed."""

import abc
import difflib
from collections.abc import Iterable, Iterator

from transformer_jax.config import ConfigError, DataConfig


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


def languages_of(pair: str) -> tuple[str, str]:
  source, dash, target = pair.partition('-')
  if not (source and dash and target):
    raise ConfigError(
      f'data.pair={pair!r} does not name two languages, source first: take '
      'for instance --data.pair=en-de'
    )
  return source, target


def another(split: str, known: Iterable[str], data: DataConfig) -> str:
  """The flag that names another of `known`, if a field names `split`."""
  for field in ('train_split', 'validation_split', 'test_split'):
    if getattr(data, field) == split:
      # Never training data where held-out data is missing.
      trained_on = data.train_split.partition('[')[0]
      others = [name for name in known if name != trained_on]
      near = difflib.get_close_matches(split, others, n=1, cutoff=0)
      return f'; --data.{field}={near[0]} would do' if near else ''
  return ''


def one_line(text: str) -> str:
  r"""The text with spaces where a line would end: a sentence is one line.

  >>> one_line('a\r\nb')
  'a  b'
  """
  return text.replace('\r', ' ').replace('\n', ' ')
