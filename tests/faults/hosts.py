"""A run of two processes on the loopback interface, of which one is lost."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from launch import local
from tests.faults.place import PATIENCE, ROOT, Place, until

LEAVE_SECONDS = 30  # the others are gone by then


def log(place: Place, rank: int) -> pathlib.Path:
  return place.folder.with_suffix(f'.rank{rank}.log')


def start(place: Place) -> list[subprocess.Popen]:
  """The same command on two processes, one device each."""
  words = [sys.executable, '-m', 'experiments.train', *place.words()]
  commands = local.ranks(
    [*words, '--mesh.data=2'],
    place.folder.parent,
    processes=2,
    devices=1,
    platform='cpu',
  )
  processes = []
  for rank, command in enumerate(commands):
    environment = {**os.environ, **command.environment} | {
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'
    }
    with open(log(place, rank), 'a') as file:
      processes.append(
        subprocess.Popen(
          command.words,
          cwd=ROOT,
          env=environment,
          stdout=file,
          stderr=file,
        )
      )
  return processes


def finish(place: Place) -> bool:
  """Starts both and lets them end; whether both ended well."""
  processes = start(place)
  try:
    return [p.wait(timeout=PATIENCE) for p in processes] == [0, 0]
  finally:
    for process in processes:
      process.kill()
      process.wait()


def stop_one(place: Place, rank: int, step: int, number: int) -> list[int]:
  """Asks one of two to stop at or after a step; the exit codes of both."""
  processes = start(place)
  try:
    until(processes[rank], lambda: place.reached() >= step)
    processes[rank].send_signal(number)
    return [p.wait(timeout=PATIENCE) for p in processes]
  finally:
    for process in processes:
      process.kill()
      process.wait()


class Loss(NamedTuple):
  """What the death of one process did to the other."""

  killed: int  # exit code of the one: not -9 when the run was over before
  other: int  # exit code of the other
  seconds: float  # until it had left
  named: bool  # whether it said who died


def lose_one(
  place: Place,
  rng: random.Random,
  step: int,
  number: signal.Signals = signal.SIGKILL,
) -> Loss:
  """Kill or freeze one of two at or after a step; see the other leave."""
  rank = rng.randrange(2)
  processes = start(place)
  try:
    newest = place.latest()
    victim, other = processes[rank], processes[1 - rank]
    until(victim, lambda: place.reached() >= max(step, newest + 1))
    time.sleep(rng.uniform(0.0, 0.1))
    victim.send_signal(number)
    begun = time.monotonic()
    try:
      code = other.wait(timeout=4 * LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
      code = 0
    seconds = time.monotonic() - begun
    said = log(place, 1 - rank).read_text(errors='replace').splitlines()
    named = f'error: process {rank} (' in '\n'.join(said[-40:])
    victim.kill()
    return Loss(victim.wait(), code, round(seconds, 1), named)
  finally:
    for process in processes:
      process.kill()
      process.wait()
