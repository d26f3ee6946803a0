"""`python -m experiments.train` killed, preempted and started again.

However a run was interrupted, what it leaves is that of a run which was not:
the same bytes of metrics, parameters and moments.
"""

import os
import pathlib
import random
import signal

import pytest

from tests.faults import __main__ as program
from tests.faults.__main__ import Row, code, table
from tests.faults.place import (
  SAVE_EVERY,
  STOPS,
  Place,
  interrupt,
  moments,
  same_run,
  until,
)
from transformer_jax.training.guard import STUCK


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.getbasetemp() / 'cache'


def interrupted_run(place: Place, kinds: list[str], *, seed: int) -> None:
  """Interrupts a run again and again, lets it end; compares with another."""
  unbroken = place._replace(folder=place.folder.with_name('unbroken'))
  unbroken.finish()
  rng = random.Random(seed)
  inside = 0
  for kind, step in moments(rng, kinds, place.steps):
    met = interrupt(place, rng, kind, step)
    assert met.code == (75 if kind in STOPS else -signal.SIGKILL), place.log()
    inside += met.in_save and kind not in STOPS
    print(f'{kind} at step {step}: {met}')
  kills = len([kind for kind in kinds if kind not in STOPS])
  print(f'{kills} kills, {inside} of them inside a save')
  assert 5 * inside >= kills
  place.finish()
  assert 'resumed at step' in place.log()
  assert same_run(place, unbroken)
  assert not place.saving()
  assert not (place.folder / 'lock').exists()


def test_kills_and_a_stop_leave_no_trace(cache, tmp_path):
  place = Place(tmp_path / 'run', 60, cache)
  interrupted_run(place, ['save', 'term in a save', 'random'], seed=0)


def test_a_second_writer_is_refused_while_the_first_lives(cache, tmp_path):
  place = Place(tmp_path / 'run', 100_000, cache)
  first = place.start()
  try:
    until(first, lambda: place.reached() > 0)
    assert place.start().wait(timeout=300) == 2
    # The first goes on to write into the same log.
    errors = [x for x in place.log().splitlines() if x.startswith('error: ')]
    assert len(errors) == 1 and 'is being written by a run' in errors[0]
    assert first.poll() is None
  finally:
    first.kill()
    first.wait()


def test_the_table_fails_when_a_fault_did_not_happen_or_left_a_trace():
  assert code([Row('kill', 50, 50, 50, 50, '')]) == 0
  fewer = [Row('kill', 50, 49, 49, 49, '')]
  assert code(fewer) == 1 and '| 49 of 50 | 49 | 49 |' in table(fewer)
  assert code([Row('kill', 50, 50, 50, 49, '')]) == 1


@pytest.mark.parametrize('jobs', [1, 5])
def test_kills_that_came_too_late_are_made_up_for(monkeypatch, jobs):
  asked = []

  def run(_, number, count):
    asked.append(count)
    met = count - (number == 2)
    return Row('', count, met, met, met, '3')

  monkeypatch.setattr(program, 'killed_run', run)
  place = Place(pathlib.Path(), 1, pathlib.Path())
  (row,) = program.kills(place, jobs)
  assert row[1:] == (50, 50, 50, 50, '18 of them inside a save')
  assert sorted(asked) == [1, *[10] * 5]


@pytest.mark.slow
def test_twelve_kills_leave_no_trace(cache, tmp_path):
  place = Place(tmp_path / 'run', 400, cache)
  kinds = ['random', 'save', 'start', 'random'] * 3
  # Of this seed no moment is so late that the run may be over first.
  interrupted_run(place, [*kinds, *STOPS], seed=3)


@pytest.mark.slow
def test_a_stuck_process_leaves_with_its_stacks(cache, tmp_path):
  place = Place(tmp_path / 'run', 100_000, cache)
  process = place.start('--train.step_timeout_seconds=20')
  try:
    until(process, lambda: place.latest() > 0)
    # To open a pipe that nobody reads takes for ever, as a lost disk does.
    os.mkfifo(tmp_path / 'pipe')
    os.replace(tmp_path / 'pipe', place.folder / 'metrics.jsonl')
    assert process.wait(timeout=300) == STUCK
  finally:
    process.kill()
    process.wait()
  said = place.log()
  assert 'nothing was done for 20 s: stuck where the stacks above say' in said
  assert 'record.py' in said and 'in append' in said
  # What it saved stands, and the same command goes on.
  (place.folder / 'metrics.jsonl').unlink()
  saved = place.latest()
  place._replace(steps=saved + SAVE_EVERY).finish()
  assert f'resumed at step {saved}' in place.log()
