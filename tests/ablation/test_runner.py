"""A tiny study, run whole, in parts, by several, over damage."""

import contextlib
import csv
import dataclasses
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import studies
from experiments.presets import PRESETS
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import (
  checks,
  chunks,
  declaration,
  runner,
  tuning,
  viewing,
)
from transformer_jax.ablation import results as results_lib
from transformer_jax.ablation import study as study_lib
from transformer_jax.ablation.screen import Screen
from transformer_jax.ablation.study import Arm, LearningRates, Primary, Study
from transformer_jax.config import ConfigError
from transformer_jax.training import population

SMALL = {
  name: value
  for name, value in PRESETS['test'].overrides.items()
  if not checks.unread(name)
}
LONG = 400  # steps of a study that is long beside a worker's start-up
# All arms share one program, so these tests compile it once.
STUDY = Study(
  name='small',
  question='Does the scale matter?',
  paper='3.2.1',
  axes=('model.scale',),
  baseline={
    **SMALL,
    'train.steps': 8,
    'train.evaluate_every': 4,
    'train.log_every': 4,
    'train.save_every': 2,
    # On one of the tests' eight devices; test_population.py has several.
    'mesh.data': 1,
  },
  arms=(
    Arm('scaled', {}),
    Arm('unscaled', {'model.scale': 'none'}),
  ),
  primary=(Primary('unscaled', 'scaled'),),
  seeds=3,
  looks=(3,),
  threshold=9.0,  # which every run reaches at once
)


@pytest.fixture(scope='module', autouse=True)
def programs_as_in_a_worker():
  """Whatever ran before: bits are compared with those of other processes."""
  population._programs.cache_clear()
  compilation_cache.reset_cache()
  yield
  jax.config.update('jax_compilation_cache_dir', None)
  population._programs.cache_clear()
  compilation_cache.reset_cache()


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  cache = str(tmp_path_factory.getbasetemp() / 'cache')
  return checks.with_overrides(STUDY, {'data.cache_dir': cache})


def job(study, folder, *, seeds=None, stop=lambda: 0, tuned=''):
  folder.mkdir(exist_ok=True)
  planned = declaration.declare(folder, study, seeds=seeds)
  return runner.Job(
    folder=folder,
    study=planned,
    seeds=seeds or planned.seeds,
    shard=runner.Shard(),
    tuned=tuned,
    stop=stop,
    screen=Screen(folder, study.name, quiet=False),
    stale=1.0,
  )


@pytest.fixture(scope='module')
def whole(study, tmp_path_factory):
  folder = tmp_path_factory.mktemp('studies') / 'whole'
  assert runner.run(job(study, folder)) == 0
  return folder


def tables(folder):
  return [
    (folder / name).read_bytes() for name in ('summary.json', 'results.csv')
  ]


def test_results_of_every_cell(study, whole):
  results = results_lib.read_results(whole, study)
  assert [(r.cell.seed, r.cell.variant) for r in results] == [
    (seed, arm) for seed in range(3) for arm in ('scaled', 'unscaled')
  ]
  for result in results:
    body = result.body
    assert body['status'] == 'finished' and body['diverged_step'] is None
    assert body['parameters'] > 0 and body['flops_per_token'] > 0
    assert 0 < body['metrics']['loss'] < 10
    assert [
      x['step'] for x in result.metrics if x['split'] == 'validation'
    ] == [
      4,
      8,
    ]
  rows = list(csv.DictReader((whole / 'results.csv').read_text().splitlines()))
  assert {row['variant'] for row in rows} == {'scaled', 'unscaled'}
  assert {row['split'] for row in rows} == {'train', 'validation', 'test'}
  # Nothing is left of what was only needed on the way.
  left = [path for path in (whole / 'populations').rglob('*') if path.is_file()]
  assert not left


