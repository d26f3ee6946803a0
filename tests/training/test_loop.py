"""The loop: when it calls, evaluates, chooses and stops."""

import types
from typing import Any

import jax
import numpy as np
import pytest

from tests.training.runs import rows
from transformer_jax.config import Config, ConfigError
from transformer_jax.data.batches import Shape
from transformer_jax.data.corpus import open_corpus
from transformer_jax.fields import override
from transformer_jax.nn import implementations
from transformer_jax.training import compiled, loop, setup
from transformer_jax.training import place as place_lib
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.population import Member, Population


def test_a_call_is_made_before_the_numbers_of_the_last_are_read(
  train, monkeypatch
):
  order = []
  make, write = compiled.Steps.__call__, loop.write

  def call(self, state, *rest):
    order.append(f'call {int(state.step)}')
    return make(self, state, *rest)

  def read(run, pending):
    if pending is not None:
      order.append(f'read {pending[0]}')
    write(run, pending)

  monkeypatch.setattr(compiled.Steps, '__call__', call)
  monkeypatch.setattr(loop, 'write', read)
  assert train(train__steps=8)[0] == 0
  # Calls are of two steps. Before a save all has been read.
  assert order == [
    *('call 0', 'call 2', 'read 0', 'call 4', 'read 2'),
    *('call 6', 'read 4', 'read 6'),
  ]


def test_patience_stops_and_stays(train, tmp_path):
  # Nothing is learnt, so no evaluation is better than the first.
  still = dict(optim__learning_rate=0.0, train__patience=1)
  code, err = train(**still)
  assert code == 0 and 'finished at step 16 of 24: no better validation' in err
  metrics = (tmp_path / 'run' / 'metrics.jsonl').read_bytes()
  code, err = train(**still, train__steps=100)
  assert code == 0 and 'is finished at step 16 of 100: no better' in err
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == metrics
  # With more of it the run goes on where it stopped.
  code, err = train(**still | dict(train__patience=0))
  assert code == 0 and 'finished at step 24\n' in err


def test_patience_is_counted_from_the_best(set_up):
  run = set_up(train__patience=2, train__best_metric='accuracy')

  def after(*accuracies):
    run.metrics.cut_back(0)
    validations = [
      (n, 'validation', {'accuracy': a}) for n, a in enumerate(accuracies, 1)
    ]
    run.metrics.append([*validations, (9, 'train', {'accuracy': 1.0})])
    return loop.out_of_patience(run)

  assert not after()
  assert not after(0.5, 0.4)
  assert after(0.5, 0.4, 0.5)
  assert not after(0.5, 0.4, 0.6)
  assert not after(0.5, 0.4, 0.6, 0.5)
  assert after(0.5, 0.4, 0.6, 0.5, 0.5)


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_held_out_pairs_beyond_the_positions_are_refused(
  config, set_up, monkeypatch, tmp_path, split
):
  learned = {'model.position_decoder': 'learned', 'model.max_positions': 16}
  corpus = open_corpus(config.data, workdir=None, progress=print)
  whole = corpus.pairs(split)
  lengths = whole.lengths[0] + 99, whole.lengths[1] + 17
  short = {
    'validation': corpus.pairs('validation'),
    'test': corpus.pairs('test'),
  }
  long = types.SimpleNamespace(lengths=lengths)
  monkeypatch.setattr(
    corpus, 'pairs', lambda name: {**short, split: long}[name]
  )
  monkeypatch.setattr(setup, 'open_corpus', lambda *_, **__: corpus)
  told = f'a pair of {split} has .. tokens for the decoder, .*max_positions=16'
  with pytest.raises(ConfigError, match=told):
    set_up(**{name.replace('.', '__'): x for name, x in learned.items()})
  member = Member(override(config, learned), tmp_path)
  with pytest.raises(ConfigError, match=told):
    Population([member], corpus, place_lib.on(jax.devices()[:1]), 1)


# BLEU is best at step 16, the loss at 24.
@pytest.mark.parametrize(
  ('field', 'best'),
  [
    ({'train.best_metric': 'bleu'}, 16),
    ({'train.evaluate_bleu': 'always'}, 24),
  ],
)
def test_bleu_chooses_the_best_when_asked(config, tmp_path, capfd, field, best):
  scores = iter([3.0, 9.0, 5.0])

  def bleu(params, corpus, pairs, check, say):
    check()
    say('the signature')
    assert len(pairs) == config.data.task_held_out
    return {'bleu': next(scores), 'bleu_signature': 'how'}

  chosen = override(config, field)
  with pytest.raises(ConfigError, match='needs a scorer'):
    loop.train(chosen, workdir=str(tmp_path))
  assert loop.train(chosen, workdir=str(tmp_path), bleu=bleu) == 0
  validations = [row for row in rows(tmp_path) if row['split'] == 'validation']
  assert [row['bleu'] for row in validations] == [3.0, 9.0, 5.0]
  assert {row['bleu_signature'] for row in validations} == {'how'}
  err = capfd.readouterr().err
  assert err.count('the signature') == 3 and err.count(', bleu 9\n') == 1
  mode = 'max' if 'train.best_metric' in field else 'min'
  checkpoints = Checkpoints(
    tmp_path / 'checkpoints', keep_latest=9, keep_best=1, best_metric_mode=mode
  )
  assert checkpoints.best() == best


def test_bleu_of_separated_tokens_has_its_own_name():
  chosen = override(Config(), {'train.best_metric': 'bleu'})
  assert loop.best_metric(chosen) == 'bleu'
  tokens = override(chosen, {'data.text': 'pretokenized'})
  assert loop.best_metric(tokens) == 'tokenized_bleu'
  assert loop.best_metric(Config()) == 'loss'


def test_calls_end_where_something_is_due(set_up):
  run = set_up(
    data__batches_per_run=4,
    train__save_every=6,
    train__evaluate_every=9,
    train__steps=11,
  )
  cuts, step = [], 0
  while step < 11:
    step += loop.steps_in_call(run.plan, run.config, step)
    cuts.append(step)
  assert cuts == [4, 6, 8, 9, 11]
  batches = loop.stacked(run.plan, run.config, 4, 2)
  assert batches.source_BS.shape[0] == 4
  np.testing.assert_array_equal(
    batches.source_BS[1], run.plan.batch(0, 5).source_BS
  )


def test_defaults_of_the_paper_are_a_run():
  assert loop.numbers(Config()).label_smoothing == 0.1


def test_the_program_of_the_widest_shape_is_said(config):
  served = implementations.serve(config.model, platform='cpu')
  for count, name in ((8, 'the formula'), (10**6, 'blocks')):
    shapes = (Shape(8, 4, 4), Shape(count, 5, 9))
    plan: Any = types.SimpleNamespace(shapes=shapes)
    found = setup.at_the_widest(config, served, plan)
    assert found == f'; of {count} sentences of 9 tokens: {name}'
