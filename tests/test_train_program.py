"""`python -m experiments.train` killed, preempted and started again.

However a run was interrupted, what it leaves is that of a run which was not:
the same bytes of metrics, parameters and moments.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent


class Place(NamedTuple):
  """Where a run is, how long it is, and what all runs share."""

  folder: pathlib.Path
  steps: int
  cache: pathlib.Path

  def start(self, *words: str) -> subprocess.Popen:
    """The same command each time."""
    command = [
      *(sys.executable, '-m', 'experiments.train', '--preset=test'),
      *('--train.save_every=4', '--train.evaluate_every=40'),
      *(f'--train.steps={self.steps}', '--train.keep_latest=4'),
      *(f'--workdir={self.folder}', f'--data.cache_dir={self.cache}', *words),
    ]
    environment = os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
    with open(self.folder.with_suffix('.log'), 'a') as log:
      return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)

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
    return any(name.endswith('.saving') for name in self.names())


def arrays(place: Place, step: int) -> dict[str, bytes]:
  """The bytes of every array of a checkpoint."""
  from orbax.checkpoint import v1

  path = f'{place.folder}/checkpoints/{step}/arrays'
  stored = v1.metadata(path).metadata
  places = {name: np.empty(x.shape, x.dtype) for name, x in stored.items()}
  return {name: x.tobytes() for name, x in v1.load(path, places).items()}


def assert_same_run(place: Place, other: Place) -> None:
  names = [path / 'metrics.jsonl' for path in (place.folder, other.folder)]
  assert names[0].read_bytes() == names[1].read_bytes()
  assert arrays(place, place.steps) == arrays(other, place.steps)


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.getbasetemp() / 'cache'


def until(process: subprocess.Popen, happened) -> None:
  """Waits for `happened()`, while the process is alive."""
  limit = time.monotonic() + 300
  while not happened() and process.poll() is None:
    assert time.monotonic() < limit
    time.sleep(0.0005)


def interrupt(place: Place, rng: random.Random, kind: str) -> tuple[int, bool]:
  """Start, wait for a moment of that kind, send a signal: (code, in a save).

  Kinds: 'save' kills when a save has begun, 'random' at any moment after the
  first new checkpoint, 'start' in the set-up, 'term' asks to stop.
  """
  begun = place.latest()
  process = place.start()
  try:
    if kind == 'start':
      time.sleep(rng.uniform(0.0, 4.0))
    else:
      saves = 4 * rng.randint(1, 3)
      until(process, lambda: place.latest() >= begun + saves)
    if kind == 'save':
      until(process, place.saving)
      time.sleep(rng.uniform(0.0, 0.01))
    if kind == 'random':
      time.sleep(rng.uniform(0.0, 0.3))
    process.send_signal(signal.SIGTERM if kind == 'term' else signal.SIGKILL)
    code = process.wait(timeout=300)
  finally:
    process.kill()
  # In the set-up, what is there was left by the kill before.
  return code, kind != 'start' and place.saving()


def interrupted_run(place: Place, kinds: list[str], *, seed: int) -> None:
  """Interrupts a run again and again, lets it end; compares with another."""
  unbroken = place._replace(folder=place.folder.with_name('unbroken'))
  assert unbroken.start().wait(timeout=300) == 0, unbroken.log()
  rng = random.Random(seed)
  inside = 0
  for kind in kinds:
    code, in_save = interrupt(place, rng, kind)
    assert code == (75 if kind == 'term' else -signal.SIGKILL), place.log()
    inside += in_save
    print(f'{kind}: at checkpoint {place.latest()}, in a save: {in_save}')
  kills = len([kind for kind in kinds if kind != 'term'])
  print(f'{kills} kills, {inside} of them inside a save')
  assert 5 * inside >= kills
  assert place.start().wait(timeout=300) == 0, place.log()
  assert 'resumed at step' in place.log()
  assert_same_run(place, unbroken)
  assert not place.saving()


def test_kills_and_a_stop_leave_no_trace(cache, tmp_path):
  place = Place(tmp_path / 'run', 60, cache)
  interrupted_run(place, ['save', 'term', 'random'], seed=0)


@pytest.mark.slow
def test_twelve_kills_leave_no_trace(cache, tmp_path):
  place = Place(tmp_path / 'run', 400, cache)
  kinds = ['random', 'save', 'start', 'random'] * 3
  interrupted_run(place, [*kinds, 'term'], seed=1)