def test_summary_has_the_public_columns(whole):
  rows = json.loads((whole / 'summary.json').read_text())
  first = rows[0]
  for name in """variant baseline metric primary seeds diverged mean difference
      ci_low ci_high test p_value p_adjusted effect_size minimum_detectable
      margin verdict""".split():
    assert name in first
  assert (first['variant'], first['primary'], first['seeds']) == (
    'unscaled',
    True,
    3,
  )
  metrics = [row['metric'] for row in rows]
  assert metrics == ['loss', 'accuracy', 'exact', 'steps_to_threshold']


def test_a_finished_study_is_found_done(study, whole, capsys):
  before = {p: p.stat().st_mtime_ns for p in whole.rglob('result.json')}
  assert runner.run(job(study, whole)) == 0
  assert before == {p: p.stat().st_mtime_ns for p in whole.rglob('result.json')}
  assert 'all 6 cells are done' in capsys.readouterr().err


def test_more_seeds_train_only_the_new(study, whole, tmp_path):
  folder = tmp_path / 'more'
  shutil.copytree(whole, folder)
  before = {p: p.stat().st_mtime_ns for p in folder.rglob('result.json')}
  assert runner.run(job(study, folder, seeds=4)) == 0
  after = {p: p.stat().st_mtime_ns for p in folder.rglob('result.json')}
  assert len(after) == 8
  assert all(after[path] == time for path, time in before.items())
  rows = json.loads((folder / 'summary.json').read_text())
  # What was planned keeps its verdict; what was not is an interval.
  planned = json.loads((whole / 'summary.json').read_text())
  assert rows[: len(planned)] == planned
  extra = rows[len(planned)]
  assert (extra['seeds'], extra['exploratory']) == (4, True)
  assert extra['verdict'] == 'no verdict'
  cells = [json.loads(p.read_text()) for p in folder.rglob('cell.json')]
  assert {c['seed'] for c in cells if c['exploratory']} == {3}


def test_no_cell_is_trained_on_other_data(study, whole, tmp_path):
  folder = tmp_path / 'changed'
  shutil.copytree(whole, folder)
  (path,) = (folder / 'data').iterdir()
  body = json.loads(path.read_text())
  (result, *_) = results_lib.read_results(folder, study)
  assert body['training'] == result.body['data']
  path.write_text(json.dumps({**body, 'test': 'of another test split'}))
  # All is there: nothing is opened, and nothing is asked.
  assert runner.run(job(study, folder)) == 0
  with pytest.raises(ConfigError, match='the test data is not what the study'):
    runner.run(job(study, folder, seeds=4))
  assert len(list(folder.rglob('result.json'))) == 6


def test_stopped_and_damaged_ends_the_same(study, whole, tmp_path, capsys):
  folder = tmp_path / 'broken'
  calls = []

  def stop():
    calls.append(0)
    return signal.SIGTERM if len(calls) == 4 else 0

  assert runner.run(job(study, folder, stop=stop)) == 75
  assert not list(folder.rglob('result.json'))
  assert runner.run(job(study, folder)) == 0
  assert 'resumed at step' in capsys.readouterr().err
  assert tables(folder) == tables(whole)
  damaged = next(iter(folder.rglob('result.json')))
  damaged.write_text(damaged.read_text().replace('finished', 'finishod'))
  assert runner.run(job(study, folder)) == 0
  assert 'does not match its sum; it is run again' in capsys.readouterr().err
  assert tables(folder) == tables(whole)


@pytest.fixture(scope='module')
def between(study, tmp_path_factory):
  """A study that was killed when one result of its batch was written."""
  folder = tmp_path_factory.mktemp('studies') / 'between'
  write = results_lib.write_result

  def dies(folder, cell, body):
    if list(folder.rglob('result.json')):
      raise InterruptedError
    write(folder, cell, body)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(results_lib, 'write_result', dies)
    with pytest.raises(InterruptedError):
      runner.run(job(study, folder))
  return folder


