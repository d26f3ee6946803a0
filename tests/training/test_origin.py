"""A run that begins with another run's parameters."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.conftest import arrays
from transformer_jax.config import ConfigError
from transformer_jax.fields import override
from transformer_jax.training import loop, setup
from transformer_jax.training.arrays import by_path
from transformer_jax.training.progress import Progress


def save(config, folder, *steps, init_from=''):
  """A run's checkpoints as they might be, without its training."""
  progress = Progress(str(folder), config.train.steps)
  run = setup.set_up(config, str(folder), progress, init_from=str(init_from))
  state = setup.start_or_resume(run)
  for step in steps:
    params = jax.tree.map(lambda x, add=step: x + add, state.params)
    state = state._replace(step=jnp.int32(step), params=params)
    run.checkpoints.save(step, state, metric=None)
  run.checkpoints.wait()


@pytest.fixture(scope='module')
def other(config, tmp_path_factory):
  """The folder of a run with checkpoints 8 and 16."""
  folder = tmp_path_factory.mktemp('other').resolve()
  save(config, folder, 8, 16)
  return folder


@pytest.fixture
def begin(config, tmp_path, monkeypatch):
  """(init_from, **fields) -> the state that a run in one folder begins with."""

  def run(init_from, folder='run', **fields):
    seen = []

    def keep(run, state, *rest):
      seen.append(state)
      return 0

    values = {name.replace('__', '.'): value for name, value in fields.items()}
    with monkeypatch.context() as patch:
      patch.setattr(loop, 'go_on', keep)
      loop.train(
        override(config, {'train.seed': 7, **values}),
        workdir=str(tmp_path / folder),
        init_from=str(init_from),
      )
    return seen[0]

  return run


def params_of(folder, step):
  found = arrays(folder, step).items()
  return {name: x for name, x in found if name.startswith('params.')}


def test_parameters_are_the_others_and_the_rest_is_new(begin, other, tmp_path):
  for step, named in ((16, other), (8, other / 'checkpoints' / '8')):
    state = begin(named, folder=str(step))
    own = by_path({'params': state.params})
    wanted = params_of(other, step)
    assert {n: np.asarray(x).tobytes() for n, x in own.items()} == wanted
    assert int(state.step) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(state.optimizer))
    text = (tmp_path / str(step) / 'config.json').read_text()
    kept = json.loads(text)['init_from']
    assert (kept['named'], kept['step']) == (str(named), step)
  assert params_of(other, 8) != params_of(other, 16)


@pytest.mark.slow
def test_on_a_mesh_they_are_the_same(begin, other):
  state = begin(other, mesh__data=2, mesh__fsdp=4)
  leaves = by_path({'params': state.params})
  assert any(len(x.sharding.device_set) == 8 for x in leaves.values())
  assert {
    name: np.asarray(x).tobytes() for name, x in leaves.items()
  } == params_of(other, 16)


def test_the_same_command_resumes_and_another_is_refused(
  config, begin, other, tmp_path
):
  source, folder = tmp_path / 'source', tmp_path / 'run'
  shutil.copytree(other, source)
  begin(source)
  before = (folder / 'config.json').read_bytes()
  # The other run went on meanwhile: what this one begins with is decided.
  save(config, source, 24)
  state = begin(source)
  own = by_path({'params': state.params})
  wanted = params_of(other, 16)
  assert {n: np.asarray(x).tobytes() for n, x in own.items()} == wanted
  assert (folder / 'config.json').read_bytes() == before
  for changed in ('', other, source / 'checkpoints' / '16'):
    with pytest.raises(ConfigError, match=f'began from --init_from={source}:'):
      begin(changed)
  begin('', folder='plain')
  with pytest.raises(ConfigError, match='began from initial values: give no'):
    begin(source, folder='plain')
  # Of a run that has a checkpoint nothing is read again.
  save(override(config, {'train.seed': 7}), folder, 8, init_from=source)
  shutil.rmtree(source)
  assert int(begin(source).step) == 8


def test_what_cannot_be_begun_with_is_refused(begin, other, tmp_path):
  for named, fields, told in [
    (tmp_path / 'no', {}, 'holds no checkpoint'),
    (other / 'checkpoints' / '9', {}, 'holds no checkpoint'),
    (other, {'model__d_ff': 24}, 'is of another model: .*wanted'),
    (other, {'data__task_symbols': 9}, 'with another vocabulary .* copy'),
  ]:
    with pytest.raises(ConfigError, match=told) as refused:
      begin(named, **fields)
    assert '\n' not in str(refused.value)
    assert not (tmp_path / 'run' / 'config.json').exists()
    shutil.rmtree(tmp_path / 'run', ignore_errors=True)


def test_a_checkpoint_that_was_lost_or_changed_is_refused(
  begin, other, tmp_path
):
  source = tmp_path / 'source'
  shutil.copytree(other, source)
  begin(source)
  step = source / 'checkpoints' / '16'
  shutil.rmtree(step)
  with pytest.raises(ConfigError, match='is gone or damaged: put it back'):
    begin(source)
  shutil.copytree(source / 'checkpoints' / '8', step)
  with pytest.raises(ConfigError, match='is not the one that the run began'):
    begin(source)
