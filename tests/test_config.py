"""The config: overrides, JSON, what is refused, and the goldens."""

import json
import pathlib
import re

import pytest

from experiments.presets import PRESETS
from transformer_jax.config import SIDES, Config, ConfigError, ModelConfig
from transformer_jax.fields import (
  FIELDS,
  difference,
  from_json,
  override,
  to_json,
)
from transformer_jax.rules import validate

GOLDENS = pathlib.Path(__file__).parent / 'goldens' / 'presets'


def golden(name: str) -> str:
  config = override(Config(), PRESETS[name].overrides)
  return to_json(config) + '\n'


@pytest.mark.parametrize('name', PRESETS)
def test_preset_is_its_golden(name):
  # `make goldens` rewrites them; the diff then shows what changed.
  assert golden(name) == (GOLDENS / f'{name}.json').read_text()


@pytest.mark.parametrize('name', PRESETS)
def test_preset_is_valid_and_says_nothing_twice(name):
  config = override(Config(), PRESETS[name].overrides)
  validate(config)
  changed = difference(Config(), config)
  assert set(changed) == set(PRESETS[name].overrides)
  assert config.decode.average <= config.train.keep_latest


def test_no_golden_without_a_preset():
  assert {path.stem for path in GOLDENS.glob('*.json')} == set(PRESETS)


def test_json_round_trip():
  config = override(Config(), PRESETS['tiny'].overrides)
  text = to_json(config)
  assert from_json(text) == config
  assert json.loads(text)['model.d_model'] == 128


def test_base_model_of_the_paper():
  model, optim = Config().model, Config().optim
  assert (model.layers, model.d_model, model.d_ff) == (6, 512, 2048)
  assert (model.heads, model.d_k, model.d_v) == (8, 64, 64)
  assert (model.dropout, optim.label_smoothing) == (0.1, 0.1)
  assert (optim.beta1, optim.beta2, optim.epsilon) == (0.9, 0.98, 1e-9)
  assert optim.warmup_steps == 4000


def test_learned_positions_alone_have_an_end():
  model = ModelConfig(position_decoder='learned', max_positions=9)
  assert [model.longest(side) for side in SIDES] == [None, 9]


def test_override_takes_an_integer_for_a_float():
  config = override(Config(), {'model.dropout': 0})
  assert config.model.dropout == 0.0
  assert type(config.model.dropout) is float


@pytest.mark.parametrize(
  'path, value, words',
  [
    ('model.score_', 1, 'no config field model.score_'),
    ('model.d_modle', 1, 'did you mean model.d_model?'),
    ('model.d_model', 1.0, 'model.d_model takes a int, not 1.0'),
    ('model.d_model', '1', "model.d_model takes a int, not '1'"),
    ('model.norm_order', 'in', 'model.norm_order=in is not one of post, pre'),
    ('model.dropout', float('nan'), 'model.dropout=nan must be finite'),
  ],
)
def test_override_refuses(path, value, words):
  with pytest.raises(ConfigError, match=re.escape(words)):
    override(Config(), {path: value})


@pytest.mark.parametrize(
  'values, word',
  [
    ({'model.layers': 0}, 'model.layers=0'),
    ({'train.seed': -1}, 'train.seed=-1'),
    ({'train.seed': 2**31}, 'train.seed=2147483648 must lie in [0, 2^31)'),
    ({'decode.seed': 2**31}, 'decode.seed=2147483648'),
    ({'model.dropout': 1.0}, 'model.dropout=1.0'),
    ({'optim.epsilon': 0.0}, 'optim.epsilon=0.0'),
    ({'decode.temperature': 0.0}, 'decode.strategy=greedy'),
    ({'model.d_model': 513}, 'must be even'),
    ({'model.position': 'learned', 'model.max_positions': 9}, 'max_positions'),
    ({'data.vocabulary': 'separate'}, 'model.tie=decoder'),
    ({'decode.strategy': 'greedy', 'decode.n_best': 2}, 'decode.n_best'),
    ({'decode.n_best': 9}, 'decode.beam_size=4'),
    ({'decode.top_k': 5}, 'decode.top_k=5 is read by decode.strategy=sample'),
    ({'decode.temperature': 0.5}, 'take --decode.strategy=sample'),
    ({'data.task_min_length': 13}, 'data.task_max_length=12'),
    ({'data.task_noise': 1.0}, 'data.task_noise=1.0'),
    ({'data.max_tokens': 2047}, 'does not hold 8 sentences'),
  ],
)
def test_validate_names_the_field(values, word):
  with pytest.raises(ConfigError, match=re.escape(word)) as error:
    validate(override(Config(), values))
  assert '\n' not in str(error.value)


def test_difference_shows_both_values():
  new = override(Config(), {'train.steps': 5})
  assert difference(Config(), new) == {'train.steps': (100_000, 5)}


def test_every_field_says_what_it_affects_and_means():
  for field in FIELDS.values():
    assert field.affects in ('result', 'run')
    assert field.help
    assert field.type in (int, float, str)


def rewrite_goldens() -> None:
  GOLDENS.mkdir(parents=True, exist_ok=True)
  for path in GOLDENS.glob('*.json'):
    path.unlink()
  for name in PRESETS:
    (GOLDENS / f'{name}.json').write_text(golden(name))


if __name__ == '__main__':
  rewrite_goldens()
