"""A run of `experiments.train` as a process: started, watched, interrupted.

Moments are counted in steps of the run and not in seconds, so that they are
spread alike on a machine of any speed and load.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent.parent
SAVE_EVERY = 4
PATIENCE = 600  # seconds until a process that does nothing fails the test


class Place(NamedTuple):
  """Where a run is, how long it is, and what all runs share."""

  folder: pathlib.Path
  steps: int
  cache: pathlib.Path

  def words(self) -> list[str]:
    return [
      *('--preset=test', '--train.log_every=1', '--train.evaluate_every=40'),
      *(f'--train.save_every={SAVE_EVERY}', '--train.keep_latest=4'),
      *(f'--train.steps={self.steps}', f'--workdir={self.folder}'),
      f'--data.cache_dir={self.cache}',
    ]

  def start(self, *words: str) -> subprocess.Popen:
    """The same command each time."""
    command = [sys.executable, '-m', 'experiments.train', *self.words()]
    environment = os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
    with open(self.folder.with_suffix('.log'), 'a') as log:
      return subprocess.Popen(
        [*command, *words], cwd=ROOT, env=environment, stderr=log
      )

  def finish(self, *words: str) -> None:
    """Starts the run and lets it end."""
    code = self.start(*words).wait(timeout=PATIENCE)
    assert code == 0, self.log()

  def log(self) -> str:
    return self.folder.with_suffix('.log').read_text()

  def names(self) -> list[str]:
    try:
      return os.listdir(self.folder / 'checkpoints')
    except FileNotFoundError:
      return []

  def latest(self) -> int:
    return max((int(n) for n in self.names() if n.isdecimal()), default=0)

  def saving(self) -> bool:
    """In a save; the trial before the first step does not count."""
    stems = [n.removesuffix('.saving') for n in self.names() if '.saving' in n]
    return any(stem.isdecimal() for stem in stems)

  def reached(self) -> int:
    """The newest step that the run has written down."""
    try:
      lines = (self.folder / 'metrics.jsonl').read_bytes().splitlines()
      return json.loads(lines[-1])['step']
    except (OSError, ValueError, IndexError):
      return 0


def arrays(place: Place, step: int) -> dict[str, bytes]:
  """The bytes of every array of a checkpoint."""
  from orbax.checkpoint import v1

  path = f'{place.folder}/checkpoints/{step}/arrays'
  stored = v1.metadata(path).metadata
  places = {name: np.empty(x.shape, x.dtype) for name, x in stored.items()}
  return {name: x.tobytes() for name, x in v1.load(path, places).items()}


def same_run(place: Place, other: Place) -> bool:
  """The same bytes of metrics, parameters and moments."""
  metrics = [p.folder.joinpath('metrics.jsonl') for p in (place, other)]
  return metrics[0].read_bytes() == metrics[1].read_bytes() and (
    arrays(place, place.steps) == arrays(other, place.steps)
  )


def until(
  process: subprocess.Popen,
  happened: Callable[[], bool],
  patience: float = PATIENCE,
) -> None:
  """Waits for `happened()`, while the process is alive."""
  limit = time.monotonic() + patience
  while not happened() and process.poll() is None:
    assert time.monotonic() < limit
    time.sleep(0.001)


# What asks to stop, by kind; every other kind is a kill.
STOPS = {
  'term': signal.SIGTERM,
  'usr1': signal.SIGUSR1,
  'term in a save': signal.SIGTERM,
  'usr1 in a save': signal.SIGUSR1,
}


class Interruption(NamedTuple):
  """What an interruption met."""

  code: int  # exit code; 0: the run was over before the signal
  in_save: bool
  step: int  # the newest checkpoint then


def interrupt(
  place: Place, rng: random.Random, kind: str, step: int
) -> Interruption:
  """Start, wait for a moment of that kind, send a signal.

  Args:
    place: the run.
    rng: for the part of a moment within a step.
    kind: 'start' kills in the set-up; 'random' at the step, 'save' in the
      first save at or after it; 'term' and 'usr1' ask to stop at the step,
      those 'in a save' in that save.
    step: of the run; one that is past already is the first new one.
  """
  process = place.start()
  try:
    if kind == 'start':
      time.sleep(rng.uniform(0.0, 4.0))
    else:
      newest = place.latest()
      until(process, lambda: place.reached() >= max(step, newest + 1))
    if kind.endswith('save'):
      until(process, place.saving)
    if kind == 'save':
      time.sleep(rng.uniform(0.0, 0.01))
    elif kind == 'random':
      time.sleep(rng.uniform(0.0, 0.1))
    process.send_signal(STOPS.get(kind, signal.SIGKILL))
    code = process.wait(timeout=PATIENCE)
  finally:
    process.kill()
    process.wait()
  # In the set-up, what is there was left by the kill before. One that is asked
  # to stop ends its save first.
  in_save = kind != 'start' and code < 0 and place.saving()
  in_save |= kind in STOPS and kind.endswith('save') and code != 0
  return Interruption(code, in_save, place.latest())


def moments(
  rng: random.Random, kinds: list[str], steps: int
) -> list[tuple[str, int]]:
  """A kind and a step of each interruption, uniform over the run, in order."""
  at = sorted(rng.randrange(steps - 2 * SAVE_EVERY) for _ in kinds)
  return list(zip(rng.sample(kinds, len(kinds)), at, strict=True))
