"""Checkpoints: exact round trips, which are kept and which is the best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.saved import (
  Moments,
  Run,
  abstract,
  array_file,
  assert_same,
  open_at,
  saved,
  state,
)
from transformer_jax.config import ConfigError
from transformer_jax.training.average import average
from transformer_jax.training.checkpoint import CheckpointError


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
    checkpoints.restore_parts({'params': abstract(half)}, 1)
  other = {'encoder': state().params['encoder'], 'bias_D': jnp.ones(4)}
  with pytest.raises(ConfigError) as error:
    checkpoints.restore(abstract(state()._replace(params=other)))
  assert 'params.bias_D is missing; params.scale_D is extra' in str(error.value)
  # The fault is the wish's, not the checkpoint's.
  assert checkpoints.steps() == [1]


def test_params_alone_and_their_mean(tmp_path):
  checkpoints = saved(tmp_path, [1, 2, 6])
  wanted = {'params': abstract(state().params)}
  parts = [checkpoints.restore_parts(wanted, step) for step in (1, 2, 6)]
  trees = [part['params'] for part in parts]
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


def test_a_trial_leaves_nothing(tmp_path):
  checkpoints = open_at(tmp_path / 'run')
  checkpoints.trial(state())
  assert not (tmp_path / 'run').exists()
  checkpoints = saved(tmp_path, [1])
  (tmp_path / '2.saving').mkdir()
  checkpoints = open_at(tmp_path)
  checkpoints.trial(state())
  assert [path.name for path in tmp_path.iterdir()] == ['1']
