"""Runs that share one program, trained as replicas of one compiled step.

Members differ in their seed and in the numbers that the step takes traced
(learning rate, dropout, ...). Each result is a function of its own config
alone: who else is in the population, how it is cut into populations and where
it was stopped change no bit of it on a CPU, where `lax.map` makes every member
the lone run. Elsewhere `vmap` is quicker, and equal within rounding. Several
devices share out the members and tell each other nothing; the program for
several is compiled otherwise than for one, and equal within rounding.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.config import Config, ConfigError
from transformer_jax.data.batches import Shape, held_out_batches, make_plan
from transformer_jax.data.cache import Batch
from transformer_jax.data.corpus import Corpus
from transformer_jax.fields import to_json
from transformer_jax.nn import implementations
from transformer_jax.nn.transformer import Transformer, with_statistics
from transformer_jax.training import fit
from transformer_jax.training.calls import is_finite, stacked, steps_in_call
from transformer_jax.training.place import Place
from transformer_jax.training.scores import Scores, row_sums, summarise
from transformer_jax.training.setup import admit_lengths
from transformer_jax.training.state import (
  Metrics,
  Numbers,
  State,
  initial_state,
  numbers,
  program,
  run_key,
  train_steps,
)

# Of the memory that is free, what a population may take.
SHARE_OF_MEMORY = 0.8


class Member(NamedTuple):
  """A run: its config, and the folder that its metrics go to."""

  config: Config
  folder: pathlib.Path


class Members(NamedTuple):
  """The state of a population, every leaf with a leading R."""

  states: State
  diverged_R: Array  # int32, step; 0: not so far


def can_share(config: Config) -> str:
  """A text that is equal for runs that can be members of one population."""
  own = program(config)
  neutral = dataclasses.replace(own, decode=Config().decode)
  return to_json(neutral)


def population_steps(
  config: Config, model: Transformer, place: Place
) -> Callable[
  [Members, Batch, Array, Array, Numbers], tuple[Members, Metrics, Array]
]:
  """(members, batches, counts, keys, numbers) -> (members, metrics, bad_R).

  As `train_steps`, every argument with a leading R. A member whose call gives
  a number that is not finite keeps the state from before the call, is marked
  with the step (bad_R, 0 for the others), and is left out of the calls that
  follow, as is one whose count is 0.
  """
  steps = train_steps(config, model)

  def one(state, diverged, batches, count, key, numbers):
    frozen = diverged > 0
    count = jnp.where(frozen, 0, count)
    before = state.step
    new, metrics = steps(state, batches, count, key, numbers)
    # The metrics of steps that were not made are zeros.
    sound_N = jnp.isfinite(metrics.losses.smoothed)
    sound_N &= jnp.isfinite(metrics.gradient_norm)
    sound = is_finite((new.params, new.statistics))
    last = before + jnp.maximum(count, 1)
    first = before + 1 + jnp.argmin(sound_N).astype(jnp.int32)
    bad = jnp.where(sound_N.all(), jnp.where(sound, 0, last), first)
    bad = jnp.where(frozen, 0, bad)
    diverged = diverged + bad
    state = jax.tree.map(
      lambda new, old: jnp.where(diverged > 0, old, new), new, state
    )
    return state, diverged, metrics, bad

  over_members = place.mapped(one)

  def call(members, batches, count_R, key_R2, numbers_R):
    states, diverged_R, metrics, bad_R = over_members(
      members.states, members.diverged_R, batches, count_R, key_R2, numbers_R
    )
    return Members(states, diverged_R), metrics, bad_R

  return call


def stack(trees: Sequence[Any]) -> Any:
  """Equal trees of numbers, one on top of the other: host arrays."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def stacked_numbers(configs: Sequence[Config]) -> Numbers:
  """Numbers of the members, float32 with a leading R."""
  each = [jax.tree.map(np.float32, numbers(config)) for config in configs]
  return stack(each)


class Programs(NamedTuple):
  """What a population runs; `compiled` keeps the training calls by shape."""

  model: Transformer
  start: Any
  step: Any
  row_sums: Any
  compiled: dict[Any, Any]


@functools.lru_cache(maxsize=8)
def _programs(
  config: Config, sizes: tuple[int, int], place: Place, room: int
) -> Programs:
  """One set for all populations of a program; room keys what is compiled."""
  del room
  attend = implementations.choose(config.model, platform=place.platform)
  model = Transformer(config.model, *sizes, attend)
  # What is compared trains by one program; scores are read off by each its own.
  shared = implementations.choose(
    config.model, platform=place.platform, pairs=place.pairs
  )
  trained = Transformer(config.model, *sizes, shared)

  def scores(weights, numbers, source_BS, target_BT):
    return row_sums(model, weights, source_BS, target_BT, numbers.scales)

  return Programs(
    model,
    jax.jit(initial_state(config, model)),
    jax.jit(population_steps(config, trained, place), donate_argnums=0),
    jax.jit(place.mapped(scores)),
    {},
  )


