"""Declarations: what is refused, how cells are named, what a folder keeps."""

import dataclasses
import hashlib
import json
import pathlib
import re
import types
from typing import Any

import numpy as np
import pytest

from experiments import studies
from tests.choices import base, parameter_shapes
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import (
  checks,
  conclusion,
  generating,
  outcome,
  tuning,
  viewing,
)
from transformer_jax.ablation import folder as folder_lib
from transformer_jax.ablation import study as study_lib
from transformer_jax.ablation.checks import check
from transformer_jax.ablation.study import (
  Arm,
  LearningRates,
  Primary,
  Study,
  axis,
  one_factor,
  product,
  zipped,
)
from transformer_jax.config import Config, ConfigError
from transformer_jax.data.batches import Batch
from transformer_jax.fields import override
from transformer_jax.inference.evaluate import RowSums, summarise
from transformer_jax.training import replicas
from transformer_jax.training.population import Member

STUDY = Study(
  name='small',
  question='Does it matter?',
  paper='3.2.1',
  axes=('model.scale', 'model.d_k'),
  baseline={'model.d_k': 16},
  arms=study_lib.arms(
    [{}, {'model.scale': 'none'}], roles={'scale=none': 'known_bad'}
  ),
  primary=(Primary('scale=none', 'baseline', margin=0.1),),
  seeds=4,
  looks=(2, 4),
  tuning=LearningRates((1.0, 2.0), (10,), (100, 101, 102)),
)


def changed(**fields) -> Study:
  return dataclasses.replace(STUDY, **fields)


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


def test_a_run_that_never_got_there_is_censored_at_the_planned_last_step():
  study = checks.with_overrides(STUDY, {'train.steps': 100})
  cell = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  lines = [
    dict(step=step, split='validation', loss=loss)
    for step, loss in ((10, 3.0), (20, 2.0))
  ]
  early = folder_lib.Result(cell, dict(status='diverged'), tuple(lines))
  at_once = folder_lib.Result(cell, dict(status='diverged'), ())
  found = conclusion.crossing([early, at_once], 1.0)
  assert found.steps_R.tolist() == [100, 100]
  assert not found.reached_R.any()
  found = conclusion.crossing([early, at_once], 2.5)
  assert found.steps_R.tolist() == [20, 100]


def test_a_known_bad_arm_is_held_to_what_is_judged():
  """Its loss is far away, what it writes is as good: no sensitive study."""
  study = changed(
    free_running=('generated',),
    arms=(*STUDY.arms, Arm('bad', {'model.d_k': 8}, 'known_bad')),
    primary=(Primary('scale=none', 'baseline', 'generated', 'higher', 0.02),),
    seeds=5,
    looks=(5,),
  )
  # Generated right, loss: of the baseline 0.5 and 1.
  made = {'baseline': (0.5, 1.0), 'scale=none': (0.1, 1.0), 'bad': (0.5, 9.0)}

  def verdict(**changes):
    results = []
    for seed in range(5):
      for arm, (right, loss) in {**made, **changes}.items():
        cell = cells_lib.cell(study, arm, seed=seed, phase='paper')
        metrics = dict(loss=loss, accuracy=0.5, exact=0.5, generated=right)
        metrics = {x: v + 0.01 * seed**0.5 for x, v in metrics.items()}
        body = dict(status='finished', metrics=metrics | dict(unigram_loss=3))
        results.append(folder_lib.Result(cell, body, ()))
    return conclusion.summary(study, results)[0]['verdict']

  assert verdict() == 'not sensitive'
  assert verdict(bad=(0.05, 1.0)) in ('worse', 'not enough evidence')


@pytest.mark.parametrize('loss', [1.0, 900.0])  # e^900 is beyond a float
def test_free_running_scores_stand_in_the_table(monkeypatch, tmp_path, loss):
  monkeypatch.setattr(outcome, 'unigram_loss', lambda corpus, data: 2.0)
  monkeypatch.setattr(outcome, '_flops_per_token', lambda *sizes: 1.0)
  study = folder_lib.declare(
    tmp_path, changed(free_running=('generated',)), seeds=None
  )
  cell = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  member = Member(cell.config, folder_lib.begin(tmp_path, study, cell))
  language = types.SimpleNamespace(size=8)
  corpus: Any = types.SimpleNamespace(
    vocabularies=types.SimpleNamespace(source=language, target=language),
    fingerprint='',
  )
  sums: list[Any] = [np.full(3, x) for x in (3 * loss, 1.0, 3.0)]
  found = replicas.Outcome(None, summarise([RowSums(*sums)]), 7, 0.1, 5)
  written = {'generated': 0.125, 'by_distance': {'3': 0.5}}
  body = outcome.result_of(study, member, found, corpus, written)
  assert body['metrics'].items() >= {**written, 'loss': loss}.items()
  folder_lib.write_result(tmp_path, cell, body)
  rows = folder_lib.table(folder_lib.read_results(tmp_path, study)).split()
  start = f'small,baseline,0,test,{cell.config.train.steps},'
  assert {f'{start}generated,0.125', f'{start}loss,{loss}'} < set(rows)


