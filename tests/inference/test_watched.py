"""What decodes and scores has a watchdog, as training has."""

import types

import pytest

from experiments import evaluate as evaluate_program
from experiments import translate as translate_program
from transformer_jax.fields import override
from transformer_jax.inference import evaluate, restore, translate
from transformer_jax.training import guard


class EnoughError(Exception):
  """Ends what was begun."""


@pytest.fixture
def dogs(monkeypatch):
  """[seconds, signs of life] of each watchdog; each call works two batches."""
  made = []

  class Dog(guard.Watchdog):
    def __init__(self, seconds):
      super().__init__(0)
      self.own = [seconds, 0]
      made.append(self.own)

    def beat(self):
      self.own[1] += 1

  def work(*_, progress, **__):
    progress(1, 2)
    progress(2, 2)
    raise EnoughError

  monkeypatch.setattr(restore, 'Watchdog', Dog)
  monkeypatch.setattr(evaluate, 'score_pairs', work)
  monkeypatch.setattr(translate, 'translate_sentences', work)
  return made


@pytest.mark.parametrize(
  ('work', 'given'),
  [
    (evaluate_program.scored, [('s1', 's2')]),
    (evaluate_program.translated, [('s1', 's2')]),
    (translate_program.score, [('s1', 's2')]),
    (translate_program.translate, ['s1']),
  ],
)
def test_each_batch_is_a_sign_of_life(dogs, run, work, given):
  config = override(run.config, {'train.step_timeout_seconds': 7})
  checks = []
  with pytest.raises(EnoughError):
    work(run._replace(config=config), given, lambda: checks.append(1))
  assert dogs == [[7, 2]] and len(checks) == 2


@pytest.mark.parametrize('given', [{}, {'train.step_timeout_seconds': 7}])
def test_the_patience_of_training_is_not_that_of_decoding(
  workdir, config, monkeypatch, given
):
  trained = override(config, {'train.step_timeout_seconds': 5})
  monkeypatch.setattr(restore.record, 'read_config', lambda _: trained)
  options = types.SimpleNamespace(workdir=workdir, overrides=given)
  # What is given goes over it, as every flag does.
  assert restore.config_of(options).train == config.train