@pytest.mark.parametrize(
  'name, said',
  [
    pytest.param('', 'resumed at step 6', marks=pytest.mark.slow),
    ('result.json', 'metrics.jsonl is damaged: all that is trained with it'),
  ],
)
def test_a_kill_between_two_results(
  study, whole, between, tmp_path, capsys, name, said
):
  folder = tmp_path / 'again'
  shutil.copytree(between, folder)
  if name:
    (damaged,) = folder.rglob(name)
    damaged.write_text('{')
  assert runner.run(job(study, folder)) == 0
  text = capsys.readouterr().err
  assert said in text and ('damaged' in text) == ('damaged' in said)
  assert tables(folder) == tables(whole)


@pytest.mark.parametrize('text', ['{', '3', '[3]'])
def test_a_damaged_list_of_members_counts_as_none(study, tmp_path, text):
  chunk = chunks.chunks(cells_lib.cells(study, range(2), None))[0]
  path = tmp_path / 'members.json'
  path.write_text(text)
  part = chunk.cells[1:]
  assert runner._trained_together(tmp_path, chunk, part) == list(part)
  assert json.loads(path.read_text()) == [cell.identity for cell in part]
  # It is whole now: who is still to be written was trained with the others.
  assert runner._trained_together(tmp_path, chunk, part[1:]) == list(part)


def test_a_batch_held_elsewhere_is_not_waited_for(tmp_path):
  chunk = chunks.Chunk('batch', 'program', (), 1)
  place = tmp_path / 'populations' / 'batch'
  place.mkdir(parents=True)
  (place / 'lock').write_text('{"owner": "1", "host": "node7"}')
  assert chunks.is_held(tmp_path, chunk)
  with chunks.held(tmp_path, chunk, stale=1.0) as mine:
    assert not mine


def test_looks_are_taken_on_the_way(study, tmp_path, monkeypatch, capsys):
  """Results are made up: each batch notes the tables that it finds."""
  declared = dataclasses.replace(
    study, seeds=4, looks=(2, 4), threshold=None, primary=STUDY.primary
  )
  folder = tmp_path / 'looks'
  found = []

  def run_chunk(job, chunk):
    path = folder / 'summary.json'
    rows = json.loads(path.read_text()) if path.exists() else []
    found.append([(row['seeds'], row['exploratory']) for row in rows[:1]])
    for cell in chunk.cells:
      wrong = 0.01 * cell.seed + 3 * (cell.variant == 'unscaled')
      metrics = dict(loss=1 + wrong, accuracy=0.5, exact=0.1, unigram_loss=3)
      results_lib.begin(folder, job.study, cell)
      results_lib.write_result(
        folder, cell, dict(status='finished', metrics=metrics)
      )
    return True

  monkeypatch.setattr(runner, 'run_chunk', run_chunk)
  monkeypatch.setitem(chunks.MEMBERS, 'cpu', 3)
  # Batches hold seeds 0 0 1, 1 2 2, 3 3 4, 4 5 5.
  assert runner.run(job(checks.check(declared), folder)) == 0
  assert found == [[], [], [(2, False)]]
  said = capsys.readouterr().err
  assert 'look at 2 of 4 planned seeds, level 0.00305:' in said
  assert '  unscaled against scaled: no verdict, loss +3.000' in said
  final = tables(folder)
  assert json.loads(final[0])[0]['seeds'] == 4
  # More seeds: what is planned stays as it was read, and is not read again.
  assert runner.run(job(declared, folder, seeds=6)) == 0
  assert found[3:] == [[(4, False)]] * 2
  assert 'look at' not in capsys.readouterr().err
  rows = json.loads((folder / 'summary.json').read_text())
  assert [row['seeds'] for row in rows if row['primary']] == [4]
  assert {row['seeds'] for row in rows if row['exploratory']} == {6}


