"""Declarations: what is refused, how cells are named."""

import dataclasses
import re

import pytest

from tests.ablation.small import STUDY, changed
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import checks, tuning
from transformer_jax.ablation import study as study_lib
from transformer_jax.ablation.checks import check
from transformer_jax.ablation.study import (
  Arm,
  LearningRates,
  Primary,
  axis,
  one_factor,
  product,
  zipped,
)
from transformer_jax.config import ConfigError


@pytest.mark.parametrize(
  'fields, text',
  [
    (
      dict(arms=(Arm('a', {}), Arm('b', {'model.heads': 2}))),
      'arm b varies model.heads, which is not among the declared axes',
    ),
    (dict(arms=(Arm('a', {}), Arm('a', {}))), 'two arms named a'),
    (dict(arms=()), 'no arms'),
    (dict(arms=(Arm('a', {}, 'bad'),)), 'role bad is not one of control'),
    (dict(axes=('model.scal',)), 'no config field model.scal'),
    (dict(axes=('train.seed',)), 'train.seed is set by the study'),
    (dict(primary=STUDY.primary * 5), '5 primary comparisons; at most 4'),
    (
      dict(primary=(Primary('scale=non', 'baseline'),)),
      'no variant scale=non (did you mean scale=none?)',
    ),
    (dict(primary=(Primary('baseline', 'baseline'),)), 'with itself'),
    (
      dict(primary=(Primary('scale=none', 'baseline', 'los'),)),
      'metric los is not one of loss',
    ),
    (
      dict(primary=(Primary('scale=none', 'baseline', better='higher'),)),
      'better loss is lower',
    ),
    (
      dict(primary=(Primary('scale=none', 'baseline', margin=0.0),)),
      'margin 0.0 must be positive',
    ),
    (
      dict(primary=(Primary('scale=none', 'baseline', 'steps_to_threshold'),)),
      'needs a threshold',
    ),
    (
      dict(
        primary=(
          Primary('scale=none', 'baseline', 'steps_to_threshold', margin=50),
        ),
        threshold=1.0,
      ),
      'steps_to_threshold has no margin',
    ),
    (
      dict(probes=('score_rang',)),
      'probe score_rang is not one of score_variance, score_range',
    ),
    (dict(probes=('input_varianc',)), '(did you mean input_variance?)'),
    (dict(views=('head',)), 'view head is not one of heads, places'),
    (dict(views=('links',)), 'view links is of task:korean, not of '),
    (dict(looks=(4, 2)), 'numbers of seeds that rise'),
    (dict(looks=(2, 3)), 'the last look is at 3 seeds, and 4 are planned'),
    (
      dict(tuning=LearningRates((1.0,), (10,), (3, 4, 5))),
      'seeds 3 are used for tuning and for testing',
    ),
    (
      dict(tuning=LearningRates((1.0,), (10,), (9, 10, 10))),
      'at least 3 different seeds, not 2',
    ),
    *(
      (
        dict(tuning=LearningRates(rates, (10,), (7, 8, 9))),
        f'{text} of its tuning are neighbours; each must be 2 times the',
      )
      for rates, text in (
        ((4.0, 1.0), 'rates 1 and 4'),
        ((1.0, 2.0, 3.0), 'rates 2 and 3'),
        ((2.0, 1.0, 2.0), 'rates 2 and 2'),
      )
    ),
    (
      dict(tuning=LearningRates((1.0,), (9, 10, 9), (7, 8, 9))),
      'a warmup of its tuning is there twice, of 9, 10, 9',
    ),
    (
      dict(
        axes=('optim.learning_rate',),
        arms=(STUDY.arms[0], Arm('fast', {'optim.learning_rate': 2.0})),
      ),
      'arm fast: optim.learning_rate is set by its tuning; leave it out, or '
      'give optim.warmup_steps too',
    ),
    (dict(baseline={'model.layers': 0}), 'arm baseline: model.layers=0'),
    (dict(baseline={'train.patience': 2}), 'train.patience=2'),
    (
      dict(baseline={'train.evaluate_bleu': 'always'}),
      'train.evaluate_bleu=always is of a run by itself',
    ),
    (
      dict(free_running=('pronoun',)),
      'arm baseline: free_running pronoun is of task:korean, not of '
      'data.source=task:',
    ),
  ],
)
def test_a_bad_declaration_is_refused_in_one_line(fields, text):
  with pytest.raises(ConfigError, match=f'^[^\n]*{re.escape(text)}[^\n]*$'):
    check(changed(**fields))


def test_one_warmup_for_arms_that_change_the_first_steps_is_said():
  (line,) = checks.doubts(STUDY)
  assert 'model.scale may want' in line and '\n' not in line
  two = LearningRates((1.0, 2.0), (10, 100), (100, 101, 102))
  assert checks.doubts(changed(tuning=two)) == []
  (line,) = checks.doubts(changed(tuning=None))
  assert 'one recipe only, and model.scale may want' in line
  for grid in (STUDY.tuning, None):
    other = dict(axes=('model.d_k',), arms=STUDY.arms[:1], tuning=grid)
    assert checks.doubts(changed(**other)) == []


