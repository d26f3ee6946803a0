"""Sentences in groups: order, emptiness, length, and what is refused."""

import collections
import dataclasses

import numpy as np
import pytest

from transformer_jax.config import ConfigError
from transformer_jax.data.tokens import EOS
from transformer_jax.fields import FIELDS
from transformer_jax.inference import translate as translate_lib
from transformer_jax.inference.attend import attention_maps
from transformer_jax.inference.evaluate import score_pairs
from transformer_jax.inference.grouping import group_by_length, pad, round_width
from transformer_jax.inference.translate import (
  STRATEGIES,
  Translation,
  translate_sentences,
)
from transformer_jax.nn.transformer import Transformer


def test_widths_are_few():
  wanted = {1: 8, 8: 8, 9: 12, 12: 12, 13: 16, 17: 24, 33: 48, 49: 64, 65: 96}
  assert {length: round_width(length) for length in wanted} == wanted
  assert len({round_width(length) for length in range(1, 513)}) == 13


def test_groups_hold_everything_once_within_the_budget():
  lengths = np.random.default_rng(0).integers(1, 60, 500).tolist()
  groups = group_by_length(lengths, 1024)
  ids = [i for group in groups for i in group.ids]
  assert sorted(ids) == list(range(500))
  for group in groups:
    assert group.rows * group.width <= 1024
    assert len(group.ids) <= group.rows
    assert max(lengths[i] for i in group.ids) <= group.width
  # Rows follow from the width, but for the last group.
  rows = collections.defaultdict(set)
  for group in groups[:-1]:
    rows[group.width].add(group.rows)
    assert len(group.ids) == group.rows
  assert all(len(found) == 1 for found in rows.values())
  assert group_by_length([3000], 1024)[0][1:] == (1, 3072)
  assert group_by_length([], 1024) == []


def test_pad_by_hand():
  assert pad([[5, 6], []], 3, 4).tolist() == [
    [5, 6, EOS, 0],
    [EOS, 0, 0, 0],
    [0, 0, 0, 0],
  ]


def test_every_strategy_has_a_function():
  assert tuple(STRATEGIES) == FIELDS['decode.strategy'].choices


