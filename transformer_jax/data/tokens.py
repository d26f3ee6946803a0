"""Subword vocabulary: learn, encode, decode, save with the run."""

import abc
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from transformer_jax.config import ConfigError, DataConfig
from transformer_jax.data.text import one_line

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL = ('<pad>', '<s>', '</s>', '<unk>')

# Rarer characters are spelled as bytes: nothing is unknown, and the vocabulary
# is not spent on characters that were seen once.
CHARACTER_COVERAGE = 0.9999


class Vocabulary(abc.ABC):
  """Sentences to rows of ids and back.

  Ids 0 to 3 are padding, begin, end and unknown, in every vocabulary.
  """

  size: int
  fingerprint: str  # sha256 of the content: equal ids mean equal pieces
  suffix: str  # of the saved file

  @abc.abstractmethod
  def encode(self, sentences: list[str]) -> list[list[int]]:
    """Ids of each sentence, without begin and end."""

  @abc.abstractmethod
  def decode(self, rows: list[list[int]]) -> list[str]:
    """Text of each row up to its first end; padding and begin are skipped.

    It is one line, whatever the row: see `one_line`.
    """

  @abc.abstractmethod
  def pieces(self, ids: Iterable[int]) -> list[str]:
    """The written form of each id."""

  @abc.abstractmethod
  def content(self) -> bytes:
    """What `save` writes and the fingerprint is taken of."""

  def save(self, path: str) -> None:
    with open(path, 'wb') as file:
      file.write(self.content())


def _spoken(row: Iterable[int]) -> Iterator[int]:
  """The ids of `row` that stand for text."""
  for index in row:
    if index == EOS:
      return
    if index not in (PAD, BOS):
      yield int(index)


class SentencePieceVocabulary(Vocabulary):
  """Byte-pair or unigram pieces with byte fallback: nothing is unknown."""

  suffix = '.model'

  def __init__(self, content: bytes):
    import sentencepiece

    self._content = content
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    self.size = self._processor.get_piece_size()
    self.fingerprint = hashlib.sha256(content).hexdigest()

  def encode(self, sentences: list[str]) -> list[list[int]]:
    return self._processor.encode(sentences)

  def decode(self, rows: list[list[int]]) -> list[str]:
    texts = self._processor.decode([list(_spoken(row)) for row in rows])
    # Bytes spell every character, the end of a line among them.
    return [one_line(text) for text in texts]

  def pieces(self, ids: Iterable[int]) -> list[str]:
    return [self._processor.id_to_piece(int(index)) for index in ids]

  def content(self) -> bytes:
    return self._content


class SymbolVocabulary(Vocabulary):
  """A closed list of words; a sentence is words with spaces between.

  A word outside the list becomes UNK, and UNK is written as `<unk>`: a task
  has no other words, so this is met only in text typed by hand.
  """

  suffix = '.words'

  def __init__(self, words: Iterable[str]):
    self.words = tuple(words)
    self._pieces = SPECIAL + self.words
    self._ids = {word: index for index, word in enumerate(self._pieces)}
    self.size = len(self._pieces)
    self.fingerprint = hashlib.sha256(self.content()).hexdigest()

  def encode(self, sentences: list[str]) -> list[list[int]]:
    first = len(SPECIAL)
    rows = [
      [self._ids.get(word, UNK) for word in sentence.split()]
      for sentence in sentences
    ]
    # The written name of a special id is no word of the list.
    return [[i if i >= first else UNK for i in row] for row in rows]

  def decode(self, rows: list[list[int]]) -> list[str]:
    return [' '.join(self.pieces(_spoken(row))) for row in rows]

  def pieces(self, ids: Iterable[int]) -> list[str]:
    return [self._pieces[index] for index in ids]

  def content(self) -> bytes:
    return '\n'.join(self.words).encode()