class Population:
  """Members with their data and programs."""

  def __init__(
    self,
    members: Sequence[Member],
    corpus: Corpus,
    place: Place,
    room: int,
  ) -> None:
    """Checks that the members go together; compiles nothing yet.

    Args:
      members: share a program.
      corpus: of all of them.
      place: where they are.
      room: replicas of the program, at least as many as members, and made a
        multiple of the devices. Where members go in turn, an empty one costs
        memory and no time, and populations of several sizes share one program.

    Raises:
      ConfigError: the members do not share a program, or held-out pairs are
        longer than their positions.
    """
    self.members, self.corpus, self.place = members, corpus, place
    self.room = room = place.room(room)
    shared = {can_share(member.config) for member in members}
    if len(shared) != 1:
      raise ConfigError(
        f'a population of {len(shared)} programs: its members may differ in '
        'their seed and in the numbers that a step takes traced'
      )
    configs = [member.config for member in members]
    self.configs = configs + configs[:1] * (room - len(configs))
    self.config, self.train = program(configs[0]), configs[0].train
    admit_lengths(self.config, corpus)
    self.plan = make_plan(corpus.train, self.config.data)
    self.numbers = stacked_numbers(self.configs)
    self.key_R2 = stack([run_key(config) for config in self.configs])
    sizes = corpus.vocabularies
    # Data and loop decide shapes and calls, not the programs.
    own = Config(model=self.config.model, optim=self.config.optim)
    self.programs = _programs(
      own, (sizes.source.size, sizes.target.size), place, room
    )

  def call(self, members: Members, step: int, count: int) -> Any:
    """`count` steps of all members from `step`; see `population_steps`."""
    return self.compiled(self.plan.shape(step))(
      *(members, self.batches(step, count), self.counts(count)),
      *(self.key_R2, self.numbers),
    )

  def compiled(self, shape: Shape) -> Any:
    """The program of a call with batches of this shape."""
    key = (shape, self.config.data.batches_per_run)
    compiled = self.programs.compiled
    if key not in compiled:
      rows = (self.room, self.config.data.batches_per_run, shape.rows)
      batches = Batch(
        np.zeros((*rows, shape.source_length), np.int32),
        np.zeros((*rows, shape.target_length), np.int32),
      )
      compiled[key] = self.programs.step.lower(
        *(self.shapes(), batches, self.counts(0)),
        *(self.key_R2, self.numbers),
      ).compile()
    return compiled[key]

  def bytes(self) -> int:
    """Of each device: the largest training program and what it reads.

    0 where that is unknown.
    """
    largest = fit.largest_shape(self.config, self.plan.shapes)
    return fit.peak(self.compiled(largest))

  def fresh(self) -> Members:
    """All members before their first update."""
    return jax.device_put(self._fresh(), self.place.by_members)

  def _fresh(self) -> Members:
    states = jax.tree.map(
      lambda *leaves: jnp.stack(leaves),
      *[self.programs.start(key) for key in self.key_R2],
    )
    return Members(states, jnp.zeros((self.room,), jnp.int32))

  def shapes(self) -> Members:
    """Shape and place of each array of all members."""
    place = self.place.by_members
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      jax.eval_shape(self._fresh),
    )

  def batches(self, step: int, count: int) -> Batch:
    """[R, K, B, ...]: each member's own, those of one seed the same."""
    by_seed: dict[int, Batch] = {}
    for config in self.configs:
      seed = config.train.seed
      if seed not in by_seed:
        by_seed[seed] = stacked(self.plan, config, step, count)
    return Batch(*stack([by_seed[c.train.seed] for c in self.configs]))

  def counts(self, count: int) -> np.ndarray:
    """[R], int32: empty places make no step."""
    alive_R = np.arange(self.room) < len(self.members)
    return np.where(alive_R, count, 0).astype(np.int32)

  def steps_in_call(self, step: int) -> int:
    return steps_in_call(self.plan, self.configs[0], step)

  def scores(self, members: Members, split: str) -> list[Scores]:
    """Of every member on a held-out split, each pair once."""
    batches = held_out_batches(self.corpus.pairs(split), self.config.data)
    states = members.states
    weights = with_statistics(states.params, states.statistics)
    rows = []
    for _, batch in batches:
      everyone = [
        np.broadcast_to(side, (self.room, *side.shape)) for side in batch
      ]
      found = self.programs.row_sums(weights, self.numbers, *everyone)
      rows.append(jax.device_get(found))
    return [
      summarise([jax.tree.map(lambda x, n=n: x[n], row) for row in rows])
      for n in range(len(self.members))
    ]

  def weights(self, members: Members, n: int) -> dict:
    """What `loss_function` takes, of a member."""
    state = self.state(members, n)
    return with_statistics(state.params, state.statistics)

  def state(self, members: Members, n: int) -> State:
    """The state of a member, on one device."""
    own = jax.tree.map(lambda x: x[n], members.states)
    return jax.device_put(own, self.place.devices[0])


def split(
  members: Sequence[Member],
  corpus: Corpus,
  *,
  place: Place,
  room: int,
  free: int,
  workers: int = 1,
) -> list[Population]:
  """One population, or several that fit into a worker's share of memory.

  Args:
    members: of all of them.
    corpus: theirs.
    place: where they are.
    room: see `Population`.
    free: bytes of each device; 0 where that is unknown, and all members go
      together.
    workers: processes that share them.

  Raises:
    ConfigError: the members do not share a program, or one by itself needs
      more than is free.
  """
  whole = Population(members, corpus, place, max(room, len(members)))
  if not free or whole.bytes() <= SHARE_OF_MEMORY * free / workers:
    return [whole]
  if whole.room == len(place.devices):
    if whole.bytes() > free:
      raise _too_large(whole, free)
    return [whole]
  half = -(-whole.room // 2)
  return [
    population
    for start in range(0, len(members), half)
    for population in split(
      members[start : start + half],
      corpus,
      place=place,
      room=half,
      free=free,
      workers=workers,
    )
  ]


def _too_large(lone: Population, free: int) -> ConfigError:
  return ConfigError(
    f'one run needs {lone.bytes() / fit.GIB:.3g} GiB of a '
    f'{lone.place.devices[0].device_kind}, and {free / fit.GIB:.3g} are free: '
    'free some, or take a smaller --data.max_tokens'
  )
