"""Checkpoints: exact round trips, and every way in which a step goes bad."""

import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1

from transformer_jax.config import ConfigError
from transformer_jax.training import manifest
from transformer_jax.training.average import average
from transformer_jax.training.checkpoint import CheckpointError, Checkpoints

ROOT = pathlib.Path(__file__).parent.parent.parent


class Moments(NamedTuple):
  count: jax.Array
  mean: dict
  empty: tuple


class Run(NamedTuple):
  step: jax.Array
  params: dict
  optimizer: tuple


def state(seed: int = 0, *, width: int = 3) -> Run:
  """A small state with the kinds of containers that optax has."""
  key = jax.random.key(seed)
  params = {
    'encoder': {'w_DF': jax.random.normal(key, (4, width))},
    'scale_D': jnp.arange(4.0) + seed,
  }
  moments = Moments(jnp.int32(seed), params, ())
  return Run(jnp.int32(seed), params, (moments, ()))


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def open_at(
  folder, *, latest=10, best=1, mode='min', config='{}', keep_every=0
):
  return Checkpoints(
    folder,
    keep_every=keep_every,
    keep_latest=latest,
    keep_best=best,
    best_metric_mode=mode,
    config=config,
  )


def saved(folder, steps, **kwargs):
  checkpoints = open_at(folder, **kwargs)
  for step in steps:
    checkpoints.save(step, state(step), metric=None)
  checkpoints.wait()
  return checkpoints


def assert_same(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def array_file(folder: pathlib.Path, step: int) -> pathlib.Path:
  """The largest file of a step: the one with the numbers."""
  files = (folder / str(step) / 'arrays').rglob('*')
  return max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)


def test_round_trip_is_exact(tmp_path):
  wanted = Run(
    jnp.int32(7),
    {
      'w': jax.random.normal(jax.random.key(1), (5, 6)),
      'odd': jnp.float32([jnp.nan, -0.0, jnp.inf, 1e-42]),
      'half': jnp.arange(3, dtype=jnp.bfloat16),
      'bits': jnp.uint32([0, 2**32 - 1]),
    },
    (Moments(jnp.int32(1), {'w': jnp.ones(2)}, ()), ()),
  )
  checkpoints = open_at(tmp_path, config='{"a": 1}')
  checkpoints.save(7, wanted, metric=None)
  checkpoints.wait()
  again = open_at(tmp_path)
  assert_same(again.restore(abstract(wanted)), wanted)
  assert again.config(7) == '{"a": 1}'
  assert again.steps() == [7] and again.latest() == 7


def test_state_may_be_donated_after_save(tmp_path):
  grow = jax.jit(
    lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0
  )
  tree = {'w': jnp.zeros((300, 300))}
  checkpoints = open_at(tmp_path)
  for step in range(6):
    checkpoints.save(step, tree, metric=None)
    tree = grow(tree)
  checkpoints.wait()
  for step in range(6):
    found = checkpoints.restore(abstract(tree), step)
    assert (np.asarray(found['w']) == step).all()


def test_sharded_state_goes_where_it_is_wanted(tmp_path):
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.NamedSharding(mesh, jax.P('data'))
  whole = jax.NamedSharding(mesh, jax.P())
  w_VD = jax.device_put(jnp.arange(32.0).reshape(16, 2), rows)
  checkpoints = open_at(tmp_path)
  checkpoints.save(1, {'w_VD': w_VD}, metric=None)
  checkpoints.wait()
  for sharding in (rows, whole):
    want = jax.ShapeDtypeStruct(w_VD.shape, w_VD.dtype, sharding=sharding)
    found = checkpoints.restore({'w_VD': want})['w_VD']
    assert found.sharding.is_equivalent_to(sharding, 2)
    assert (np.asarray(found) == np.asarray(w_VD)).all()


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
    lambda: checkpoints.restore_params(abstract(state().params), 2),
    lambda: checkpoints.config(2),
  ):
    with pytest.raises(CheckpointError, match='/2 is bad: arrays'):
      read()
  with pytest.raises(CheckpointError, match='manifest.json is missing'):
    checkpoints.restore(abstract(state()), 3)
  assert checkpoints.good(2) == [1]


def test_nothing_to_restore(tmp_path):
  checkpoints = open_at(tmp_path / 'none')
  assert checkpoints.steps() == []
  assert checkpoints.latest() is None and checkpoints.best() is None
  with pytest.raises(CheckpointError, match='no good checkpoint in'):
    checkpoints.restore(abstract(state()))
  assert not (tmp_path / 'none').exists()