def test_pronouns_are_counted_by_their_distance():
  """Three golds of 0 and 2 clauses; one of the two near ones is wrong."""
  golds = [
    '동물이 너무 피곤해서 길을 건너지 않았다.',
    '길이 너무 넓어서 동물은 건너지 않았다.',
    '동물이 너무 피곤해서 가수가 읽고 의사가 산 책을 사지 않았다.',
  ]
  written = [golds[0], '동물이 너무 넓어서 길을 건너지 않았다.', golds[2]]
  found = generating.by_distance(written, golds, 'ko')
  assert found == {'0': dict(right=1, asked=2), '2': dict(right=1, asked=1)}
  assert generating.pronoun(written, golds, 'ko') == pytest.approx(2 / 3)
  assert generating.by_distance(['x'], ['나는 코끼리다.'], 'ko') == {}


def test_distances_are_kept_beside_the_total(monkeypatch):
  gold = '동물이 너무 피곤해서 길을 건너지 않았다.'
  monkeypatch.setattr(
    generating,
    'translate_sentences',
    lambda *model, **options: types.SimpleNamespace(texts=[gold]),
  )
  study = changed(free_running=('pronoun',))
  config = cells_lib.arm_config(study, study.arms[0])
  corpus: Any = types.SimpleNamespace(
    references=lambda split: [('en', gold)], vocabularies=None
  )
  members = [Member(config, pathlib.Path())]
  found = generating.Generating(study, members, corpus)
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, pair='en-ko')
  )
  model: Any = None
  assert found._scores(config, model, None) == {
    'pronoun': 1.0,
    'pronoun_by_distance': {'0': dict(right=1, asked=1)},
  }


def test_what_a_member_writes_is_computed_in_one_way_in_all_arms():
  study = studies.load(studies.DEFAULT)
  pairs = cells_lib.shared_pairs(study, 'cpu')
  config = cells_lib.arm_config(study, study.arms[0])
  size: Any = types.SimpleNamespace(size=8)
  corpus: Any = types.SimpleNamespace(
    references=lambda split: [],
    vocabularies=types.SimpleNamespace(source=size, target=size),
  )
  members = [Member(config, pathlib.Path())]
  own = generating.Generating(study, members, corpus)
  attend: Any = own.model(config).attend
  assert pairs and attend.keywords == {'pairs': pairs}
  # Members of one program compile it once.
  assert own.model(config) == own.model(config)


def test_links_of_attention_that_is_the_gold_and_that_is_not(monkeypatch):
  texts = ['I ate the rice.', '나는 밥을 먹었다.']
  pieces = (
    ['▁I', '▁ate', '▁the', '▁rice', '.'],
    ['▁나는', '▁밥을', '▁먹었', '다.'],
  )
  # One head as the gold has it, 다. and </s> at the end; one at the full stop.
  most_HT = [[0, 3, 1, 5, 5, 0], [4, 4, 4, 4, 4, 0]]
  monkeypatch.setattr(
    viewing, '_most_seen', lambda *words: np.array([[most_HT, most_HT]])
  )
  config = override(Config(), {'data.pair': 'en-ko'})
  vocabularies: Any = [
    types.SimpleNamespace(
      decode=lambda rows, text=text: [text], pieces=lambda row, own=own: own
    )
    for text, own in zip(texts, pieces, strict=True)
  ]
  model: Any = None
  batch = Batch(*(np.full((2, 6), 5) for _ in texts))
  found = viewing.of_links(config, model, None, batch, vocabularies)
  assert found == dict(error=[[0.0, 1.0]], pairs=2)


@pytest.mark.parametrize('side', ['encoder', 'decoder'])
def test_the_table_of_positions_is_the_one_that_is_read(side):
  learned = override(base(), {'model.position': 'learned'})
  shape = parameter_shapes(learned)[f'{viewing.TABLES[side]}/w_TD']
  table_TD = np.arange(np.prod(shape)).reshape(shape)
  weights = {viewing.TABLES[side]: {'w_TD': table_TD}}
  found_TD = viewing._table(learned, weights, side, 3)
  np.testing.assert_array_equal(found_TD, table_TD[:3])
  narrow = override(
    base(), {'model.position_join': 'concat_narrow', 'model.d_position': 4}
  )
  sines_TD = viewing._table(narrow, {}, side, 3)
  assert sines_TD is not None and sines_TD.shape == (3, 4)
  rotary = override(base(), {'model.position': 'rotary'})
  assert viewing._table(rotary, {}, side, 3) is None


