"""Programs compiled before they are called, and refused when too large."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import Config, ConfigError
from transformer_jax.data.batches import Shape
from transformer_jax.fields import override
from transformer_jax.training import compiled, fit, guard, hosts, loop, setup
from transformer_jax.training.state import State, numbers, run_key


def test_a_shape_is_compiled_once_and_waited_for(monkeypatch):
  traced, met = [], []
  monkeypatch.setattr(hosts, 'meet', lambda: met.append(len(traced)))

  def step(state, batch):
    traced.append(batch.shape)
    return state + batch.sum(), ()

  steps = compiled.Steps(jax.jit(step), Config())
  small, large = np.ones(2, np.float32), np.ones(5, np.float32)
  state = jnp.float32(0)
  steps.program(state, large)
  for batch in (small, large, small, large):
    state, _ = steps(state, batch)
  assert traced == [(5,), (2,)]
  assert met == [1, 2]
  assert state == 14


def test_the_step_of_a_run_takes_the_place_of_its_state(set_up):
  run = set_up()
  state = setup.start_or_resume(run)
  steps = setup.admitted_steps(run, state)
  batches = run.layout.batch(loop.stacked(run.plan, run.config, 0, 1), 1)
  rest = np.int32(1), run_key(run.config), numbers(run.config)
  after, _ = steps(state, batches, *rest)
  assert int(after.step) == 1
  assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_the_longest_of_equal_batches_is_the_largest():
  config = override(Config(), {'data.batches_per_run': 3})
  shapes = [Shape(64, 8, 8), Shape(16, 32, 31), Shape(16, 8, 8)]
  source, target = compiled.largest_batches(config, shapes)
  assert source.shape == (3, 16, 32)
  assert target.shape == (3, 16, 31)


def test_what_does_not_fit_is_refused_before_step_1(
  config, tmp_path, monkeypatch
):
  monkeypatch.setattr(fit, 'device_memory', lambda device: 1000.0)
  monkeypatch.setattr(loop, 'stacked', None)  # No batch is made.
  with pytest.raises(ConfigError) as refused:
    loop.train(config, workdir=str(tmp_path / 'run'))
  assert '--optim.accumulate=8 cuts the batch' in str(refused.value)
  assert '\n' not in str(refused.value)
  written = {
    path.name for path in (tmp_path / 'run').rglob('*') if path.is_file()
  }
  # The advice changes the config: the same folder takes it.
  assert written == set()


def test_a_long_compilation_is_not_a_stuck_process(
  config, tmp_path, monkeypatch
):
  heard, beats = threading.Event(), []
  monkeypatch.setattr(guard.Watchdog, 'beat', lambda own: heard.set())

  def compile_(*_):
    for _ in range(2):
      heard.clear()
      beats.append(heard.wait(30))
    raise ConfigError('enough')

  monkeypatch.setattr(jax.stages.Lowered, 'compile', compile_)
  with pytest.raises(ConfigError, match='enough'):
    loop.train(config, workdir=str(tmp_path / 'run'))
  assert beats == [True, True]


def test_a_compiler_that_is_short_of_memory_refuses(monkeypatch):
  state = State(jnp.int32(0), {'w_D': jnp.ones(8)}, ())
  steps = compiled.Steps(jax.jit(lambda state, batch: state), Config())
  text = 'Ran out of memory in memory space hbm. Used 18.97G of 15.75G hbm'

  def refuse(*_, **__):
    raise jax.errors.JaxRuntimeError(text)

  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse)
  monkeypatch.setattr(fit, 'device_memory', lambda device: 15.75 * fit.GIB)
  with pytest.raises(ConfigError, match='needs 18.97 GiB of the 15.75 of a'):
    steps(state, np.ones(2, np.float32))
  text = 'INTERNAL: something else'
  with pytest.raises(jax.errors.JaxRuntimeError, match='something else'):
    steps(state, np.ones(2, np.float32))


def test_what_a_run_needs_is_not_forgotten(set_up, tmp_path, monkeypatch):
  def left():
    return {path.name for path in (tmp_path / 'run').iterdir()}

  run = set_up()
  with monkeypatch.context() as patch:
    patch.setattr(run.checkpoints, 'begun', lambda: True)
    setup.forget(run)
  assert left() >= {'config.json', 'vocabulary'}
  # A vocabulary that was there before may be somebody's own.
  setup.forget(set_up())
  assert 'vocabulary' in left() and 'config.json' not in left()
