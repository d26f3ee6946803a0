"""A run: what it leaves, and the same after every kind of end."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from tests.training.runs import Killed, assert_same_run, damage, rows, steps_of
from transformer_jax.config import ConfigError
from transformer_jax.fields import override
from transformer_jax.training import loop
from transformer_jax.training.checkpoint import CheckpointError, Checkpoints


@pytest.fixture(scope='module')
def unbroken(config, tmp_path_factory):
  """The folder of a run of 24 steps that nothing disturbed."""
  folder = tmp_path_factory.mktemp('unbroken')
  assert loop.train(config, workdir=str(folder)) == loop.FINISHED
  return folder


def test_what_a_run_leaves(unbroken):
  assert [(row['step'], row['split']) for row in rows(unbroken)] == [
    (4, 'train'),
    (8, 'train'),
    (8, 'validation'),
    (12, 'train'),
    (16, 'train'),
    (16, 'validation'),
    (20, 'train'),
    (24, 'train'),
    (24, 'validation'),
  ]
  first, last = rows(unbroken)[2], rows(unbroken)[-1]
  assert last['loss'] < first['loss']
  np.testing.assert_allclose(last['perplexity'], np.exp(last['loss']))
  assert steps_of(unbroken) == [8, 16, 24]
  assert sorted(path.name for path in unbroken.iterdir()) == [
    'checkpoints',
    'config.json',
    'events',
    'metrics.jsonl',
    'vocabulary',
  ]
  about = json.loads((unbroken / 'config.json').read_text())
  assert set(about) == {'config', 'fingerprints', 'versions'}
  assert about['config']['train.steps'] == 24


def test_a_finished_run_says_so(config, unbroken, capfd, monkeypatch):
  monkeypatch.setattr(loop, 'go_on', None)
  before = {p: p.stat().st_mtime_ns for p in unbroken.rglob('checkpoints/**/*')}
  metrics = (unbroken / 'metrics.jsonl').read_bytes()
  for fields in ({}, {'train.log_every': 2, 'data.tfds_dir': '/other'}):
    changed = override(config, fields)
    assert loop.train(changed, workdir=str(unbroken)) == 0
    assert f'{unbroken} is finished at step 24' in capfd.readouterr().err
  assert (unbroken / 'metrics.jsonl').read_bytes() == metrics
  assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_finished_run_is_tidied(config, unbroken, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'go_on', None)
  folder = tmp_path / 'run'
  shutil.copytree(unbroken, folder)
  # As a kill leaves it while the steps before the last save are removed.
  (folder / 'checkpoints/8').rename(folder / 'checkpoints/8.removed')
  fields = {'train.keep_latest': 1, 'train.keep_best': 1}
  assert loop.train(override(config, fields), workdir=str(folder)) == 0
  assert os.listdir(folder / 'checkpoints') == ['24']


def test_more_steps_go_on(train, unbroken, tmp_path):
  assert train(train__steps=8)[0] == 0
  assert steps_of(tmp_path / 'run') == [8]
  code, err = train()
  assert code == 0 and 'resumed at step 8' in err
  assert_same_run(tmp_path / 'run', unbroken)


@pytest.mark.parametrize('step', [3, 15])
def test_killed_between_checkpoints(
  train, unbroken, tmp_path, before_step, step
):
  def kill():
    raise Killed

  before_step(step, kill)
  with pytest.raises(Killed):
    train()
  # The kill fell in the middle of a line.
  with open(tmp_path / 'run' / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 9, "spl')
  code, err = train()
  assert code == 0
  assert ('resumed at step 8' in err) == (step > 8)
  assert_same_run(tmp_path / 'run', unbroken)


@pytest.mark.parametrize(
  ('number', 'step'), [(signal.SIGTERM, 4), (signal.SIGUSR1, 12)]
)
def test_a_signal_saves_and_leaves(
  train, unbroken, tmp_path, before_step, number, step
):
  before_step(step, lambda: os.kill(os.getpid(), number))
  handlers = [signal.getsignal(number)]
  code, err = train()
  assert code == 75
  assert 'signal: saving' in err
  saved = step + 2  # At the end of the call of two steps.
  assert steps_of(tmp_path / 'run')[-1] == saved
  assert f'saved at step {saved}' in err
  code, err = train()
  assert code == 0 and f'resumed at step {saved}' in err
  assert_same_run(tmp_path / 'run', unbroken)
  assert handlers == [signal.getsignal(number)]


@pytest.mark.parametrize(
  ('when', 'step'), [('start_or_resume', 0), ('admitted_steps', 8)]
)
def test_a_signal_in_the_set_up_leaves_before_the_first_call(
  train, unbroken, tmp_path, monkeypatch, when, step
):
  if step:
    assert train(train__steps=step)[0] == 0
  act = getattr(loop, when)

  def signalled(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return act(*arguments)

  with monkeypatch.context() as patch:
    patch.setattr(loop, when, signalled)
    if when == 'start_or_resume':  # Nor is anything compiled.
      patch.setattr(loop, 'admitted_steps', None)
    patch.setattr(loop, 'stacked', None)
    code, err = train()
  assert code == 75
  told = f'saved at step {step}' if step else 'before step 1'
  assert f'stopped by a signal, {told}\n' in err
  assert train()[0] == 0
  assert_same_run(tmp_path / 'run', unbroken)


@pytest.fixture
def in_evaluation(monkeypatch):
  """(step, action): `action()` once, in the evaluation of `step`."""
  evaluation = loop.evaluation

  def plan(step, action):
    left = [action]

    def make(run, stop, bleu):
      now = [0]

      def ask():
        if now[0] == step and left:
          left.pop()()
        return stop()

      evaluate = evaluation(run, ask, bleu)

      def wrapped(step, state):
        now[0] = step
        return evaluate(step, state)

      return wrapped

    monkeypatch.setattr(loop, 'evaluation', make)

  return plan


@pytest.mark.parametrize('step', [16, 24])
def test_a_signal_in_an_evaluation_is_obeyed_and_the_evaluation_made_up_for(
  train, unbroken, tmp_path, in_evaluation, step
):
  in_evaluation(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
  code, err = train()
  assert code == 75 and f'saved at step {step}' in err
  folder = tmp_path / 'run'
  assert (step, 'validation') not in [
    (r['step'], r['split']) for r in rows(folder)
  ]
  code, err = train()
  assert code == 0 and f'step {step} validation: loss' in err
  assert_same_run(folder, unbroken)
  # The metric as well, and with it what retention keeps.
  for made in steps_of(unbroken):
    manifests = [
      json.loads((run / f'checkpoints/{made}/manifest.json').read_text())
      for run in (folder, unbroken)
    ]
    assert manifests[0]['metric'] == manifests[1]['metric']
  assert steps_of(folder) == steps_of(unbroken)
  assert 'is finished' in train()[1]


def test_killed_between_a_late_evaluation_and_its_metric(
  train, unbroken, tmp_path, in_evaluation, monkeypatch
):
  in_evaluation(24, lambda: os.kill(os.getpid(), signal.SIGTERM))
  assert train()[0] == 75

  def kill(*_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, 'score', kill)
    with pytest.raises(Killed):
      train()
  assert train()[0] == 0
  assert_same_run(tmp_path / 'run', unbroken)


def test_a_signal_in_the_last_call_is_made_up_for(
  train, unbroken, tmp_path, before_step
):
  before_step(22, lambda: os.kill(os.getpid(), signal.SIGTERM))
  assert train()[0] == 75
  assert train()[0] == 0
  assert_same_run(tmp_path / 'run', unbroken)


def test_a_bad_checkpoint_is_made_again(train, unbroken, tmp_path):
  train(train__steps=16)
  damage(tmp_path / 'run', 16)
  code, err = train()
  assert code == 0
  assert '16 is bad' in err and 'resumed at step 8' in err
  assert_same_run(tmp_path / 'run', unbroken)


def test_a_run_does_not_begin_again_beside_bad_checkpoints(train, tmp_path):
  train(train__steps=16)
  folder = tmp_path / 'run'
  metrics = (folder / 'metrics.jsonl').read_bytes()
  damage(folder, 16)
  (folder / 'checkpoints' / '8' / 'manifest.json').unlink()
  for _ in range(2):
    with pytest.raises(CheckpointError, match='16.bad, 8.bad') as refused:
      train()
    assert '\n' not in str(refused.value)
  assert (folder / 'metrics.jsonl').read_bytes() == metrics
  # What its words advise.
  (folder / 'checkpoints' / '8.bad').rename(folder / 'checkpoints' / '8')
  with pytest.raises(CheckpointError):
    train()


# The first holds metrics and events, but no arrays; the other nothing.
@pytest.mark.parametrize('size', [8192, 100])
def test_a_full_disk_is_one_line(
  train, unbroken, tmp_path, before_step, file_limit, size
):
  train(train__steps=8)
  before_step(9, lambda: file_limit(size))
  with pytest.raises(ConfigError) as stopped:
    train()
  file_limit(None)
  told = str(stopped.value)
  assert 'File too large' in told and '\n' not in told
  assert ('8 is whole' in told) == (size == 8192)
  assert steps_of(tmp_path / 'run') == [8]
  code, err = train()
  assert code == 0 and 'resumed at step 8' in err
  assert_same_run(tmp_path / 'run', unbroken)


def test_the_program_refuses_in_one_line(call, unbroken, tmp_path):
  (tmp_path / 'file').write_text('')
  for workdir, words, told in [
    (unbroken, ['--optim.beta1=0.5'], 'optim.beta1 0.9 -> 0.5; take'),
    (unbroken, ['--data.seed=3'], 'data.seed 0 -> 3'),
    (tmp_path / 'file' / 'run', [], 'cannot be written: Not a directory'),
    (tmp_path / 'file', [], 'cannot be written: File exists'),
    ('/proc/run', [], '/proc/run cannot be written'),
    (tmp_path / 'odd', ['--model.d_model=15'], 'd_model=15 must be even'),
    (tmp_path / 'odd', ['--optim.accumulate=7'], 'accumulate=7 does not'),
    (tmp_path / 'odd', ['--data.source=task:xyzzy'], 'xyzzy'),
  ]:
    code, err = call(workdir, *words)
    assert code == 2 and told in err, err
    assert err.startswith('error: ') and err.count('\n') == 1
  # What was refused does not stand in the way of what is right.
  assert not (tmp_path / 'odd' / 'config.json').exists()
  assert call(unbroken)[0] == 0
