"""Peak memory of a training step: what its program says, and what it took.

Each step runs once in a process of its own, with everything compiled before.
Measured is the most memory that was resident from then on, less what was
resident then; the estimate is `fit.peak` of the compiled step, by which a run
that does not fit is refused.
"""

import ctypes
import gc
import multiprocessing
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import train
from experiments.bench.attention import MEBI, most_resident_bytes
from experiments.bench.measure import Row, fact, say
from experiments.bench.train import Sizes
from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import override
from transformer_jax.nn import randomness
from transformer_jax.training import fit
from transformer_jax.training.state import initial_state, numbers, train_steps

# Linux: writing 5 there sets the most that was resident to what is resident.
RESET = pathlib.Path('/proc/self/clear_refs')
WIDE = {'model.d_model': 512, 'model.d_ff': 2048, 'model.layers': 2}
# Name, rows of 32 tokens, and what differs: arrays of hundreds of MiB.
CASES: tuple[tuple[str, int, dict[str, int]], ...] = (
  ('256 x 32 tokens', 256, {}),
  ('64 x 32 tokens, 2 layers of 512', 64, WIDE),
)


def once(config: Config, sizes: Sizes) -> tuple[int, int]:
  """(estimated, measured) bytes of one step, in this process."""
  key, traced = randomness.seed_key(config.train.seed), numbers(config)
  start: Any = jax.jit(initial_state(config, train.new_model(config)))
  start = start.lower(key).compile()
  batches = train.random_batches(config, sizes)
  steps: Any = jax.jit(
    train_steps(config, train.new_model(config)), donate_argnums=0
  )
  given = batches, jnp.int32(1), key, traced
  abstract = jax.eval_shape(initial_state(config, train.new_model(config)), key)
  run = steps.lower(abstract, *given).compile()
  # What the compiler has freed goes back to the system.
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  RESET.write_text('5')
  before = most_resident_bytes()
  state, _ = run(start(key), *given)
  jax.block_until_ready(state)
  return fit.peak(run), most_resident_bytes() - before


def suite(config: Config) -> list[Row]:
  """Rows of every case.

  Raises:
    ConfigError: the system does not tell the most resident memory.
  """
  if not RESET.exists() or jax.default_backend() != 'cpu':
    raise ConfigError('--suite=memory needs Linux and a CPU')
  rows = []
  for name, count, changes in CASES:
    say(f'once, in a fresh process: {name}')
    case = override(config, changes)
    # spawn: the new process inherits no memory of this one.
    with multiprocessing.get_context('spawn').Pool(1) as pool:
      estimated, measured = pool.apply(once, (case, Sizes(count, 32, 1)))
    note = f'estimate / measured = {estimated / measured:.3f}'
    rows += [
      fact('memory', f'{name}: estimate', estimated / MEBI, 'MiB'),
      fact('memory', f'{name}: measured', measured / MEBI, 'MiB', note),
    ]
  return rows
