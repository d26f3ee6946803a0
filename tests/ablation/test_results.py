"""What a cell resulted in, and how damage to it is noticed."""

import hashlib
import json
import types
from typing import Any

import numpy as np
import pytest

from experiments import studies
from tests.ablation.small import STUDY, changed
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import declaration, outcome, tuning
from transformer_jax.ablation import folder as folder_lib
from transformer_jax.ablation import results as results_lib
from transformer_jax.ablation import study as study_lib
from transformer_jax.config import ConfigError
from transformer_jax.training import replicas
from transformer_jax.training.population import Member
from transformer_jax.training.scores import RowSums, summarise


@pytest.mark.parametrize(
  'how, seed, said',
  [
    ('gone', 2, 'attention.npz is missing; run ablate again with --seeds=4$'),
    ('cut', 6, 'does not match its sum; run ablate again with --seeds=7$'),
  ],
)
def test_every_file_of_a_cell_has_its_sum(tmp_path, how, seed, said):
  study = declaration.declare(tmp_path, STUDY, seeds=None)
  cell = cells_lib.cell(study, 'baseline', seed=seed, phase='paper')
  place = results_lib.begin(tmp_path, study, cell)
  (place / 'attention.npz').write_bytes(b'a map')
  results_lib.write_result(
    tmp_path, cell, dict(status='finished', metrics={'loss': 0.25})
  )
  assert results_lib.is_done(tmp_path, cell)
  (place / 'attention.npz').write_bytes(b'a m')
  if how == 'gone':
    (place / 'attention.npz').unlink()
  assert not results_lib.is_done(tmp_path, cell)
  text = f'^baseline, seed {seed} .*{cell.identity}.*{said}'
  with pytest.raises(ConfigError, match=text):
    results_lib.read_results(tmp_path, study)
  assert results_lib.read_results(tmp_path, study, look=seed) == []


def test_results_of_before_have_one_sum(tmp_path):
  study = declaration.declare(tmp_path, STUDY, seeds=None)
  cell = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  place = results_lib.begin(tmp_path, study, cell)
  (place / 'metrics.jsonl').write_text('')
  body = dict(identity=cell.identity, status='finished')
  body['metrics_sha256'] = hashlib.sha256(b'').hexdigest()
  folder_lib.write_json(
    place / 'result.json', body | dict(sha256=study_lib.digest(body))
  )
  assert results_lib.is_done(tmp_path, cell)
  (place / 'metrics.jsonl').write_text(' ')
  assert not results_lib.is_done(tmp_path, cell)


@pytest.mark.parametrize('name', ['result.json', 'metrics.jsonl'])
def test_damaged_cell_is_no_result(tmp_path, capsys, name):
  study = declaration.declare(tmp_path, STUDY, seeds=None)
  cell = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  place = results_lib.begin(tmp_path, study, cell)
  (place / 'metrics.jsonl').write_text(
    '{"step": 1, "split": "validation", "loss": 0.5}\n'
  )
  assert not results_lib.is_done(tmp_path, cell)
  results_lib.write_result(
    tmp_path, cell, dict(status='finished', metrics={'loss': 0.25})
  )
  # A file browser's own are nobody's damage.
  (place / '.ipynb_checkpoints').mkdir()
  (place / '.ipynb_checkpoints' / name).write_text('')
  assert results_lib.is_done(tmp_path, cell)
  (result,) = results_lib.read_results(tmp_path, study)
  assert result.body['metrics'] == {'loss': 0.25}
  assert results_lib.table([result]).splitlines() == [
    'study,variant,seed,split,step,metric,value',
    'small,baseline,0,validation,1,loss,0.5',
  ]
  text = (place / name).read_text()
  (place / name).write_text(text.replace('0.2', '0.3').replace('0.5', '0.6'))
  assert results_lib.read_result(tmp_path, cell) is None
  with pytest.raises(ConfigError, match='not match its sum; run ablate again'):
    results_lib.read_results(tmp_path, study)
  assert not results_lib.is_done(tmp_path, cell)
  results_lib.clear(tmp_path, cell)
  assert not place.exists()
  assert 'does not match its sum; it is run again' in capsys.readouterr().err


@pytest.mark.parametrize('text', ['[]', '3', '{}', '{'])
def test_a_result_of_another_form_cannot_be_read(tmp_path, text):
  study = declaration.declare(tmp_path, STUDY, seeds=None)
  cell = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  (results_lib.begin(tmp_path, study, cell) / 'result.json').write_text(text)
  assert results_lib.damage(tmp_path, cell) == 'result.json cannot be read'


@pytest.mark.parametrize('text', ['', '{', '[]', '{"phase": "tune"}'])
def test_a_damaged_cell_of_tuning_stands_in_nobodys_way(tmp_path, text):
  study = declaration.declare(tmp_path, STUDY, seeds=None)
  one = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  results_lib.begin(tmp_path, study, one)
  results_lib.write_result(tmp_path, one, dict(status='finished', metrics={}))
  tune = cells_lib.cell(study, 'baseline', seed=100, phase='tune')
  (results_lib.begin(tmp_path, study, tune) / 'cell.json').write_text(text)
  (result,) = results_lib.read_results(tmp_path, study)
  assert result.cell == one
  # Of a cell that is judged it is said, be it the only one of its seed.
  (folder_lib.cell_folder(tmp_path, one) / 'cell.json').write_text(text)
  with pytest.raises(ConfigError, match='seed 0 .*cell.json does not match'):
    results_lib.read_results(tmp_path, study)


@pytest.mark.parametrize('loss', [1.0, 900.0])  # e^900 is beyond a float
def test_free_running_scores_stand_in_the_table(monkeypatch, tmp_path, loss):
  monkeypatch.setattr(outcome, 'unigram_loss', lambda corpus, data: 2.0)
  monkeypatch.setattr(outcome, '_flops_per_token', lambda *sizes: 1.0)
  study = declaration.declare(
    tmp_path, changed(free_running=('generated',)), seeds=None
  )
  cell = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  member = Member(cell.config, results_lib.begin(tmp_path, study, cell))
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
  results_lib.write_result(tmp_path, cell, body)
  rows = results_lib.table(results_lib.read_results(tmp_path, study)).split()
  start = f'small,baseline,0,test,{cell.config.train.steps},'
  assert {f'{start}generated,0.125', f'{start}loss,{loss}'} < set(rows)


def test_a_changed_tuning_is_refused(tmp_path):
  study = declaration.declare(tmp_path, STUDY, seeds=None)
  assert results_lib.recipes(tmp_path, study) is None
  grids = tuning.first_grids(study)
  body = tuning.chosen(study, grids, lambda cell: 1 / cell.seed)
  other = changed(baseline={'model.d_k': 8})
  less = {**body, 'chosen': {'baseline': body['chosen']['baseline']}}
  bare = {name: value for name, value in body.items() if name != 'sha256'}
  text = json.dumps(body)

  def recipes(text):
    (tmp_path / 'tuning.json').write_text(text)
    return results_lib.recipes(tmp_path, study)

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


def test_a_lock_and_who_watches_it_are_left_alone(tmp_path):
  for name in ('lock', 'lock.1a.clock', 'members.json'):
    (tmp_path / name).write_text('')
  (tmp_path / 'arrays' / '8').mkdir(parents=True)
  folder_lib.empty(tmp_path, keep='lock')
  left = sorted(path.name for path in tmp_path.iterdir())
  assert left == ['lock', 'lock.1a.clock']