def test_the_declaration_is_accepted():
  assert check(STUDY) is STUDY


def test_overrides_reach_all_arms_and_never_an_axis():
  study = checks.with_overrides(STUDY, {'model.d_ff': 64})
  assert {
    cells_lib.arm_config(study, arm).model.d_ff for arm in study.arms
  } == {64}
  with pytest.raises(ConfigError, match='--model.scale is an axis'):
    checks.with_overrides(STUDY, {'model.scale': 'none'})
  with pytest.raises(ConfigError, match="the seeds are the study's"):
    checks.with_overrides(STUDY, {'train.seed': 3})


def test_scores_of_one_source_are_left_out_on_other_data():
  korean = {**STUDY.baseline, 'data.source': 'task:korean'}
  study = check(changed(baseline=korean, free_running=('generated', 'pronoun')))
  kept = checks.with_overrides(study, {'model.d_ff': 64})
  assert kept.free_running == ('generated', 'pronoun')
  other = checks.with_overrides(study, {'data.source': 'files:corpus'})
  assert other.free_running == ('generated',)
  judged = dataclasses.replace(
    study, primary=(Primary('scale=none', 'baseline', 'pronoun', 'higher'),)
  )
  with pytest.raises(ConfigError, match='pronoun must be among its free_run'):
    checks.with_overrides(judged, {'data.source': 'files:corpus'})


def test_combinators():
  grid = product(axis('model.d_k', 1, 2), axis('model.scale', 'none'))
  assert [study_lib.name_of(one) for one in grid] == [
    'd_k=1 scale=none',
    'd_k=2 scale=none',
  ]
  with pytest.raises(ConfigError, match='one length, not 1, 2'):
    zipped(axis('model.d_k', 1), axis('model.d_v', 1, 2))
  with pytest.raises(ConfigError, match='both 1 and 2'):
    product(axis('model.d_k', 1), axis('model.d_k', 2))
  found = one_factor(
    {},
    ['model.tie', 'data.vocabulary'],
    needs={'data.vocabulary=separate': {'model.tie': 'decoder'}},
  )
  assert found == [
    {'model.tie': 'decoder'},
    {'model.tie': 'none'},
    {'data.vocabulary': 'separate', 'model.tie': 'decoder'},
  ]
  with pytest.raises(ConfigError, match='model.d_k has no choices'):
    one_factor({}, ['model.d_k'])


def test_identity_is_of_what_decides_the_result():
  def one(variant='baseline', seed=0, **values):
    dotted = {name.replace('__', '.'): value for name, value in values.items()}
    study = checks.with_overrides(STUDY, dotted)
    return cells_lib.cell(study, variant, seed=seed, phase='paper').identity

  same = one()
  assert one(train__log_every=7) == same
  assert one(data__cache_dir='/elsewhere') == same
  different = {
    same,
    one(seed=1),
    one('scale=none'),
    one(model__d_ff=64),
    one(train__steps=7),
  }
  assert len(different) == 5


def test_two_arms_of_one_config_are_two_cells():
  twins = check(changed(arms=(Arm('a', {}), Arm('b', {})), primary=()))
  found = cells_lib.cells(twins, range(2), None)
  assert len({cell.identity for cell in found}) == 4


def test_cells_go_by_seed_then_arm():
  recipes = {
    'baseline': {'optim.learning_rate': 1.0},
    'scale=none': {'optim.learning_rate': 2.0},
  }
  found = cells_lib.cells(STUDY, [0, 1], recipes)
  assert [(c.seed, c.variant, c.phase) for c in found[:4]] == [
    (0, 'baseline', 'paper'),
    (0, 'baseline', 'tuned'),
    (0, 'scale=none', 'paper'),
    (0, 'scale=none', 'tuned'),
  ]
  # Tuning chose the paper's own rate: the run is there already.
  assert found[0].identity == found[1].identity
  assert found[2].identity != found[3].identity


def test_an_arm_with_its_own_warmup_is_tuned_around_its_own_rate():
  rate, warmup = 'optim.learning_rate', 'optim.warmup_steps'
  study = check(
    changed(
      baseline={rate: 2.0},
      axes=(rate, warmup),
      arms=(
        Arm('baseline', {}),
        Arm('cold', {warmup: 1, rate: 20.0}),
        Arm('slow', {warmup: 999}),
      ),
      primary=(),
    )
  )
  grids = tuning.first_grids(study)
  assert [(grid.rates, grid.warmups) for grid in grids.values()] == [
    ((1.0, 2.0), (10,)),
    ((10.0, 20.0), (1,)),
    ((1.0, 2.0), (999,)),
  ]
  # The least loss at the highest rate: three rates more, and no end of them.
  for _ in range(5):
    grids = tuning.extended(
      study, grids, lambda cell: -cell.config.optim.learning_rate
    )
  assert [grid.rates[-1] for grid in grids.values()] == [16.0, 160.0, 16.0]