def test_another_model_is_named_leaf_by_leaf(tmp_path):
  checkpoints = saved(tmp_path, [1])
  with pytest.raises(ConfigError) as error:
    checkpoints.restore(abstract(state(width=5)))
  text = str(error.value)
  assert 'params.encoder.w_DF is float32[4, 3], wanted float32[4, 5]' in text
  assert '\n' not in text
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state().params)
  with pytest.raises(ConfigError, match='scale_D is float32.*wanted bfloat16'):
    checkpoints.restore_params(abstract(half), 1)
  other = {'encoder': state().params['encoder'], 'bias_D': jnp.ones(4)}
  with pytest.raises(ConfigError) as error:
    checkpoints.restore(abstract(state()._replace(params=other)))
  assert 'params.bias_D is missing; params.scale_D is extra' in str(error.value)
  # The fault is the wish's, not the checkpoint's.
  assert checkpoints.steps() == [1]


def test_params_alone_and_their_mean(tmp_path):
  checkpoints = saved(tmp_path, [1, 2, 6])
  wanted = abstract(state().params)
  trees = [checkpoints.restore_params(wanted, step) for step in (1, 2, 6)]
  assert_same(trees[1], jax.tree.map(np.asarray, state(2).params))
  mean = average(iter(trees))
  # Steps 1, 2 and 6: 0 .. 3 plus their mean of 3.
  np.testing.assert_array_equal(
    mean['scale_D'], np.array([3, 4, 5, 6], np.float32)
  )
  np.testing.assert_array_equal(trees[0]['scale_D'], [1, 2, 3, 4])
  with pytest.raises(CheckpointError, match='no checkpoint to average'):
    average([])


def test_mean_is_summed_in_float32():
  # In bfloat16, 256 + 1 is 256.
  trees = [{'w': jnp.bfloat16(256)}] + [{'w': jnp.bfloat16(1)}] * 255
  mean = average(trees)
  assert mean['w'].dtype == jnp.bfloat16
  assert float(mean['w']) == 2.0


@pytest.mark.parametrize('mode, best', [('min', 2), ('max', 3)])
def test_retention_survives_a_restart(mode, best, tmp_path):
  metrics = {1: 5.0, 2: 1.0, 3: 9.0, 4: float('nan'), 5: None, 6: 4.0, 7: 3.0}
  for step, metric in metrics.items():
    # Opened anew each time: what is the best is known from disk.
    checkpoints = open_at(tmp_path, latest=2, mode=mode)
    checkpoints.save(step, state(step), metric=metric)
    checkpoints.wait()
  assert checkpoints.steps() == [best, 6, 7]
  assert checkpoints.best() == best
  assert open_at(tmp_path, mode=mode).metric(7) == 3.0
  left = sorted(path.name for path in tmp_path.iterdir())
  assert left == sorted([str(best), '6', '7'])


def test_every_kth_step_is_kept_for_good(tmp_path):
  for step in range(1, 8):
    # Opened anew each time: nothing but the disk knows.
    checkpoints = open_at(tmp_path, latest=1, keep_every=3)
    checkpoints.save(step, state(step), metric=None)
    checkpoints.wait()
  assert checkpoints.steps() == [3, 6, 7]


def test_a_metric_that_comes_later(tmp_path):
  checkpoints = saved(tmp_path, [1, 2, 3], latest=1)
  for step, metric in ((1, 2.0), (2, 1.0)):
    checkpoints = open_at(tmp_path, latest=9)
    checkpoints.save(step, state(step), metric=metric)
    checkpoints.wait()
  checkpoints = open_at(tmp_path, latest=1)
  before = array_file(tmp_path, 3).stat()
  checkpoints.score(3, 0.5)
  assert array_file(tmp_path, 3).stat() == before
  # It is the best one, so those before it go.
  assert checkpoints.best() == 3 and checkpoints.steps() == [3]
  assert open_at(tmp_path).good(1) == [3]


def test_of_equal_metrics_the_oldest_is_best(tmp_path):
  checkpoints = open_at(tmp_path)
  for step in (1, 2):
    checkpoints.save(step, state(step), metric=1.0)
  checkpoints.wait()
  assert checkpoints.best() == 1


def test_a_whole_step_is_not_written_again(tmp_path):
  checkpoints = saved(tmp_path, [1])
  before = array_file(tmp_path, 1).stat()
  checkpoints.save(1, state(2), metric=0.0)
  checkpoints.wait()
  assert array_file(tmp_path, 1).stat() == before


def test_first_save_sweeps_and_reading_does_not(tmp_path):
  saved(tmp_path, [1])
  for name in ('2.saving', '0.removed'):
    (tmp_path / name / 'arrays').mkdir(parents=True)
  checkpoints = open_at(tmp_path)
  checkpoints.restore(abstract(state()))
  assert (tmp_path / '2.saving').exists()
  checkpoints.save(2, state(2), metric=None)
  checkpoints.wait()
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']


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


def test_a_trial_leaves_nothing(tmp_path):
  checkpoints = open_at(tmp_path / 'run')
  checkpoints.trial(state())
  assert not (tmp_path / 'run').exists()
  checkpoints = saved(tmp_path, [1])
  (tmp_path / '2.saving').mkdir()
  checkpoints = open_at(tmp_path)
  checkpoints.trial(state())
  assert [path.name for path in tmp_path.iterdir()] == ['1']


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
