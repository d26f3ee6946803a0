"""Controls of equal size, and Table 3 as data."""

import pytest

from experiments.matched import matched, parameters
from experiments.presets import PRESETS
from tests.pairs import AXES, refusal
from transformer_jax.ablation.table3 import PUBLISHED, ROWS
from transformer_jax.config import Config, ConfigError, override

VOCABULARY = 41_100  # at which base has the paper's 65 million


def baseline() -> Config:
  """The size of a study's model; each choice alone is valid."""
  values = PRESETS['reverse'].overrides
  return override(Config(), {**values, 'model.tie': 'none'})


def changing() -> list[tuple[str, str]]:
  """Choices with another number of parameters than the baseline."""
  config = baseline()
  count = parameters(config, 20)
  found = []
  for path, choices in AXES.items():
    for choice in choices:
      variant = override(config, {path: choice, 'model.d_position': 16})
      if not refusal(variant) and parameters(variant, 20) != count:
        found.append((path, choice))
  return found


@pytest.mark.slow
def test_a_control_has_the_variants_parameters_within_one_percent():
  found = changing()
  axes = {path for path, _ in found}
  assert axes >= {
    'model.score',
    'model.projections',
    'model.output_projection',
    'model.position',
    'model.position_join',
    'model.norm',
    'model.tie',
  }
  for path, choice in found:
    if choice == 'identity':
      # Fewer than the baseline has without any feed-forward: said, not done.
      with pytest.raises(ConfigError, match='no model.d_ff gives'):
        matched(baseline(), {path: choice, 'model.d_position': 16}, 20)
      continue
    variant = {path: choice, 'model.d_position': 16}
    control = override(baseline(), matched(baseline(), variant, 20))
    wanted = parameters(override(baseline(), variant), 20)
    assert abs(parameters(control, 20) - wanted) <= 0.01 * wanted, path
    assert override(control, {'model.d_ff': 128}) == baseline()


def test_a_control_of_one_variant():
  variant = {'model.projections': 'shared_query_key'}
  control = matched(baseline(), variant, 20)
  assert control['model.d_ff'] < baseline().model.d_ff
  wanted = parameters(override(baseline(), variant), 20)
  found = parameters(override(baseline(), control), 20)
  assert abs(found - wanted) <= 0.01 * wanted
  assert matched(baseline(), {'model.scale': 'none'}, 20) == {}


def test_no_control_is_one_line():
  with pytest.raises(ConfigError, match='no model.d_ff gives the baseline'):
    matched(baseline(), {'model.d_model': 8, 'model.d_ff': 1}, 20)


@pytest.mark.parametrize('name', PUBLISHED)
def test_table_3_has_the_printed_parameters(name):
  millions = PUBLISHED[name].millions
  config = override(Config(), PRESETS[name].overrides)
  # The printed 213 of big are those of a smaller vocabulary.
  vocabulary = 35_800 if name == 'big' else VOCABULARY
  if millions is not None:
    assert round(parameters(config, vocabulary) / 1e6) == millions


def test_table_3_is_whole():
  assert len(ROWS) == 18
  rows = {name[0] for name in ROWS}
  assert rows == set('abcde')
  for name, row in ROWS.items():
    assert 4 < row.published.perplexity < 7, name
    assert 23 < row.published.bleu < 27, name
    # One row, one axis: heads change their width with their number.
    config = override(Config(), PRESETS[f'table3_{name}'].overrides)
    if name.startswith('a_'):
      model = config.model
      assert model.heads * model.d_k == model.heads * model.d_v == 512
