"""Controls of equal size, and Table 3 as data."""

import pytest

from experiments import studies
from experiments.matched import TOLERANCE, matched, parameters, with_overrides
from experiments.presets import PRESETS
from tests.pairs import AXES, refusal
from transformer_jax.ablation.cells import arm_config
from transformer_jax.ablation.study import Arm, Study, find_arm
from transformer_jax.ablation.table3 import PUBLISHED, ROWS
from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import difference, override

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


# What makes a model larger or smaller and nothing else.
SIZES = {
  f'model.{name}'
  for name in ('layers', 'd_model', 'd_ff', 'heads', 'd_k', 'd_v')
}
# Arms of another size than what they are held against, without a control.
UNMATCHED = {
  'paper': {'additive': 'w of the scores, 1.2 % of the model'},
  'scaling': {
    'd_k=256 score=additive scale=none': 'w of the scores, 1.2 % of the model'
  },
  'table3': {
    'e_learned': 'a row of the paper, which has no control',
    'big': 'a row of the paper, which has no control',
  },
}
QUICK = ('positions', 'scoring', 'projections')


def count(config: Config) -> int:
  """At the 20 tokens of `reverse`; of other tasks differences matter only."""
  return parameters(config, 20)


def near(one: Config, other: Config) -> bool:
  return abs(count(one) - count(other)) <= TOLERANCE * count(one)


def plain(study: Study, arm: Arm) -> bool:
  """Whether it is the baseline but for sizes."""
  base, own = (arm_config(study, one) for one in (study.arms[0], arm))
  return difference(base, own).keys() <= SIZES


def controlled(study: Study, arm: Arm, against: Arm) -> bool:
  """Whether the baseline is there in its size, or it in that of `against`."""
  own, other = arm_config(study, arm), arm_config(study, against)
  if near(own, other):
    return True
  for one in study.arms:
    found = arm_config(study, one)
    if plain(study, one) and near(own, found):
      return True
    if difference(own, found).keys() <= SIZES and near(other, found):
      return True
  return False


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in studies.names()
  ],
)
def test_an_arm_of_another_size_has_a_control_or_a_reason(name):
  study = studies.load(name)
  against = {one.variant: one.baseline for one in reversed(study.primary)}
  found = set()
  for arm in study.arms[1:]:
    if plain(study, arm):
      continue
    other = find_arm(study, against.get(arm.name, study.arms[0].name))
    if not controlled(study, arm, other):
      found.add(arm.name)
  assert found == set(UNMATCHED.get(name, {}))


@pytest.mark.parametrize(
  'name', ['narrowing', 'norms', 'paper', 'positions', 'scoring']
)
def test_controls_of_equal_size_are_those_that_are_found(name):
  study = studies.load(name)
  controls = [arm for arm in study.arms if arm.name.startswith('as large as ')]
  assert controls
  for arm in controls:
    variant = find_arm(study, arm.name.removeprefix('as large as '))
    base = arm_config(study, study.arms[0])
    assert arm.overrides == matched(base, variant.overrides, 20)
    assert arm.role == 'control'


def test_a_control_is_found_anew_for_another_model():
  study = studies.load('positions')
  wider = with_overrides(study, {'model.d_model': 48, 'model.d_ff': 50})
  assert [arm.name for arm in wider.arms] == [arm.name for arm in study.arms]
  assert (wider.primary, wider.axes) == (study.primary, study.axes)
  name = 'position_join=concat_project'
  variant, control, base = (
    arm_config(wider, find_arm(wider, one))
    for one in (name, f'as large as {name}', 'baseline')
  )
  assert base.model.d_ff == 50 and control.model.d_ff > 50
  assert near(variant, control) and not near(variant, base)
  assert with_overrides(study, {'train.steps': 9}).arms == study.arms
  with pytest.raises(ConfigError, match='model.position is an axis'):
    with_overrides(study, {'model.position': 'none'})


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
