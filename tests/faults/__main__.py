"""The long tier: kills, damage and lost hosts, many times, as a table.

    make faults    # or some of it: python -m tests.faults kills --jobs=5

Every fault is followed by the same command again, to the end of the run. It
survived when that exits 0; it is bitwise equal when metrics, parameters and
moments have the bytes of a run that nothing disturbed.
"""

import argparse
import functools
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from concurrent import futures
from typing import NamedTuple

from tests.faults import damage, hosts
from tests.faults.hosts import LEAVE_SECONDS
from tests.faults.place import SAVE_EVERY, Place, interrupt, moments, same_run

STEPS = 240
KILLS, KILLS_A_RUN = 50, 10
DAMAGES = 20
LOSSES = 10


class Row(NamedTuple):
  """Of the table."""

  fault: str
  asked: int
  faults: int  # that took effect
  survived: int
  equal: int
  note: str


def say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def ends_well(place: Place) -> bool:
  try:
    place.finish()
  except AssertionError as error:
    say(f'NOT SURVIVED: {error}')
    return False
  return True


def killed_run(unbroken: Place, number: int, count: int) -> Row:
  """A run that is killed so often, and its row."""
  rng = random.Random(number)
  place = unbroken._replace(folder=unbroken.folder.with_name(f'run{number}'))
  kinds = ['random', 'save', 'start', 'random', 'save'] * (KILLS_A_RUN // 5)
  met = []
  for kind, step in moments(rng, kinds[:count], place.steps):
    found = interrupt(place, rng, kind, step)
    say(f'run {number}: {kind} at step {step}: {found}')
    # One that ends before its signal is no fault; 2 and others are seen.
    met += [found] * (found.code != 0)
  killed = all(found.code == -signal.SIGKILL for found in met)
  survived = len(met) * (killed and ends_well(place))
  equal = len(met) * same_run(place, unbroken) if survived else 0
  inside = sum(found.in_save for found in met)
  return Row('', count, len(met), survived, equal, str(inside))


def kills(unbroken: Place, jobs: int) -> list[Row]:
  """SIGKILL: two of five anywhere, two in a save, one in the set-up."""
  done: list[Row] = []
  left, number = KILLS, 0
  with futures.ThreadPoolExecutor(jobs) as pool:
    # A run may end before its signal: there is another one then.
    while left and number < 2 * KILLS // KILLS_A_RUN:
      counts = [min(KILLS_A_RUN, left - n) for n in range(0, left, KILLS_A_RUN)]
      numbers = range(number + 1, number + 1 + len(counts))
      one = functools.partial(killed_run, unbroken)
      done += (pool.map if jobs > 1 else map)(one, numbers, counts)
      number += len(counts)
      left = KILLS - sum(row.faults for row in done)
  note = f'{sum(int(row.note) for row in done)} of them inside a save'
  faults, survived, equal = (
    sum(getattr(row, name) for row in done)
    for name in ('faults', 'survived', 'equal')
  )
  name = 'SIGKILL at a random moment'
  return [Row(name, KILLS, faults, survived, equal, note)]


def damages(unbroken: Place, _: int) -> list[Row]:
  """One bit, or the end, of a random file of the newest checkpoint."""
  rng = random.Random(0)
  rows = []
  for name, fault in damage.FAULTS.items():
    survived = equal = noticed = 0
    count = DAMAGES // len(damage.FAULTS)
    for _ in range(count):
      place = unbroken._replace(folder=unbroken.folder.with_name('damaged'))
      shutil.rmtree(place.folder, ignore_errors=True)
      shutil.copytree(unbroken.folder, place.folder)
      what = fault(place.folder / 'checkpoints' / str(place.steps), rng)
      say(f'{name}: {what}')
      if ends_well(place):
        survived += 1
        equal += same_run(place, unbroken)
        noticed += f'{place.steps}.bad' in place.names()
    note = f'{noticed} set aside and made again'
    rows.append(Row(name, count, count, survived, equal, note))
  return rows


def table(rows: list[Row]) -> str:
  lines = [
    '| fault | faults | survived | bitwise equal | |',
    '|---|---|---|---|---|',
  ]
  for fault, asked, faults, *rest in rows:
    count = faults if faults == asked else f'{faults} of {asked}'
    lines.append(f'| {" | ".join(map(str, (fault, count, *rest)))} |')
  return '\n'.join(lines)


def lost_hosts(unbroken: Place, _: int) -> list[Row]:
  """SIGKILL to one of two processes; both are started again."""
  rng = random.Random(0)
  unbroken = unbroken._replace(folder=unbroken.folder.with_name('two'))
  assert hosts.finish(unbroken)
  place = unbroken._replace(folder=unbroken.folder.with_name('two_lost'))
  steps = sorted(rng.randrange(STEPS - 4 * SAVE_EVERY) for _ in range(LOSSES))
  met = []
  for step in steps:
    found = hosts.lose_one(place, rng, step)
    say(f'one of two at step {step}: {found}')
    met += [found] * (found.killed != 0)
  survived = len(met) * hosts.finish(place)
  left = [
    found
    for found in met
    if found.other != 0 and found.named and found.seconds <= LEAVE_SECONDS
  ]
  slowest = max(found.seconds for found in met)
  note = f'the other left and named it {len(left)} times, within {slowest} s'
  equal = len(met) * same_run(place, unbroken) if survived else 0
  name = 'one of two processes killed'
  return [Row(name, LOSSES, len(met), survived, equal, note)]


PARTS = {'kills': kills, 'damages': damages, 'hosts': lost_hosts}


def main(arguments: list[str]) -> int:
  """Runs the parts that are named, all by default, and prints their table."""
  parser = argparse.ArgumentParser('tests.faults', allow_abbrev=False)
  parser.add_argument('parts', nargs='*', metavar='PART', help=', '.join(PARTS))
  parser.add_argument('--jobs', type=int, default=1, help='kills at once')
  options = parser.parse_args(arguments)
  if unknown := set(options.parts) - set(PARTS):
    parser.error(f'no part is called {unknown.pop()}: {", ".join(PARTS)}')
  start = time.monotonic()
  rows = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    unbroken = Place(folder / 'unbroken', STEPS, folder / 'cache')
    unbroken.finish()
    say(f'unbroken: {STEPS} steps, a save each {SAVE_EVERY}')
    for part in options.parts or PARTS:
      rows += PARTS[part](unbroken, options.jobs)
      say(f'{part}: {time.monotonic() - start:.0f} s')
  print(table(rows))
  return code(rows)


def code(rows: list[Row]) -> int:
  """0 if every fault that was asked for took effect and left no trace."""
  return int(any(not row.asked == row.faults == row.equal for row in rows))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
