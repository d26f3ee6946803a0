"""Training: target tokens a second, ours and those of the same model in torch.

One turn is `steps` updates, each on another batch of random tokens without
padding; ours makes them in one call, as the training loop does. All figures
are of whole updates: forward, backward, Adam, and dropout where it is on.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import peers
from experiments.bench.measure import (
  Contestant,
  Row,
  fact,
  rate_row,
  say,
  take_turns,
)
from transformer_jax.config import Config
from transformer_jax.data.cache import Batch
from transformer_jax.data.tokens import EOS, SPECIAL
from transformer_jax.nn import implementations, randomness
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training.products import flops
from transformer_jax.training.state import (
  State,
  initial_state,
  numbers,
  train_step,
  train_steps,
)


class Sizes(NamedTuple):
  """Of what is trained on in a turn."""

  rows: int
  length: int  # of source and target
  steps: int

  @property
  def tokens(self) -> int:
    """Target tokens of a turn."""
    return self.rows * self.length * self.steps


def random_batches(config: Config, sizes: Sizes) -> Batch:
  """`steps` full batches of random tokens, int32 with a leading axis."""
  draw = np.random.default_rng(config.data.seed)
  shape = (2, sizes.steps, sizes.rows, sizes.length)
  tokens = draw.integers(
    len(SPECIAL), config.data.vocabulary_size, shape, dtype=np.int32
  )
  tokens[..., -1] = EOS
  return Batch(*tokens)


def new_model(config: Config) -> Transformer:
  size = config.data.vocabulary_size
  platform = jax.local_devices()[0].platform
  attend = implementations.choose(config.model, platform=platform)
  return Transformer(config.model, size, size, attend)


def new_state(config: Config) -> State:
  key = randomness.seed_key(config.train.seed)
  return jax.jit(initial_state(config, new_model(config)))(key)


def work(config: Config, sizes: Sizes) -> float:
  """FLOP of the matrix products that one step needs, each once.

  Blocks and rematerialisation, which make some of them again, count as the
  formula does.
  """
  size = config.data.vocabulary_size
  once = dataclasses.replace(config.model, remat='none')
  model = Transformer(once, size, size)
  key = randomness.seed_key(config.train.seed)
  batch = jax.tree.map(lambda x: x[0], random_batches(config, sizes))
  state = jax.eval_shape(initial_state(config, model), key)
  return flops(train_step(config, model), state, batch, key, numbers(config))


def ours(config: Config, sizes: Sizes, name: str) -> Contestant:
  """The training step as the loop calls it; gives the last loss."""
  run: Any = jax.jit(train_steps(config, new_model(config)), donate_argnums=0)
  state = new_state(config)
  key, traced = randomness.seed_key(config.train.seed), numbers(config)
  batches = random_batches(config, sizes)

  def work() -> float:
    nonlocal state
    state, metrics = run(state, batches, jnp.int32(sizes.steps), key, traced)
    jax.block_until_ready(state)
    losses = metrics.losses
    return float(losses.smoothed[-1] / losses.tokens[-1])

  return Contestant(name, work)


def contestants(config: Config, sizes: Sizes) -> list[Contestant]:
  """Ours first, then the peers that can run here."""
  found = [ours(config, sizes, f'ours, {config.model.compute_dtype}')]
  reason = why_no_peers()
  if reason:
    say(reason)
    return found
  sources, targets = random_batches(config, sizes)
  return found + [
    peers.training(
      config,
      peer,
      vocabulary=config.data.vocabulary_size,
      sources_NBS=sources,
      targets_NBT=targets,
    )
    for peer in peers.PEERS
  ]


def why_no_peers() -> str:
  """The reason for having nothing to compare with, if there is one."""
  if not peers.installed():
    return (
      'torch is not installed: its rows are left out '
      "(pip install 'transformer_jax[bench]')"
    )
  if jax.default_backend() != 'cpu':
    return 'torch is measured on a CPU only: its rows are left out'
  return ''


def suite(config: Config, sizes: Sizes, rounds: int) -> list[Row]:
  """Rows of the training suite.

  Raises:
    FloatingPointError: a contestant's loss is not a number.
  """
  found = contestants(config, sizes)
  turns = take_turns(found, rounds=rounds)
  first = turns[found[0].name]
  rows = []
  for name, taken in turns.items():
    if not math.isfinite(taken.last):
      raise FloatingPointError(f'the loss of {name} is {taken.last}')
    rows.append(
      rate_row(
        'train',
        name,
        taken,
        amount=sizes.tokens,
        unit='target tokens/s',
        ours=None if taken is first else first,
        note=f'{taken.median / sizes.steps:.3f} s a step, '
        f'loss {taken.last:.2f} at the end',
      )
    )
  note = 'a step, of matrix products'
  giga = work(config, sizes) / 1e9
  rows.append(fact('train', 'work', giga, 'GFLOP', note))
  if why_no_peers():
    rows.append(fact('train', 'peers', 0, 'rows', why_no_peers()))
  return rows
