"""The loop of a population: step, evaluate, save, resume, results by member.

As the loop of one run, but a member whose numbers are not finite stops alone.
"""

import hashlib
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.data.batches import Shape
from transformer_jax.data.corpus import Corpus
from transformer_jax.training import place as place_lib
from transformer_jax.training import population as population_lib
from transformer_jax.training import record
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.place import Place
from transformer_jax.training.population import (
  Member,
  Members,
  Population,
)
from transformer_jax.training.scores import Scores, averages
from transformer_jax.training.state import Metrics

Say = Callable[[str], None]


class Outcome(NamedTuple):
  """What became of a member.

  diverged_step: the first step whose loss, gradient or parameters are not
    finite; None: it finished.
  scores: on the test split at the last step; None where it diverged.
  parameters: how many.
  step_seconds: of this population's steps, for one member; compiling them
    and looking at them left out; nan where there were too few to tell.
  memory: bytes of the program, for one place in it.
  """

  diverged_step: int | None
  scores: Scores | None
  parameters: int
  step_seconds: float
  memory: int


class Watcher(NamedTuple):
  """Who is told what while a population trains.

  stop: whether to save and leave.
  evaluated: (step, member's number, its weights), also before the first step.
  cut_back: (member's number, steps): removes what was written at any other
    step; returns the name of a file in which one of these steps is missing,
    or ''.
  progress: (steps that members made since the last call).
  say: a line that stays.
  """

  stop: Callable[[], int]
  evaluated: Callable[[int, int, Any], None]
  cut_back: Callable[[int, Sequence[int]], str]
  progress: Callable[[int], None]
  say: Say


def train(
  members: Sequence[Member],
  corpus: Corpus,
  *,
  folder: pathlib.Path,
  place: Place,
  room: int,
  watcher: Watcher,
  workers: int = 1,
) -> list[Outcome] | None:
  """Train all members to their last step, or go on.

  Args:
    members: share a program, and go on from `folder` if they were here.
    corpus: of all of them.
    folder: of the population's checkpoints.
    place: where they are.
    room: replicas that the program is compiled for.
    watcher: see there.
    workers: processes that share the memory of the devices.

  Returns:
    An outcome for each member; None when stopped by a signal, saved.

  Raises:
    ConfigError: the members do not share a program, or one of them does not
      fit into memory.
    CheckpointError: a checkpoint could not be written.
  """
  parts = population_lib.split(
    members,
    corpus,
    place=place,
    room=room,
    free=place_lib.free_memory(place),
    workers=workers,
  )
  if len(parts) > 1:
    watcher.say(
      f'{len(members)} members do not fit into memory at once: '
      f'{len(parts)} populations'
    )
  outcomes = []
  for part in parts:
    run = _Run(part, folder / _name(part), watcher, first=len(outcomes))
    found = run.to_the_end()
    if found is None:
      return None
    outcomes += found
  return outcomes


def _name(part: Population) -> str:
  """Of the folder: another set of members never reads these checkpoints."""
  text = repr([part.room, part.configs])
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Pending(NamedTuple):
  """A call whose numbers are not read yet."""

  step: int
  count: int
  metrics: Metrics
  bad_R: Any


