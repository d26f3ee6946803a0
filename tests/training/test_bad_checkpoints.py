"""Every way in which a checkpoint goes bad: damage, full disks, kills."""

import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1

from tests.training.saved import (
  abstract,
  array_file,
  assert_same,
  open_at,
  saved,
  state,
)
from transformer_jax.training import manifest
from transformer_jax.training.checkpoint import CheckpointError, Checkpoints

ROOT = pathlib.Path(__file__).parent.parent.parent


def flip(folder, step):
  file = array_file(folder, step)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  return str(file.relative_to(folder / str(step))) + ' is damaged'


def truncate(folder, step):
  file = array_file(folder, step)
  file.write_bytes(file.read_bytes()[:-1])
  return str(file.relative_to(folder / str(step))) + ' is damaged'


def lose_file(folder, step):
  file = array_file(folder, step)
  file.unlink()
  return str(file.relative_to(folder / str(step))) + ' is missing'


def lose_manifest(folder, step):
  (folder / str(step) / 'manifest.json').unlink()
  return 'manifest.json is missing'


def edit_manifest(folder, step):
  file = folder / str(step) / 'manifest.json'
  file.write_text(file.read_text().replace('null', '0.5'))
  return 'manifest.json is damaged'


def edit_config(folder, step):
  (folder / str(step) / 'config.json').write_text('{"other": 1}')
  return 'config.json is damaged'


FAULTS = [flip, truncate, lose_file, lose_manifest, edit_manifest, edit_config]


@pytest.mark.parametrize('fault', FAULTS)
def test_a_bad_step_is_set_aside_and_named(fault, tmp_path, capsys):
  saved(tmp_path, [1, 2])
  reason = fault(tmp_path, 2)
  checkpoints = open_at(tmp_path)
  assert_same(checkpoints.restore(abstract(state())), state(1))
  text = capsys.readouterr().err
  assert f'{tmp_path / "2"} is bad, {reason}: set aside as 2.bad' in text
  assert text.count('\n') == 1
  assert checkpoints.steps() == [1]
  # The step can be made again, and goes bad again.
  checkpoints.save(2, state(2), metric=None)
  checkpoints.wait()
  fault(tmp_path, 2)
  assert_same(open_at(tmp_path).restore(abstract(state())), state(1))
  assert (tmp_path / '2.bad2').is_dir()


def test_a_renamed_step_is_bad(tmp_path, capsys):
  saved(tmp_path, [1])
  (tmp_path / '1').rename(tmp_path / '5')
  with pytest.raises(CheckpointError, match='no good checkpoint in'):
    open_at(tmp_path).restore(abstract(state()))
  assert 'it was written as step 1' in capsys.readouterr().err


def test_a_step_asked_for_by_number_is_never_replaced(tmp_path):
  saved(tmp_path, [1, 2])
  flip(tmp_path, 2)
  checkpoints = open_at(tmp_path)
  for read in (
    lambda: checkpoints.restore(abstract(state()), 2),
    lambda: checkpoints.restore_parts({'params': abstract(state().params)}, 2),
    lambda: checkpoints.config(2),
  ):
    with pytest.raises(CheckpointError, match='/2 is bad: arrays'):
      read()
  with pytest.raises(CheckpointError, match='manifest.json is missing'):
    checkpoints.restore(abstract(state()), 3)
  assert checkpoints.good(2) == [1]


def test_full_disk_is_one_line_and_older_steps_stay(tmp_path):
  checkpoints = saved(tmp_path, [1])
  large = {'w': jax.random.normal(jax.random.key(0), (300, 1000))}
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    checkpoints.save(2, large, metric=None)
    with pytest.raises(CheckpointError) as error:
      checkpoints.save(3, large, metric=None)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  text = str(error.value)
  assert text == (
    f'checkpoint 2 could not be saved in {tmp_path}: File too large; 1 is whole'
  )
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1']
  assert_same(checkpoints.restore(abstract(state())), state(1))
  # Room again: the same object goes on.
  checkpoints.save(4, state(4), metric=None)
  checkpoints.wait()
  assert checkpoints.steps() == [1, 4]


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize('place', ['manifest.write', 'v1.save_async'])
def test_what_the_disk_refuses_is_one_line(
  number, place, tmp_path, monkeypatch
):
  checkpoints = saved(tmp_path, [1])
  module, name = place.split('.')

  def refuse(*_, **__):
    raise OSError(number, os.strerror(number))

  with monkeypatch.context() as patch:
    patch.setattr({'manifest': manifest, 'v1': v1}[module], name, refuse)
    with pytest.raises(CheckpointError) as error:
      checkpoints.save(2, state(2), metric=None)
      checkpoints.wait()
  assert str(error.value) == (
    f'checkpoint 2 could not be saved in {tmp_path}: {os.strerror(number)}; '
    '1 is whole'
  )
  assert [path.name for path in tmp_path.iterdir()] == ['1']
  assert_same(open_at(tmp_path).restore(abstract(state())), state(1))
  # Room again: the same step is saved.
  checkpoints.save(2, state(2), metric=None)
  checkpoints.wait()
  assert open_at(tmp_path).good(2) == [2, 1]