def test_views_are_written_down_where_there_are_any(tmp_path):
  assert 'views' not in study_lib.to_dict(STUDY)
  viewed = changed(views=('heads',))
  assert study_lib.from_dict(study_lib.to_dict(viewed)) == viewed
  folder_lib.declare(tmp_path, STUDY, seeds=None)
  with pytest.raises(ConfigError, match='its views differ'):
    folder_lib.declare(tmp_path, viewed, seeds=None)


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


def test_folder_keeps_the_declaration(tmp_path):
  written = folder_lib.declare(tmp_path, STUDY, seeds=None)
  assert written == folder_lib.read_study(tmp_path) == STUDY
  # More seeds later: the plan stays, what is beyond it is exploratory.
  again = folder_lib.declare(tmp_path, STUDY, seeds=9)
  assert again.seeds == 4
  late = cells_lib.cell(again, 'baseline', seed=4, phase='paper')
  planned = cells_lib.cell(again, 'baseline', seed=3, phase='paper')
  assert cells_lib.is_exploratory(again, late)
  assert not cells_lib.is_exploratory(again, planned)
  with pytest.raises(ConfigError, match='seeds 100, 101, 102 are used for'):
    folder_lib.declare(tmp_path, STUDY, seeds=200)


def test_seeds_asked_for_first_are_the_plan(tmp_path):
  assert folder_lib.declare(tmp_path, STUDY, seeds=3).looks == (2, 3)
  assert folder_lib.declare(tmp_path, STUDY, seeds=None).seeds == 3


def test_folder_of_another_study_is_refused(tmp_path):
  folder_lib.declare(tmp_path, STUDY, seeds=None)
  other = checks.with_overrides(STUDY, {'model.d_ff': 64})
  with pytest.raises(ConfigError, match='another study.*its baseline differ'):
    folder_lib.declare(tmp_path, other, seeds=None)
  # A field of the run alone is no other study.
  logged = checks.with_overrides(STUDY, {'train.log_every': 7})
  folder_lib.declare(tmp_path, logged, seeds=None)


def test_changed_declaration_is_noticed(tmp_path):
  folder_lib.declare(tmp_path, STUDY, seeds=None)
  path = tmp_path / 'study.json'
  path.write_text(path.read_text().replace('"seeds": 4', '"seeds": 5'))
  with pytest.raises(ConfigError, match='changed after it was written'):
    folder_lib.read_study(tmp_path)
  with pytest.raises(ConfigError, match='holds no study'):
    folder_lib.read_study(tmp_path / 'nowhere')


@pytest.mark.parametrize(
  'how, seed, said',
  [
    ('gone', 2, 'attention.npz is missing; run ablate again$'),
    ('cut', 6, 'does not match its sum; run ablate again with --seeds=7$'),
  ],
)
def test_every_file_of_a_cell_has_its_sum(tmp_path, how, seed, said):
  study = folder_lib.declare(tmp_path, STUDY, seeds=None)
  cell = cells_lib.cell(study, 'baseline', seed=seed, phase='paper')
  place = folder_lib.begin(tmp_path, study, cell)
  (place / 'attention.npz').write_bytes(b'a map')
  folder_lib.write_result(
    tmp_path, cell, dict(status='finished', metrics={'loss': 0.25})
  )
  assert folder_lib.is_done(tmp_path, cell)
  (place / 'attention.npz').write_bytes(b'a m')
  if how == 'gone':
    (place / 'attention.npz').unlink()
  assert not folder_lib.is_done(tmp_path, cell)
  text = f'^baseline, seed {seed} .*{cell.identity}.*{said}'
  with pytest.raises(ConfigError, match=text):
    folder_lib.read_results(tmp_path, study)
  assert folder_lib.read_results(tmp_path, study, look=seed) == []


def test_results_of_before_have_one_sum(tmp_path):
  study = folder_lib.declare(tmp_path, STUDY, seeds=None)
  cell = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  place = folder_lib.begin(tmp_path, study, cell)
  (place / 'metrics.jsonl').write_text('')
  body = dict(identity=cell.identity, status='finished')
  body['metrics_sha256'] = hashlib.sha256(b'').hexdigest()
  folder_lib.write_json(
    place / 'result.json', body | dict(sha256=study_lib.digest(body))
  )
  assert folder_lib.is_done(tmp_path, cell)
  (place / 'metrics.jsonl').write_text(' ')
  assert not folder_lib.is_done(tmp_path, cell)