class _Run:
  """One population on its way."""

  def __init__(
    self,
    part: Population,
    folder: pathlib.Path,
    watcher: Watcher,
    *,
    first: int,
  ) -> None:
    """Reads nothing yet; first: the number of its first member among all."""
    self.part, self.first = part, first
    self.folder = folder
    self.watcher = watcher
    self.metrics = [
      record.MetricsFile(member.folder) for member in part.members
    ]
    self.checkpoints = Checkpoints(folder / 'checkpoints')
    self.diverged: list[int | None] = [None] * len(part.members)
    self.seconds = 0.0
    self.timed = 0

  def start_or_resume(self) -> Members:
    members = self.resumed()
    if members is not None:
      self.watcher.say(f'resumed at step {self.step_of(members)}')
      return members
    if self.checkpoints.begun():
      # Results are made of what is trained here, so beginning again is safe.
      shutil.rmtree(self.folder)
    self.diverged = [None] * len(self.part.members)
    for n in range(len(self.part.members)):
      self.cut_back(n, -1)
    return self.part.fresh()

  def resumed(self) -> Members | None:
    """From the newest checkpoint; None where there is nothing to go on from."""
    if not self.checkpoints.begun():
      return None
    if not self.checkpoints.good(1):
      self.watcher.say(f'no good checkpoint in {self.folder}: from step 0')
      return None
    members = self.checkpoints.restore(self.part.shapes())
    step, marked_R = self.step_of(members), np.asarray(members.diverged_R)
    for n, member in enumerate(self.part.members):
      self.diverged[n] = int(marked_R[n]) or None
      if lost := self.cut_back(n, step):
        print(
          f'warning: {member.folder / lost} is damaged: all that is trained '
          'with it begins again',
          file=sys.stderr,
        )
        return None
    return members

  def cut_back(self, n: int, step: int) -> str:
    """Forget what a member wrote after a step; the file that lacks some, or ''.

    Args:
      n: its number in this population.
      step: the last one that counts; -1: none does.
    """
    train, ends = self.part.train, self.diverged[n] or math.inf
    self.metrics[n].cut_back(step)
    every = {'train': train.log_every, 'validation': train.evaluate_every}
    if self.diverged[n]:
      # The last of its losses on validation may have been no number.
      del every['validation']
    due = {
      (at, split)
      for split, steps in every.items()
      for at in range(steps, step + 1, steps)
      if at < ends
    }
    if due - {(x['step'], x['split']) for x in self.metrics[n].lines()}:
      return record.MetricsFile.NAME
    seen = range(0, step + 1, train.evaluate_every)
    return self.watcher.cut_back(
      self.first + n, [at for at in seen if at < ends]
    )

  def step_of(self, members: Members) -> int:
    """Of those that go on, which are all at one step."""
    real = len(self.part.members)
    return int(np.asarray(members.states.step)[:real].max(initial=0))

  def alive(self) -> list[int]:
    return [n for n, step in enumerate(self.diverged) if step is None]

  def to_the_end(self) -> list[Outcome] | None:
    """All outcomes; None when stopped and saved."""
    members = self.start_or_resume()
    step, train = self.step_of(members), self.part.train
    if step == 0:
      self.tell(0, members)
    pending: _Pending | None = None
    shapes: set[Shape] = set()
    while step < train.steps and self.alive():
      count = self.part.steps_in_call(step)
      begun = time.monotonic()
      shape = self.part.plan.shape(step)
      if shape not in shapes:
        # Compiled while nothing runs, whose time would be lost.
        self.read(pending)
        pending, shapes = None, shapes | {shape}
        begun += self.seconds_to_compile(shape)
      members, metrics, bad_R = self.part.call(members, step, count)
      # While these steps run, the numbers of those before are read.
      self.read(pending)
      pending = _Pending(step, count, metrics, bad_R)
      step += count
      due = step % train.evaluate_every == 0
      last, stopping = step >= train.steps, bool(self.watcher.stop())
      saving = step % train.save_every == 0 and not last
      if due or last or stopping or saving or not self.timed:
        self.read(pending)
        pending = None
      # Of the steps alone: they have ended where they are read, and what looks
      # at them comes after.
      self.time(begun, count)
      if due or last:
        self.evaluate(step, members)
      if (saving or stopping) and not last:
        self.checkpoints.save(step, members, metric=None)
      if stopping and not last:
        self.checkpoints.wait()
        return None
    self.read(pending)
    self.checkpoints.wait()
    return self.outcomes(members)

  def seconds_to_compile(self, shape: Shape) -> float:
    """Compile for batches of a shape: no part of a step."""
    begun = time.monotonic()
    self.part.compiled(shape)
    return time.monotonic() - begun

  def time(self, begun: float, count: int) -> None:
    """The first call warms up and is not counted."""
    if self.timed:
      self.seconds += time.monotonic() - begun
    self.timed += count if self.timed else 1

  def read(self, pending: _Pending | None) -> None:
    """The numbers of a call: who diverged, and lines of metrics."""
    if pending is None:
      return
    found = jax.tree.map(np.asarray, pending.metrics)
    bad_R = np.asarray(pending.bad_R)
    alive = self.alive()
    for n in alive:
      if bad_R[n]:
        self.diverged[n] = int(bad_R[n])
        config = self.part.configs[n]
        self.watcher.say(
          f'seed {config.train.seed} diverged at step {bad_R[n]}: it stops, '
          'the others go on'
        )
      self.metrics[n].append(self.rows(found, pending, n))
    self.watcher.progress(pending.count * len(alive))

  def rows(
    self, found: Metrics, pending: _Pending, n: int
  ) -> list[tuple[int, str, dict[str, float]]]:
    """Lines of the steps that are due, up to a divergence."""
    rows = []
    for k in range(pending.count):
      step = pending.step + k + 1
      if step >= (self.diverged[n] or math.inf):
        break
      if step % self.part.train.log_every == 0:
        values = averages(*(float(total[n, k]) for total in found.losses))
        values |= dict(
          gradient_norm=float(found.gradient_norm[n, k]),
          learning_rate=float(found.learning_rate[n, k]),
        )
        rows.append((step, 'train', values))
    return rows

  def evaluate(self, step: int, members: Members) -> None:
    """Validation of all that go on."""
    scores = self.part.scores(members, self.part.config.data.validation_split)
    for n in self.alive():
      if np.isfinite(scores[n].loss):
        values = {k: float(v) for k, v in scores[n]._asdict().items()}
        self.metrics[n].append([(step, 'validation', values)])
    self.tell(step, members)

  def tell(self, step: int, members: Members) -> None:
    for n in self.alive():
      weights = self.part.weights(members, n)
      self.watcher.evaluated(step, self.first + n, weights)

  def outcomes(self, members: Members) -> list[Outcome]:
    """Of every member, after the last step."""
    part = self.part
    scores = part.scores(members, part.config.data.test_split)
    params = part.shapes().states.params
    parameters = sum(x.size for x in jax.tree.leaves(params)) // part.room
    steps = max(self.timed - 1, 0) * len(part.members)
    each = self.seconds / steps if steps else float('nan')
    found = []
    for n, diverged in enumerate(self.diverged):
      if diverged is None and not np.isfinite(scores[n].loss):
        diverged = part.train.steps
      found.append(
        Outcome(
          diverged_step=diverged,
          scores=scores[n] if diverged is None else None,
          parameters=parameters,
          step_seconds=each,
          memory=part.bytes() * len(part.place.devices) // part.room,
        )
      )
    return found
