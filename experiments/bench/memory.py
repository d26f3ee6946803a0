"""Peak memory of a training step: what its program says, and what it took.

Each step runs once in a process of its own, with everything compiled before.
Measured is the most memory that was resident from then on, less what was
resident then; the estimate is `fit.peak` of the compiled step, by which a run
that does not fit is refused.

Of `long`, the step that blocks are for, one array of scores would be 512 MiB,
and what the additive score holds of each pair 64 times that.
"""

import ctypes
import gc
import multiprocessing
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench import train
from experiments.bench.attention import MEBI, most_resident_bytes
from experiments.bench.measure import Row, fact, say
from experiments.bench.train import Sizes
from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import override
from transformer_jax.nn import implementations, randomness
from transformer_jax.training import fit
from transformer_jax.training.state import initial_state, numbers, train_steps

# Linux: writing 5 there sets the most that was resident to what is resident.
RESET = pathlib.Path('/proc/self/clear_refs')
WIDE = {'model.d_model': 512, 'model.d_ff': 2048, 'model.layers': 2}


class Case(NamedTuple):
  """One step: its name, its batch, and what differs from the benchmark."""

  name: str
  sizes: Sizes
  changes: dict[str, Any]


LONG = Case(
  '1 x 4,096 tokens, additive, 1 layer of 512',
  Sizes(1, 4096, 1),
  {
    **WIDE,
    'model.layers': 1,
    'model.heads': 8,
    'model.d_k': 64,
    'model.d_v': 64,
    'model.score': 'additive',
    'data.vocabulary_size': 256,
    'data.max_length': 4096,
  },
)
# Of each suite; arrays of hundreds of MiB.
CASES = {
  'memory': (
    Case('256 x 32 tokens', Sizes(256, 32, 1), {}),
    Case('64 x 32 tokens, 2 layers of 512', Sizes(64, 32, 1), WIDE),
  ),
  'long': (LONG,),
}


class Program(NamedTuple):
  """A training step as it is called, compiled."""

  start: Any  # key -> state
  run: Any  # (state, *given) -> state, metrics
  given: tuple[Any, ...]
  parameters: int  # bytes of them; Adam's moments are twice as much


def compiled(config: Config, sizes: Sizes) -> Program:
  """The step of a model whose attention is as `auto` has it."""
  key, traced = randomness.seed_key(config.train.seed), numbers(config)
  attend = implementations.choose(config.model, platform='cpu')
  model = train.new_model(config).clone(attention_fn=attend)
  start: Any = jax.jit(initial_state(config, model))
  steps: Any = jax.jit(train_steps(config, model), donate_argnums=0)
  given = train.random_batches(config, sizes), jnp.int32(1), key, traced
  state = jax.eval_shape(initial_state(config, model), key)
  run = steps.lower(state, *given).compile()
  parameters = [
    x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params)
  ]
  return Program(start.lower(key).compile(), run, given, sum(parameters))


def once(config: Config, sizes: Sizes) -> tuple[int, int, int]:
  """Bytes of the parameters, and of one step, estimated and measured here."""
  start, run, given, parameters = compiled(config, sizes)
  key = given[2]
  own = f'{parameters / MEBI:,.1f} MiB of parameters in it'
  say(f'compiled: {fit.peak(run) / MEBI:,.1f} MiB by estimate, {own}')
  # What the compiler has freed goes back to the system.
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  RESET.write_text('5')
  before = most_resident_bytes()
  state, _ = run(start(key), *given)
  jax.block_until_ready(state)
  return parameters, fit.peak(run), most_resident_bytes() - before


def suite(config: Config, name: str) -> list[Row]:
  """Rows of every case of a suite.

  Args:
    config: of the benchmark.
    name: a key of CASES.

  Raises:
    ConfigError: the system does not tell the most resident memory.
  """
  if not RESET.exists() or jax.default_backend() != 'cpu':
    raise ConfigError(f'--suite={name} needs Linux and a CPU')
  rows = []
  for what, sizes, changes in CASES[name]:
    say(f'once, in a fresh process: {what}')
    case = override(config, changes)
    # spawn: the new process inherits no memory of this one.
    with multiprocessing.get_context('spawn').Pool(1) as pool:
      parameters, *peaks = pool.apply(once, (case, sizes))
    estimated, measured = (peak / MEBI for peak in peaks)
    own = f'{parameters / MEBI:,.1f} MiB of parameters in it'
    note = f'estimate / measured = {estimated / measured:.3f}'
    rows += [
      fact(name, f'{what}: estimate', estimated, 'MiB', own),
      fact(name, f'{what}: measured', measured, 'MiB', note),
    ]
  return rows