def learn(sentences: Iterable[str], data: DataConfig) -> Vocabulary:
  """Pieces learned from `sentences`; the same sentences, the same pieces.

  Raises:
    ConfigError: when the sentences do not yield data.vocabulary_size pieces,
      naming the largest (or smallest) size that they do yield.
  """
  import sentencepiece

  model = io.BytesIO()
  # Text that is already normalised by its authors is left as it is.
  rule = 'identity' if data.text == 'pretokenized' else 'nfkc'
  failed: list[BaseException] = []
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_until_failure(sentences, failed),
      model_writer=model,
      model_type=data.vocabulary_model,
      vocab_size=data.vocabulary_size,
      character_coverage=CHARACTER_COVERAGE,
      byte_fallback=True,
      normalization_rule_name=rule,
      pad_id=PAD,
      bos_id=BOS,
      eos_id=EOS,
      unk_id=UNK,
      # One thread and no sampling inside: the result depends on nothing else.
      num_threads=1,
      shuffle_input_sentence=False,
      minloglevel=2,
    )
  except RuntimeError as error:
    if not failed:
      raise ConfigError(_unreachable(str(error), data)) from None
  if failed:
    raise failed[0]
  return SentencePieceVocabulary(model.getvalue())


def _until_failure(
  sentences: Iterable[str], failed: list[BaseException]
) -> Iterator[str]:
  """Hand on `sentences`; keep an exception that native code would swallow."""
  try:
    yield from sentences
  except Exception as error:
    failed.append(error)


def _unreachable(reason: str, data: DataConfig) -> str:
  size = f'data.vocabulary_size={data.vocabulary_size}'
  most = re.search(r'value <= (\d+)', reason)
  if most:
    return f'{size} is more than this text yields: take at most {most[1]}'
  least = re.search(r'smaller than required_chars\D*\d+ vs (\d+)', reason)
  if least:
    return f'{size} is less than bytes and letters need: take {least[1]}'
  return f'{size}: no vocabulary was learned: {" ".join(reason.split())}'


class Vocabularies(NamedTuple):
  """Those of the two sides; one object when they are joint."""

  source: Vocabulary
  target: Vocabulary

  @property
  def fingerprint(self) -> str:
    both = self.source.fingerprint + self.target.fingerprint
    return hashlib.sha256(both.encode()).hexdigest()

  def save(self, folder: str) -> None:
    """Write the vocabularies and their fingerprint into a new `folder`."""
    os.makedirs(folder, exist_ok=True)
    sides = {'source': self.source, 'target': self.target}
    if self.source is self.target:
      sides = {'joint': self.source}
    for side, vocabulary in sides.items():
      vocabulary.save(os.path.join(folder, side + vocabulary.suffix))
    # Written last: a folder without it was not finished.
    with open(os.path.join(folder, 'fingerprint.json'), 'w') as file:
      json.dump({'fingerprint': self.fingerprint}, file)


_MEND = (
  'restore the folder from a copy, or remove it and run experiments.train or '
  'experiments.prepare, which learns the same from the same text'
)


def load_vocabularies(folder: str) -> Vocabularies:
  """The vocabularies that `Vocabularies.save` wrote.

  Raises:
    ConfigError: when they are missing or are not what was saved.
  """
  record = os.path.join(folder, 'fingerprint.json')
  if not os.path.exists(record):
    raise ConfigError(f'no vocabulary in {folder}')
  try:
    with open(record) as file:
      fingerprint = json.load(file)['fingerprint']
    found = {
      side: _load(path)
      for side in ('joint', 'source', 'target')
      for path in _saved(folder, side)
    }
  # The last is of sentencepiece.
  except (KeyError, TypeError, ValueError, RuntimeError):
    raise ConfigError(
      f'the vocabulary in {folder} is damaged: {_MEND}'
    ) from None
  if 'joint' in found:
    both = Vocabularies(found['joint'], found['joint'])
  elif 'source' in found and 'target' in found:
    both = Vocabularies(found['source'], found['target'])
  else:
    raise ConfigError(f'no vocabulary in {folder}')
  if fingerprint != both.fingerprint:
    raise ConfigError(
      f'the vocabulary in {folder} is not the one saved there: {_MEND}'
    )
  return both


def _saved(folder: str, side: str) -> list[str]:
  paths = [
    os.path.join(folder, side + kind.suffix)
    for kind in (SentencePieceVocabulary, SymbolVocabulary)
  ]
  return [path for path in paths if os.path.exists(path)]


def _load(path: str) -> Vocabulary:
  with open(path, 'rb') as file:
    content = file.read()
  if not content:  # Which sentencepiece takes without a word.
    raise ValueError(f'{path} is empty')
  if path.endswith(SymbolVocabulary.suffix):
    return SymbolVocabulary(content.decode().split('\n'))
  return SentencePieceVocabulary(content)