def test_diverged_runs_are_counted_not_lost(study, tmp_path):
  wild = dataclasses.replace(
    study,
    axes=('optim.learning_rate',),
    arms=(Arm('scaled', {}), Arm('wild', {'optim.learning_rate': 1e30})),
    primary=(Primary('wild', 'scaled'),),
  )
  folder = tmp_path / 'wild'
  assert runner.run(job(checks.check(wild), folder)) == 0
  row = json.loads((folder / 'summary.json').read_text())[0]
  assert row['diverged'] == 3
  assert 'signed-rank' in row['test']
  results = results_lib.read_results(folder, wild)
  assert {r.body['status'] for r in results if r.cell.variant == 'wild'} == {
    'diverged'
  }
  assert row['mean'] == pytest.approx(
    results[0].body['metrics']['unigram_loss']
  )


@pytest.mark.slow
def test_views_are_kept_of_the_first_seed(study, tmp_path):
  """Of the others nothing; every view has its study's field."""
  assert set(viewing.VIEWS) == set(study_lib.VIEWS)
  viewed = dataclasses.replace(
    study, views=('heads', 'places'), seeds=2, looks=(2,)
  )
  assert runner.run(job(viewed, tmp_path / 'viewed')) == 0
  results = results_lib.read_results(tmp_path / 'viewed', viewed)
  model = results[0].cell.config.model
  shape = (model.layers, model.heads)
  for result in results:
    views = result.body['views']
    if result.cell.seed:
      assert views == {}
      continue
    assert set(views['heads']) == {'encoder_self', 'decoder_self', 'cross'}
    for site in views['heads'].values():
      assert np.shape(site['distance']) == (*shape, model.heads)
      assert np.shape(site['rise']) == shape
    for side in ('encoder', 'decoder'):
      seen = views['places'][side]
      assert seen['token'] > seen['token_chance']
      assert seen['position'] > seen['position_chance']
      assert seen['neighbours'] > 0.5
      assert seen['nearest']
      assert all(one < other for one, other, _ in seen['nearest'])


def test_twins_differ_by_nothing(study, tmp_path):
  twins = dataclasses.replace(
    study,
    axes=(),
    arms=(Arm('one', {}), Arm('twin', {})),
    primary=(Primary('twin', 'one'),),
  )
  folder = tmp_path / 'aa'
  assert runner.run(job(checks.check(twins), folder)) == 0
  for row in json.loads((folder / 'summary.json').read_text()):
    assert row['difference'] == 0
    assert row['verdict'] in ('no verdict', 'not enough evidence')


@pytest.mark.slow
def test_chance_alone_differs_and_is_given_no_verdict(study, tmp_path):
  noise = checks.with_overrides(studies.load('aa_noise'), study.baseline)
  folder = tmp_path / 'noise'
  assert runner.run(job(noise, folder, seeds=4)) == 0
  rows = json.loads((folder / 'summary.json').read_text())
  (judged,) = [row for row in rows if row['primary']]
  assert (judged['metric'], judged['seeds']) == ('loss', 4)
  assert judged['difference'] != 0
  assert judged['ci_low'] < 0 < judged['ci_high']
  assert judged['verdict'] == 'not enough evidence'


@pytest.mark.slow
def test_rates_are_chosen_apart_and_committed(study, tmp_path):
  tuned = checks.check(
    dataclasses.replace(
      study,
      tuning=LearningRates((1e-3, 2e-3), (5,), (100, 101, 102)),
      seeds=1,
      looks=(1,),
    )
  )
  folder = tmp_path / 'tuned'
  assert runner.run(job(tuned, folder)) == 0
  body = json.loads((folder / 'tuning.json').read_text())
  chosen = body['chosen']['scaled']
  # The best lay on the upper edge, so the grid grew, up to its bound.
  rates = sorted({one['rate'] for one in chosen['grid']})
  assert len(rates) > 2
  assert chosen['recipe']['optim.learning_rate'] in rates
  assert chosen['basin_octaves'] >= 1
  rows = json.loads((folder / 'summary.json').read_text())
  assert {row['phase'] for row in rows} == {'paper', 'tuned'}
  assert 'unscaled (tuned)' in {row['variant'] for row in rows}
  # Committed with a study they are used; of another study they are not.
  text = (folder / 'tuning.json').read_text()
  assert tuning.fits(tuned, text)
  other = checks.with_overrides(tuned, {'model.d_ff': 64})
  assert not tuning.fits(other, text)
  again = tmp_path / 'again'
  assert runner.run(job(tuned, again, tuned=text)) == 0
  phases = [
    json.loads(p.read_text())['phase'] for p in again.rglob('cell.json')
  ]
  assert 'tune' not in phases
  assert tables(again)[0] == tables(folder)[0]


