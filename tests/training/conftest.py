"""One tiny run whose programs are compiled once for all tests of this folder.

A program depends on the model and on the optimizer, not on the numbers that it
takes traced; so tests that differ in those only share it.
"""

import dataclasses
import functools
import pathlib
import resource

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import train as command
from experiments.presets import PRESETS
from transformer_jax import flags
from transformer_jax.config import Config
from transformer_jax.fields import override
from transformer_jax.training import loop, setup, state
from transformer_jax.training.progress import Progress

PROGRAMS = {
  'initial_state': setup,
  'train_steps': setup,
  'loss_function': loop,
}


@functools.cache
def program(name, model_config, optim, *rest):
  return getattr(state, name)(Config(model=model_config, optim=optim), *rest)


def remembered(name):
  def get(config, *rest):
    optim = dataclasses.replace(config.optim, learning_rate=1.0)
    return program(name, config.model, optim, *rest)

  return get


@pytest.fixture(scope='module', autouse=True)
def quick_programs():
  """Compiled once."""
  with pytest.MonkeyPatch.context() as patch:
    for name, used_in in PROGRAMS.items():
      patch.setattr(used_in, name, remembered(name))
    compilation_cache.reset_cache()
    yield
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.reset_cache()


@pytest.fixture(scope='session')
def config(tmp_path_factory) -> Config:
  cache = tmp_path_factory.getbasetemp() / 'cache'
  values = {
    **PRESETS['test'].overrides,
    'data.cache_dir': str(cache),
    'train.steps': 24,
  }
  return override(Config(), values)


@pytest.fixture
def set_up(config, tmp_path):
  """(**fields) -> a setup.Run of the config with these fields."""

  def make(folder='run', **fields) -> setup.Run:
    values = {name.replace('__', '.'): value for name, value in fields.items()}
    changed = override(config, values)
    progress = Progress(str(tmp_path), changed.train.steps)
    return setup.set_up(changed, str(tmp_path / folder), progress)

  return make


@pytest.fixture
def train(config, tmp_path, capfd):
  """(**fields) -> exit code and stderr of training in one folder."""

  def run(**fields):
    values = {name.replace('__', '.'): value for name, value in fields.items()}
    code = loop.train(override(config, values), workdir=str(tmp_path / 'run'))
    return code, capfd.readouterr().err

  return run


@pytest.fixture
def before_step(monkeypatch):
  """(step, action): `action()` once, before the call that makes `step` + 1."""
  stacked = loop.stacked

  def plan(step, action):
    left = [action]

    def make(plan, config, first, count):
      if first >= step and left:
        left.pop()()
      return stacked(plan, config, first, count)

    monkeypatch.setattr(loop, 'stacked', make)

  return plan


@pytest.fixture
def file_limit():
  """(bytes): no file of this process may grow beyond; None: as before."""
  before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limit(size):
    resource.setrlimit(
      resource.RLIMIT_FSIZE, (before if size is None else size, hard)
    )

  yield limit
  limit(None)


@pytest.fixture
def call(config, capfd):
  """(workdir, *flags) -> exit code and stderr of the program."""

  def run(workdir, *words):
    with pytest.raises(SystemExit) as left:
      flags.run(
        command.main,
        extra=command.EXTRA,
        arguments=[
          '--preset=test',
          '--train.steps=24',
          f'--data.cache_dir={config.data.cache_dir}',
          f'--workdir={workdir}',
          *words,
        ],
      )
    return left.value.code, capfd.readouterr().err

  return run


def arrays(folder: pathlib.Path | str, step: int) -> dict[str, bytes]:
  """The bytes of every array of a checkpoint."""
  from orbax.checkpoint import v1

  path = f'{folder}/checkpoints/{step}/arrays'
  stored = v1.metadata(path).metadata
  places = {name: np.empty(x.shape, x.dtype) for name, x in stored.items()}
  return {name: x.tobytes() for name, x in v1.load(path, places).items()}