def test_a_trial_finds_that_there_is_no_room(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, [1])
  with monkeypatch.context() as patch:
    # For the trial's own files, but not for a step.
    patch.setattr(
      shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(9, 9, 99)
    )
    with pytest.raises(CheckpointError, match='0 MB left.*: make room') as told:
      checkpoints.trial(state())
    assert '\n' not in str(told.value)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
  try:
    with pytest.raises(CheckpointError, match='trial.*File too large; 1 is'):
      checkpoints.trial(state())
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [path.name for path in tmp_path.iterdir()] == ['1']


def test_a_place_that_takes_no_folder_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  checkpoints = open_at(tmp_path / 'file' / 'checkpoints')
  with pytest.raises(
    CheckpointError, match='Not a directory; there is no older'
  ):
    checkpoints.save(1, state(1), metric=None)


# Saves for ever, a step after a step, each of the value of its number.
SAVER = """
import itertools, sys
import jax.numpy as jnp
from transformer_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(
  sys.argv[1], keep_latest=3, keep_best=1, best_metric_mode='min'
)
first = (checkpoints.latest() or 0) + 1
for step in itertools.count(first):
  value = jnp.full((300, 300), float(step))
  checkpoints.save(step, {'params': {'w': value}}, metric=float(-step % 7))
"""


def kill_in_a_save(folder: pathlib.Path, delay: float) -> None:
  """SIGKILL to a saving process, `delay` seconds after a save began."""
  saver = subprocess.Popen(
    [sys.executable, '-c', SAVER, str(folder)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  try:
    names = [path.name for path in folder.iterdir()]
    before = max((int(name) for name in names if name.isdecimal()), default=0)
    deadline = time.monotonic() + 60
    while not (folder / f'{before + 5}.saving').exists():
      assert time.monotonic() < deadline and saver.poll() is None
      time.sleep(0.0005)
    time.sleep(delay)
  finally:
    saver.send_signal(signal.SIGKILL)
    saver.wait()


def check_after_kill(folder: pathlib.Path, capsys) -> None:
  checkpoints = Checkpoints(
    folder, keep_latest=3, keep_best=1, best_metric_mode='min'
  )
  wanted = {'params': {'w': jax.ShapeDtypeStruct((300, 300), jnp.float32)}}
  steps = checkpoints.steps()
  assert checkpoints.good(9) == steps[::-1]
  assert capsys.readouterr().err == ''
  for step in steps:
    assert (checkpoints.restore(wanted, step)['params']['w'] == step).all()
  # Three newest in a row, and the best of all steps so far beside them; one
  # more when the kill fell between a save and its clearing away.
  assert 3 <= len(steps) <= 5
  assert steps[-3:] == list(range(steps[-1] - 2, steps[-1] + 1))
  best = checkpoints.best()
  assert best is not None
  assert best % 7 == 0 or steps[-1] < 7


def test_kill_in_mid_save_leaves_whole_steps(tmp_path, capsys):
  kill_in_a_save(tmp_path, 0.01)
  check_after_kill(tmp_path, capsys)


@pytest.mark.slow
def test_many_kills_in_mid_save(tmp_path, capsys):
  delays = np.random.default_rng(0).uniform(0, 0.08, 10)
  interrupted = 0
  for delay in delays:
    kill_in_a_save(tmp_path, delay)
    interrupted += any(tmp_path.glob('*.saving'))
    check_after_kill(tmp_path, capsys)
  assert interrupted >= 2
