"""Controls of equal size, and Table 3 as data."""

import dataclasses
import re
import types

import pytest

from experiments import studies
from experiments.ablate import left_out
from experiments.presets import PRESETS
from tests.pairs import AXES, refusal
from transformer_jax.ablation.cells import arm_config
from transformer_jax.ablation.matched import (
  TOLERANCE,
  controls,
  matched,
  parameters,
  with_overrides,
)
from transformer_jax.ablation.study import Arm, Study, find_arm
from transformer_jax.ablation.table3 import PUBLISHED, ROWS
from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import difference, override

VOCABULARY = 41_100  # at which base has the paper's 65 million


def baseline() -> Config:
  """The size of a study's model; each choice alone is valid."""
  values = PRESETS['reverse'].overrides
  return override(Config(), {**values, 'model.tie': 'none'})


def with_choice(path: str, choice: str) -> Config:
  return override(baseline(), {path: choice, 'model.d_position': 16})


def changing() -> list[tuple[str, str]]:
  """Choices with another number of parameters than the baseline."""
  config = baseline()
  count = parameters(config, 20)
  found = []
  for path, choices in AXES.items():
    for choice in choices:
      variant = with_choice(path, choice)
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
        matched(baseline(), with_choice(path, choice), 20)
      continue
    variant = with_choice(path, choice)
    control = override(baseline(), matched(baseline(), variant, 20))
    wanted = parameters(variant, 20)
    assert abs(parameters(control, 20) - wanted) <= 0.01 * wanted, path
    assert override(control, {'model.d_ff': 128}) == baseline()


def test_a_control_of_one_variant():
  variant = with_choice('model.projections', 'shared_query_key')
  control = matched(baseline(), variant, 20)
  assert control['model.d_ff'] < baseline().model.d_ff
  wanted = parameters(variant, 20)
  found = parameters(override(baseline(), control), 20)
  assert abs(found - wanted) <= 0.01 * wanted
  unscaled = with_choice('model.scale', 'none')
  assert matched(baseline(), unscaled, 20) == {}


def test_no_control_is_one_line():
  small = override(baseline(), {'model.d_model': 8, 'model.d_ff': 1})
  with pytest.raises(ConfigError, match='no model.d_ff gives'):
    matched(baseline(), small, 20)


# What makes a model larger or smaller and nothing else.
SIZES = {
  f'model.{name}'
  for name in ('layers', 'd_model', 'd_ff', 'heads', 'd_k', 'd_v')
}
# Arms of another size than what they are held against, without a control.
UNMATCHED = {
  'paper': {'additive': 'w of the scores, 1.2 % of the model'},
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
  'name, many',
  [
    *(('narrowing', 1), ('norms', 2), ('paper', 1), ('positions', 3)),
    *(('projections', 1), ('scaling', 1), ('scoring', 1)),
    pytest.param('one_factor', 10, marks=pytest.mark.slow),
  ],
)
def test_controls_of_equal_size_are_those_that_are_found(name, many):
  study = studies.load(name)
  found = controls(study)
  assert len(found) == many
  for control, (own, other) in found.items():
    arm = find_arm(study, control)
    width = matched(arm_config(study, own), arm_config(study, other), 20)
    assert arm.overrides == {**own.overrides, **width}
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


# Of the README's command for a corpus, what sizes a model.
OWN_TEXT = {'data.source': 'files:DIR', 'data.vocabulary_size': 4000}


@pytest.mark.parametrize(
  'values, vocabulary',
  [
    ({'model.d_model': 64}, 20),
    ({**OWN_TEXT, 'model.d_ff': 1024}, 4000),
  ],
)
def test_a_control_is_found_anew_for_the_vocabulary_that_is_read(
  values, vocabulary
):
  study = with_overrides(studies.load('narrowing'), values)
  ((control, (_, variant)),) = controls(study).items()
  wanted = parameters(arm_config(study, variant), vocabulary)
  found = parameters(arm_config(study, find_arm(study, control)), vocabulary)
  assert abs(found - wanted) <= TOLERANCE * wanted


def test_what_no_width_makes_is_refused_if_it_is_judged_and_else_left_out():
  """Untied, a narrower embedding saves more than a feed-forward has."""
  study = studies.load('narrowing')
  with pytest.raises(ConfigError, match='no model.d_ff gives') as raised:
    with_overrides(study, OWN_TEXT)
  least = int(
    re.findall(r'take --model.d_ff=(\d+) or more', str(raised.value))[0]
  )
  wide = with_overrides(study, {**OWN_TEXT, 'model.d_ff': least})
  assert wide.arms[2].overrides['model.d_ff'] == 1
  judged = study.primary
  study = dataclasses.replace(study, primary=(judged[0], judged[2]))
  without = with_overrides(study, OWN_TEXT)
  assert len(without.arms) == len(study.arms) - 1 and not controls(without)
  assert without.primary == study.primary
  assert 'model.d_ff' not in without.axes
  options = types.SimpleNamespace(overrides={}, preset='')
  said = [f'{study.arms[2].name} is left out: no width of the feed-forward']
  assert [s[: len(said[0])] for s in left_out(study, without, options)] == said


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