def sentences_of(run, count, longest=7):
  """Sentences of different lengths; the third and the last are empty."""
  rng = np.random.default_rng(1)
  rows = rng.integers(4, run.vocabularies.source.size, (count, longest))
  lengths = rng.integers(1, longest + 1, count)
  texts = run.vocabularies.source.decode(
    [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
  )
  texts[2], texts[-1] = '', '  '
  return texts


def translate(run, sentences, *, progress=lambda done, total: None, **changes):
  options = dataclasses.replace(run.config.decode, **changes)
  return translate_sentences(
    run.model,
    run.params,
    sentences,
    vocabularies=run.vocabularies,
    options=options,
    progress=progress,
  )


def assert_same(left, right):
  for a, b in zip(left.hypotheses, right.hypotheses, strict=True):
    assert [x.text for x in a] == [x.text for x in b]
    np.testing.assert_allclose(
      [x.score for x in a], [x.score for x in b], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('strategy', ['beam', 'sample'])
def test_neither_order_nor_batch_matters(run, strategy):
  sentences = sentences_of(run, 10)
  changes = dict(strategy=strategy, n_best=2)
  whole = translate(run, sentences, **changes)
  assert [len(found[0].text) > 0 for found in whole.hypotheses].count(True) > 6
  assert whole.hypotheses[2] == [Translation('', 0.0, 0.0)]
  assert whole.hypotheses[-1] == [Translation('', 0.0, 0.0)]
  assert 0 <= whole.padding < 1
  # Four rows at a time.
  told = []
  few = translate(
    run,
    sentences,
    max_tokens=64,
    progress=lambda done, total: told.append((done, total)),
    **changes,
  )
  assert_same(whole, few)
  assert told[0] < told[-1] == (8, 8) and told == sorted(told)
  if strategy != 'sample':  # A sample is drawn by the number of its line.
    back = translate(run, sentences[::-1], **changes)
    assert_same(whole, back._replace(hypotheses=back.hypotheses[::-1]))


def test_what_outgrows_the_usual_length_is_found(run):
  """The scores say so: each is the log-probability of its own text."""
  sentences = sentences_of(run, 6)
  found = translate(run, sentences, extra_length=30, strategy='greedy')
  chosen = [i for i, text in enumerate(found.texts) if text]
  assert max(len(found.texts[i].split()) for i in chosen) > 8 * 3 // 2 + 8
  scores = score_pairs(
    run.model,
    run.params,
    [(sentences[i], found.texts[i]) for i in chosen],
    vocabularies=run.vocabularies,
    max_tokens=4096,
  )
  # A task's vocabulary reads `<unk>`, should it be chosen, as unknown again.
  np.testing.assert_allclose(
    [score.log_prob for score in scores],
    [found.hypotheses[i][0].log_prob for i in chosen],
    rtol=0,
    atol=1e-4,
  )


def test_a_sentence_over_the_training_length_is_translated_whole(run):
  word = run.vocabularies.source.pieces([5])[0]
  length = 3 * run.config.data.max_length
  sentence = ' '.join([word] * length)
  found = translate(run, [sentence], strategy='greedy', extra_length=0)
  alone = score_pairs(
    run.model,
    run.params,
    [(sentence, found.texts[0])],
    vocabularies=run.vocabularies,
    max_tokens=64,
  )
  np.testing.assert_allclose(
    alone[0].log_prob, found.hypotheses[0][0].log_prob, rtol=1e-4
  )


class CalledError(Exception):
  """Ends a search before its work."""


@pytest.mark.parametrize(
  ('encoder', 'decoder', 'length'),
  # The text is 9 tokens long, 12 with its padding, and may grow by 20.
  [('sinusoid', 'learned', 10), ('learned', 'sinusoid', 32)],
)
def test_positions_limit_the_side_that_has_them(
  run, monkeypatch, encoder, decoder, length
):
  config = dataclasses.replace(
    run.model.config,
    position=encoder,
    position_decoder=decoder,
    max_positions=10,
  )
  seen = []

  def search(call, options):
    seen.append((call.source_BS.shape[1], call.limit_B.max(), call.length))
    raise CalledError

  monkeypatch.setitem(STRATEGIES, 'greedy', (search, lambda options: 1))
  monkeypatch.setattr(translate_lib, '_usual_length', lambda *_: 99)
  sizes = run.model.source_vocabulary, run.model.target_vocabulary
  own = run._replace(model=Transformer(config, *sizes))
  word = run.vocabularies.source.pieces([5])[0]
  nine, twelve = (' '.join([word] * n) for n in (8, 11))
  with pytest.raises(CalledError):
    translate(own, [nine], strategy='greedy', extra_length=20)
  assert seen == [(10 if encoder == 'learned' else 12, min(29, length), length)]
  # The text that is too long is refused where it would be read.
  long = (twelve, nine) if encoder == 'learned' else (nine, twelve)
  side = 'encoder' if encoder == 'learned' else 'decoder'
  told = f'line 1 has 12 tokens but the {side} of this .*max_positions=10'
  with pytest.raises(ConfigError, match=told):
    score_pairs(
      own.model, {}, [long], vocabularies=run.vocabularies, max_tokens=64
    )
  with pytest.raises(ConfigError, match=told):
    attention_maps(own.model, {}, long, vocabularies=run.vocabularies)


def test_a_sentence_over_the_positions_is_refused_by_its_line(run):
  learned = dataclasses.replace(
    run.model.config, position='learned', max_positions=10
  )
  sizes = run.model.source_vocabulary, run.model.target_vocabulary
  word = run.vocabularies.source.pieces([5])[0]
  refused = run._replace(model=Transformer(learned, *sizes))
  sentences = ['', ' '.join([word] * 9), ' '.join([word] * 10)]
  with pytest.raises(ConfigError, match='line 3 has 11 tokens .*=10'):
    translate(refused, sentences)
