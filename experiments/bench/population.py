"""Populations: time of a step for one member, against runs alone.

On a CPU members go through the program in turn, and each must be bitwise the
lone run; elsewhere they go at once, and the largest difference is shown.
"""

import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.measure import Contestant, Row, Turns, row, take_turns
from experiments.small import SMALL
from transformer_jax.config import Config
from transformer_jax.data.corpus import Corpus, open_corpus
from transformer_jax.fields import override
from transformer_jax.training import place as place_lib
from transformer_jax.training import state
from transformer_jax.training.population import Member, Population

SIZES = (1, 4, 8, 16)
LONE = 'lone run'


def config_of(overrides: dict[str, Any]) -> Config:
  """The small task of the studies, with the user's fields."""
  return override(Config(), {**SMALL, **overrides})


def members(config: Config, size: int) -> list[Member]:
  return [
    Member(override(config, {'train.seed': n}), pathlib.Path())
    for n in range(size)
  ]


def together(own: Population) -> Contestant:
  """One call of all members; gives the state after all its turns."""
  calls, states = 0, own.fresh()
  count = own.steps_in_call(0)

  def work() -> Any:
    nonlocal calls, states
    states, *_ = own.call(states, calls * count, count)
    jax.block_until_ready(states)
    calls += 1
    return states

  return Contestant(str(own.room), work)


def alone(config: Config, own: Population, name: str) -> Contestant:
  """The call that the training loop makes, of the same steps."""
  step: Any = jax.jit(
    state.train_steps(config, own.programs.model), donate_argnums=0
  )
  key, traced = state.run_key(config), state.numbers(config)
  start = jax.jit(state.initial_state(config, own.programs.model))(key)
  calls, count = 0, own.steps_in_call(0)

  def work() -> Any:
    nonlocal calls, start
    batches = jax.tree.map(lambda x: x[0], own.batches(calls * count, count))
    start, _ = step(start, batches, jnp.int32(count), key, traced)
    jax.block_until_ready(start)
    calls += 1
    return start

  return Contestant(name, work)


def agreement(own: Population, found: Any, lone: Any) -> str:
  """Of the first member with the lone run after the same steps."""
  pairs = [
    (np.asarray(a), np.asarray(b))
    for a, b in zip(
      jax.tree.leaves(own.state(found, 0)), jax.tree.leaves(lone), strict=True
    )
  ]
  if all(a.tobytes() == b.tobytes() for a, b in pairs):
    return 'bitwise equal'
  most = max(float(np.max(np.abs(a - b), initial=0)) for a, b in pairs)
  return f'differs by {most:.1e} at most'


def suite(overrides: dict[str, Any], rounds: int) -> list[Row]:
  """Rows of the population suite."""
  config = config_of(overrides)
  corpus: Corpus = open_corpus(config.data, workdir=None, progress=print)
  place = place_lib.on(jax.local_devices()[:1])
  sizes = {
    str(n): Population(members(config, n), corpus, place, n) for n in SIZES
  }
  contestants = [alone(config, sizes['1'], LONE)]
  contestants += [together(own) for own in sizes.values()]
  turns = take_turns(contestants, rounds=rounds)
  count = sizes['1'].steps_in_call(0)
  lone = turns[LONE]
  rows = [_row(LONE, lone, 1, count, '')]
  for name, own in sizes.items():
    taken = turns[name]
    ratio = statistics.median(
      b * own.room / a for a, b in zip(taken.seconds, lone.seconds, strict=True)
    )
    note = f'{ratio:.2f} x as quick as lone runs, '
    note += agreement(own, taken.last, lone.last)
    rows.append(_row(f'{name} members', taken, own.room, count, note))
  return rows


def _row(name: str, turns: Turns, size: int, count: int, note: str) -> Row:
  each = [1e3 * seconds / size / count for seconds in turns.seconds]
  how = 'in turn' if jax.default_backend() in place_lib.MAPS else 'at once'
  return row('population', name, each, 'ms a step and member', note=note or how)
