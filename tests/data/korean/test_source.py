"""The language as a source of text, and bad input to it."""

import dataclasses

import numpy as np
import pytest

from tests.data.korean.conftest import some
from transformer_jax.config import ConfigError, DataConfig
from transformer_jax.data import tasks
from transformer_jax.data.batches import make_plan
from transformer_jax.data.corpus import open_corpus
from transformer_jax.data.korean import generate, links
from transformer_jax.data.korean.render import sentence
from transformer_jax.data.korean.source import KoreanText

DATA = DataConfig(
  source='task:korean',
  pair='en-ko',
  vocabulary_size=520,
  max_length=160,
  max_tokens=1536,
  buckets=3,
  task_train_size=300,
  task_held_out=24,
)


@pytest.mark.parametrize('pair', ['en-ko', 'ko-en'])
def test_the_language_is_read_like_text(pair, tmp_path):
  data = dataclasses.replace(DATA, pair=pair, cache_dir=str(tmp_path))
  corpus = open_corpus(data, workdir=None, progress=lambda line: None)
  assert len(corpus.pairs('train')) == 300 and not corpus.dropped['train']
  order = pair.split('-')
  for split in ('validation', 'test', 'far_pronoun', 'topic_names'):
    references = corpus.references(split)
    assert references == [
      tuple(sentence(meaning, language) for language in order)
      for meaning in some(split, 24)
    ]
    rows = corpus.pairs(split).gather(np.arange(24), 160, 160)
    said = [
      vocabulary.decode(side.tolist())
      for vocabulary, side in zip(corpus.vocabularies, rows, strict=True)
    ]
    assert list(zip(*said, strict=True)) == references
  batch = make_plan(corpus.train, data).batch(0, 0)
  assert batch.source_BS.any() and batch.target_BT.any()
  source = corpus.references('validation')[0][0]
  vocabulary = corpus.vocabularies.source
  pieces = vocabulary.pieces(vocabulary.encode([source])[0])
  assert len(links.piece_spans(pieces, source)) == len(pieces)


def test_directions_and_seeds_have_their_own_identity():
  def identity(**changes):
    source = KoreanText(dataclasses.replace(DATA, **changes))
    return source.identity('train')

  assert identity() == identity()
  others = [{'seed': 1}, {'pair': 'ko-en'}, {'task_train_size': 301}]
  assert len({identity(), *(identity(**other) for other in others)}) == 4
  source = KoreanText(dataclasses.replace(DATA, task_train_size=0))
  assert source.size('train') == generate.TRAIN_SIZE


@pytest.mark.parametrize(
  ('changes', 'mend'),
  [
    ({'pair': 'en-de'}, 'is not one of en-ko, ko-en'),
    ({'pair': ''}, 'is not one of en-ko, ko-en'),
    ({'test_split': 'far'}, 'there is: train, validation, test, unseen_pair'),
    ({'task_train_size': 20}, 'take at least'),
    ({'source': 'task:korea'}, 'did you mean korean'),
  ],
)
def test_bad_input(changes, mend, tmp_path):
  data = dataclasses.replace(DATA, cache_dir=str(tmp_path), **changes)
  with pytest.raises(ConfigError, match=mend):
    open_corpus(data, workdir=None, progress=print)


def test_more_held_out_than_there_is(monkeypatch):
  # One pair instead of all: about a thousand sentences.
  pairs = sorted(generate.UNSEEN, key=repr)[:1]
  monkeypatch.setattr(generate, '_UNSEEN_IN_ORDER', pairs)
  source = KoreanText(dataclasses.replace(DATA, task_held_out=2000))
  with pytest.raises(ConfigError, match='for unseen_pair.*lower it'):
    source.check('unseen_pair')


def test_no_name_stands_for_two_tasks():
  assert not set(tasks.SENTENCES) & set(tasks.TASKS)