@pytest.mark.parametrize('name', ['result.json', 'metrics.jsonl'])
def test_damaged_cell_is_no_result(tmp_path, capsys, name):
  study = folder_lib.declare(tmp_path, STUDY, seeds=None)
  cell = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  place = folder_lib.begin(tmp_path, study, cell)
  (place / 'metrics.jsonl').write_text(
    '{"step": 1, "split": "validation", "loss": 0.5}\n'
  )
  assert not folder_lib.is_done(tmp_path, cell)
  folder_lib.write_result(
    tmp_path, cell, dict(status='finished', metrics={'loss': 0.25})
  )
  assert folder_lib.is_done(tmp_path, cell)
  (result,) = folder_lib.read_results(tmp_path, study)
  assert result.body['metrics'] == {'loss': 0.25}
  assert folder_lib.table([result]).splitlines() == [
    'study,variant,seed,split,step,metric,value',
    'small,baseline,0,validation,1,loss,0.5',
  ]
  text = (place / name).read_text()
  (place / name).write_text(text.replace('0.2', '0.3').replace('0.5', '0.6'))
  assert folder_lib.read_result(tmp_path, cell) is None
  with pytest.raises(ConfigError, match='not match its sum; run ablate again'):
    folder_lib.read_results(tmp_path, study)
  assert not folder_lib.is_done(tmp_path, cell)
  folder_lib.clear(tmp_path, cell)
  assert not (place / 'metrics.jsonl').exists()
  assert 'does not match its sum; it is run again' in capsys.readouterr().err


def test_other_data_than_a_study_began_with_is_refused(tmp_path):
  prints = dict(training='a' * 64, test='b' * 64)
  assert folder_lib.read_data(tmp_path) == []
  for _ in 'first', 'again':
    folder_lib.admit_data(tmp_path, '', prints)
  assert folder_lib.read_data(tmp_path) == [dict(arms='', **prints)]
  for name in prints:
    with pytest.raises(ConfigError, match=f'the {name} data is not what the s'):
      folder_lib.admit_data(tmp_path, '', {**prints, name: 'c'})
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
  folder_lib.admit_data(tmp_path, name, dict(training='c', test='d'))
  with pytest.raises(ConfigError, match='test data of the arms with data.voc'):
    folder_lib.admit_data(tmp_path, name, dict(training='c', test='e'))
  assert len(folder_lib.read_data(tmp_path)) == 2
  for path in (tmp_path / 'data').iterdir():
    path.write_text('{}')
  with pytest.raises(ConfigError, match='json was changed or is damaged: del'):
    folder_lib.admit_data(tmp_path, '', prints)


@pytest.mark.parametrize('text', ['', '{', '[]', '{"phase": "tune"}'])
def test_a_damaged_cell_of_tuning_stands_in_nobodys_way(tmp_path, text):
  study = folder_lib.declare(tmp_path, STUDY, seeds=None)
  one = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  folder_lib.begin(tmp_path, study, one)
  folder_lib.write_result(tmp_path, one, dict(status='finished', metrics={}))
  tune = cells_lib.cell(study, 'baseline', seed=100, phase='tune')
  (folder_lib.begin(tmp_path, study, tune) / 'cell.json').write_text(text)
  (result,) = folder_lib.read_results(tmp_path, study)
  assert result.cell == one
  # Of a cell that is judged it is said, be it the only one of its seed.
  (folder_lib.cell_folder(tmp_path, one) / 'cell.json').write_text(text)
  with pytest.raises(ConfigError, match='seed 0 .*cell.json does not match'):
    folder_lib.read_results(tmp_path, study)


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


def test_a_changed_tuning_is_refused(tmp_path):
  study = folder_lib.declare(tmp_path, STUDY, seeds=None)
  assert folder_lib.recipes(tmp_path, study) is None
  grids = tuning.first_grids(study)
  body = tuning.chosen(study, grids, lambda cell: 1 / cell.seed)
  other = changed(baseline={'model.d_k': 8})
  less = {**body, 'chosen': {'baseline': body['chosen']['baseline']}}
  bare = {name: value for name, value in body.items() if name != 'sha256'}
  text = json.dumps(body)

  def recipes(text):
    (tmp_path / 'tuning.json').write_text(text)
    return folder_lib.recipes(tmp_path, study)

  found = recipes(text)
  # As it was committed before it had a sum.
  assert found == recipes(json.dumps(bare))
  assert found is not None and set(found) == {'baseline', 'scale=none'}
  for bad in (
    '{}',
    '[]',
    text[:-1],
    text.replace('1.0', '3.0'),
    json.dumps(bare).replace('1.0', 'null'),
    json.dumps({**bare, 'essence': tuning.fingerprint(other)}),
    json.dumps({k: v for k, v in less.items() if k != 'sha256'}),
  ):
    with pytest.raises(ConfigError, match='json was changed or is damaged: de'):
      recipes(bad)


def test_the_committed_tuning_is_accepted():
  study = studies.load('paper')
  assert tuning.read(study, studies.tuned('paper'))
