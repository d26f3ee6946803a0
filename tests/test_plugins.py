"""A score function from one user's file, without a fork."""

import pathlib
import re

import jax
import numpy as np
import pytest

from tests.choices import BATCH, V, base
from transformer_jax import config as config_lib
from transformer_jax import flags, plugins
from transformer_jax.config import ConfigError, override
from transformer_jax.nn import attention, randomness
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training.state import initial_state, numbers, train_step

EXAMPLE = 'experiments/examples/gaussian_score.py'
FILE = pathlib.Path(__file__).parent.parent / EXAMPLE


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
  """What a plugin adds is gone after the test."""
  monkeypatch.setattr(config_lib, 'FIELDS', dict(config_lib.FIELDS))
  monkeypatch.setattr(plugins, '_LOADED', set())
  before = dict(attention.SCORES)
  yield
  attention.SCORES.clear()
  attention.SCORES.update(before)


def test_a_score_from_a_file_is_a_choice_and_trains():
  words = ['--preset=test', f'--plugin={FILE}', '--model.score=gaussian']
  config, _ = flags.parse(words)
  assert config.model.score == 'gaussian'
  assert 'gaussian' in flags.help_text(lambda config, options: 0, ())
  assert config_lib.from_json(config_lib.to_json(config)) == config
  # Twice in a process is once.
  assert flags.parse(['--plugin', str(FILE), *words])[0] == config
  losses = []
  for changes in ({}, {'model.score': 'gaussian'}):
    config = override(base(), changes)
    model = Transformer(config.model, V, V)
    start = jax.jit(initial_state(config, model))(randomness.seed_key(0))
    step = jax.jit(train_step(config, model))
    found = step(start, BATCH, randomness.seed_key(0), numbers(config))[1]
    losses.append(float(found.losses.smoothed))
  assert np.isfinite(losses).all() and losses[0] != losses[1]


def test_the_example_is_its_formula():
  plugins.load([f'--plugin={FILE}'])
  key = randomness.seed_key(0)
  q, k = (randomness.normal(randomness.at(key, n), (2, 3, 2, 4)) for n in 'qk')
  found = attention.SCORES['gaussian'].scores(q, k, scale=0.5)
  for b, h, t, s in [(0, 0, 0, 0), (1, 1, 2, 0)]:
    wanted = -0.25 * np.sum(
      (np.asarray(q)[b, t, h] - np.asarray(k)[b, s, h]) ** 2
    )
    np.testing.assert_allclose(found[b, h, t, s], wanted, rtol=1e-5)


def test_what_is_wrong_is_one_line(tmp_path):
  bad = tmp_path / 'bad.py'
  bad.write_text('import not_there\n')
  listed = tmp_path / 'flags'
  listed.write_text(f'--plugin={FILE}\n')
  for words, text in [
    (['--plugin=nothing.py'], 'is not a Python file'),
    ([f'--plugin={bad}'], "ModuleNotFoundError: No module named 'not_there'"),
    ([f'--flagfile={listed}'], '--plugin is read before any --flagfile'),
    (['--model.score=gaussian'], 'is not one of'),
  ]:
    with pytest.raises(ConfigError, match=re.escape(text)):
      flags.parse(words)
  with pytest.raises(ConfigError, match='is there already'):
    plugins.add('model.score', 'dot', attention.SCORES, None)
  with pytest.raises(ConfigError, match='no field with named values'):
    plugins.add('model.layers', 'many', {}, None)
