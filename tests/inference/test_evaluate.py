"""Scores against sums by hand, and the names of BLEU."""

import math

import jax
import numpy as np
import pytest

from transformer_jax.config import ConfigError
from transformer_jax.data.batches import held_out_batches
from transformer_jax.data.cache import Batch
from transformer_jax.data.corpus import open_corpus
from transformer_jax.fields import override
from transformer_jax.inference import evaluate
from transformer_jax.training.scores import row_sums, summarise


@pytest.fixture(scope='module')
def held_out(run, workdir):
  corpus = open_corpus(run.config.data, workdir=workdir, progress=print)
  pairs = corpus.pairs('validation')
  found = held_out_batches(pairs, run.config.data, 128)
  return [batch for _, batch in found], corpus.references('validation')


def scores(run, batches):
  rows = [row_sums(run.model, run.params, *b) for b in batches]
  return summarise(rows)


def test_scores_are_sums_over_tokens(run, held_out):
  batches, _ = held_out
  loss = correct = tokens = exact = sentences = 0
  full = jax.jit(
    lambda source, target: jax.nn.log_softmax(
      run.model.apply({'params': run.params}, source, target)
    )
  )
  for source_BS, target_BT in batches:
    log_probs_BTV = np.asarray(full(source_BS, target_BT), np.float64)
    for row, target_T in enumerate(target_BT):
      hits = []
      for t, token in enumerate(target_T):
        if token:
          loss -= log_probs_BTV[row, t, token]
          hits.append(np.argmax(log_probs_BTV[row, t]) == token)
      correct += sum(hits)
      tokens += len(hits)
      exact += bool(hits) and all(hits)
      sentences += bool(hits)
  found = scores(run, batches)
  np.testing.assert_allclose(found.loss, loss / tokens, rtol=1e-5)
  np.testing.assert_allclose(found.perplexity, math.exp(found.loss))
  assert found.accuracy == correct / tokens
  assert found.exact == exact / sentences
  assert (found.tokens, found.sentences) == (tokens, sentences)


def test_pairs_give_the_scores_of_their_batches(run, held_out):
  batches, references = held_out
  pairs = evaluate.score_pairs(
    run.model,
    run.params,
    references,
    vocabularies=run.vocabularies,
    max_tokens=100,
  )
  found = evaluate.scores_of_pairs(pairs)
  expected = scores(run, batches)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_nothing_to_score_is_refused(run):
  nothing = np.zeros((8, 4), np.int32)
  with pytest.raises(ConfigError, match='no target token'):
    scores(run, [Batch(nothing, nothing)])


def test_tokenised_bleu_has_its_own_name():
  text = ['ein Hund läuft über das Gras , sagt er .', 'zwei Kinder']
  raw = evaluate.bleu(text, text, text='raw')
  tokenised = evaluate.bleu(text, text, text='pretokenized')
  ratio = raw.pop('length_ratio')
  assert ratio == tokenised.pop('length_ratio') > 0
  assert set(raw) == {'bleu', 'bleu_signature', 'chrf', 'chrf_signature'}
  assert set(tokenised) == {
    'tokenized_bleu',
    'tokenized_bleu_signature',
    'tokenized_chrf',
    'tokenized_chrf_signature',
  }
  assert 'tok:13a' in raw['bleu_signature']
  assert 'tok:none' in tokenised['tokenized_bleu_signature']
  np.testing.assert_allclose(raw['bleu'], 100.0)
  np.testing.assert_allclose(tokenised['tokenized_bleu'], 100.0)


def test_bleu_by_hand():
  """5 of 6 words, 3 of 5 pairs, 2 of 4, 1 of 3; as long as the reference."""
  found = evaluate.bleu(['a b c d x f'], ['a b c d e f'], text='pretokenized')
  precisions = 5 / 6 * 3 / 5 * 2 / 4 * 1 / 3
  np.testing.assert_allclose(
    found['tokenized_bleu'], 100 * precisions**0.25, rtol=1e-6
  )


@pytest.mark.parametrize(
  ('text', 'tokenize', 'told'),
  [
    ('raw', 'moses', 'not one of 13a, intl'),
    ('pretokenized', 'zh', 'scored as it stands'),
    ('pretokenized', '13a', 'scored as it stands'),
  ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(text, tokenize, told):
  with pytest.raises(ConfigError, match=told):
    evaluate.bleu(['a'], ['a'], text=text, tokenize=tokenize)


def test_greedy_bleu_of_a_model_that_knows_nothing(run, held_out):
  _, references = held_out
  # The same whatever a resumed run is to be decoded with.
  other = override(run.config, {'decode.extra_length': 1, 'decode.alpha': 1.0})
  scores, said = [], []
  for config in (run.config, other):
    score = evaluate.greedy_bleu(config)
    for _ in range(2):
      scores.append(score(run.params, run, references[:4], say=said.append))
  assert all(found == scores[0] for found in scores)
  assert 0 <= scores[0]['bleu'] < 50
  assert len(said) == 2 and 'bleu: of greedy' in said[0]
  assert 'tok:13a' in said[0] and scores[0]['bleu_signature'] in said[0]