WORKER = """
import pathlib, sys
import jax
from tests.ablation import test_runner
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_disable_most_optimizations', True)
from transformer_jax.ablation import checks, chunks, runner
folder, cache, steps, number = sys.argv[1:]
own = checks.with_overrides(
  test_runner.STUDY, {'data.cache_dir': cache, 'train.steps': int(steps)}
)
job = test_runner.job(own, pathlib.Path(folder))
job = job._replace(shard=runner.Shard(int(number), 2))
chunks.MEMBERS['cpu'] = 4
sys.exit(runner.run(job))
"""


class Place(NamedTuple):
  """A study's folder and what its workers are told."""

  folder: pathlib.Path
  cache: str
  steps: int

  def start(self, number: int) -> subprocess.Popen:
    """A worker that has said how many cells there are."""
    self.folder.mkdir(exist_ok=True)
    words = [str(self.folder), self.cache, str(self.steps), str(number)]
    worker = subprocess.Popen(
      [sys.executable, '-c', WORKER, *words], stderr=subprocess.PIPE, text=True
    )
    assert worker.stderr is not None
    said = []
    for line in iter(worker.stderr.readline, ''):
      if 'cells' in line:
        return worker
      said.append(line)
    raise AssertionError(f'it ended: {said}')

  def end(self, worker: subprocess.Popen) -> None:
    _, said = worker.communicate()
    assert worker.returncode == 0, said

  def kill_and_end(self, number: int, moments: Sequence[float]) -> int:
    """How many kills met a worker at work; the last worker ends by itself."""
    met = 0
    for seconds in moments:
      worker = self.start(number)
      with contextlib.suppress(subprocess.TimeoutExpired):
        worker.communicate(timeout=seconds)
      worker.kill()
      worker.communicate()
      met += worker.returncode == -signal.SIGKILL
    self.end(self.start(number))
    return met

  def killed(self, kills: int, seconds: float, *, seed: int) -> int:
    """Two workers at once, each killed at random moments; kills that met."""
    rng = random.Random(seed)
    moments = [[rng.uniform(0, seconds) for _ in range(kills)] for _ in '01']
    with futures.ThreadPoolExecutor() as pool:
      return sum(pool.map(self.kill_and_end, range(2), moments))


def test_killed_workers_end_as_one_unbroken(study, whole, tmp_path):
  """Within a second a worker is still at its first batch."""
  place = Place(tmp_path / 'killed', study.baseline['data.cache_dir'], 8)
  assert place.killed(1, 1.0, seed=0) == 2
  assert tables(place.folder) == tables(whole)
  assert len(list(place.folder.rglob('result.json'))) == 6


@pytest.mark.slow
def test_ten_kills_leave_no_trace(study, tmp_path):
  cache = study.baseline['data.cache_dir']
  unbroken = Place(tmp_path / 'unbroken', cache, LONG)
  worker = unbroken.start(0)
  begun = time.monotonic()
  unbroken.end(worker)
  seconds = time.monotonic() - begun
  place = unbroken._replace(folder=tmp_path / 'killed')
  # Ten parts of a sixth at most, each of which begins with a start-up.
  assert place.killed(5, seconds / 6, seed=1) == 10
  assert tables(place.folder) == tables(unbroken.folder)
  assert len(list(place.folder.rglob('result.json'))) == 6
