"""What a study began with is kept, and held to."""

import pytest

from tests.ablation.small import STUDY, changed
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import checks, declaration
from transformer_jax.ablation import study as study_lib
from transformer_jax.config import ConfigError


def test_folder_keeps_the_declaration(tmp_path):
  written = declaration.declare(tmp_path, STUDY, seeds=None)
  assert written == declaration.read_study(tmp_path) == STUDY
  # More seeds later: the plan stays, what is beyond it is exploratory.
  again = declaration.declare(tmp_path, STUDY, seeds=9)
  assert again.seeds == 4
  late = cells_lib.cell(again, 'baseline', seed=4, phase='paper')
  planned = cells_lib.cell(again, 'baseline', seed=3, phase='paper')
  assert cells_lib.is_exploratory(again, late)
  assert not cells_lib.is_exploratory(again, planned)
  with pytest.raises(ConfigError, match='seeds 100, 101, 102 are used for'):
    declaration.declare(tmp_path, STUDY, seeds=200)


def test_seeds_asked_for_first_are_the_plan(tmp_path):
  assert declaration.declare(tmp_path, STUDY, seeds=3).looks == (2, 3)
  assert declaration.declare(tmp_path, STUDY, seeds=None).seeds == 3


def test_folder_of_another_study_is_refused(tmp_path):
  declaration.declare(tmp_path, STUDY, seeds=None)
  other = checks.with_overrides(STUDY, {'model.d_ff': 64})
  with pytest.raises(ConfigError, match='another study.*its baseline differ'):
    declaration.declare(tmp_path, other, seeds=None)
  # A field of the run alone is no other study.
  logged = checks.with_overrides(STUDY, {'train.log_every': 7})
  declaration.declare(tmp_path, logged, seeds=None)


def test_changed_declaration_is_noticed(tmp_path):
  declaration.declare(tmp_path, STUDY, seeds=None)
  path = tmp_path / 'study.json'
  path.write_text(path.read_text().replace('"seeds": 4', '"seeds": 5'))
  with pytest.raises(ConfigError, match='changed after it was written'):
    declaration.read_study(tmp_path)
  with pytest.raises(ConfigError, match='holds no study'):
    declaration.read_study(tmp_path / 'nowhere')


def test_other_data_than_a_study_began_with_is_refused(tmp_path):
  prints = dict(training='a' * 64, test='b' * 64)
  assert declaration.read_data(tmp_path) == []
  for _ in 'first', 'again':
    declaration.admit_data(tmp_path, '', prints)
  assert declaration.read_data(tmp_path) == [dict(arms='', **prints)]
  for name in prints:
    with pytest.raises(ConfigError, match=f'the {name} data is not what the s'):
      declaration.admit_data(tmp_path, '', {**prints, name: 'c'})
  # Arms that vary the data have their own.
  arms = changed(
    axes=('data.vocabulary',),
    arms=study_lib.arms([{}, {'data.vocabulary': 'separate'}]),
    primary=(),
  )
  one, two = cells_lib.cells(arms, [0], None)
  assert cells_lib.data_of(STUDY, one) == ''
  assert cells_lib.data_of(arms, one) == 'data.vocabulary=joint'
  name = cells_lib.data_of(arms, two)
  declaration.admit_data(tmp_path, name, dict(training='c', test='d'))
  with pytest.raises(ConfigError, match='test data of the arms with data.voc'):
    declaration.admit_data(tmp_path, name, dict(training='c', test='e'))
  assert len(declaration.read_data(tmp_path)) == 2
  for path in (tmp_path / 'data').iterdir():
    path.write_text('{}')
  with pytest.raises(ConfigError, match='json was changed or is damaged: del'):
    declaration.admit_data(tmp_path, '', prints)
