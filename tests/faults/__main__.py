"""The long tier: kills, damage and lost hosts, many times, as a table.

    make faults            # or some of it: python -m tests.faults damages

Every fault is followed by the same command again, to the end of the run. It
survived when that exits 0; it is bitwise equal when metrics, parameters and
moments have the bytes of a run that nothing disturbed.
"""

import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
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


def kills(unbroken: Place, rng: random.Random) -> list[Row]:
  """SIGKILL: two of five anywhere, two in a save, one in the set-up."""
  done = survived = equal = inside = number = 0
  # A run may end before its signal: there is another one then.
  while done < KILLS and number < 2 * KILLS // KILLS_A_RUN:
    number += 1
    place = unbroken._replace(folder=unbroken.folder.with_name(f'run{number}'))
    kinds = ['random', 'save', 'start', 'random', 'save'] * (KILLS_A_RUN // 5)
    met = []
    for kind, step in moments(rng, kinds[: KILLS - done], place.steps):
      found = interrupt(place, rng, kind, step)
      say(f'run {number}: {kind} at step {step}: {found}')
      # One that ends before its signal is no fault; 2 and others are seen.
      met += [found] * (found.code != 0)
    done += len(met)
    inside += sum(found.in_save for found in met)
    if all(found.code == -signal.SIGKILL for found in met) and ends_well(place):
      survived += len(met)
      equal += len(met) * same_run(place, unbroken)
  note = f'{inside} of them inside a save'
  return [Row('SIGKILL at a random moment', KILLS, done, survived, equal, note)]


def damages(unbroken: Place, rng: random.Random) -> list[Row]:
  """One bit, or the end, of a random file of the newest checkpoint."""
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


def lost_hosts(unbroken: Place, rng: random.Random) -> list[Row]:
  """SIGKILL to one of two processes; both are started again."""
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


def main(parts: list[str]) -> int:
  """Runs the parts that are named, all by default, and prints their table."""
  start = time.monotonic()
  rows = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    unbroken = Place(folder / 'unbroken', STEPS, folder / 'cache')
    unbroken.finish()
    say(f'unbroken: {STEPS} steps, a save each {SAVE_EVERY}')
    for part in parts or PARTS:
      rows += PARTS[part](unbroken, random.Random(0))
      say(f'{part}: {time.monotonic() - start:.0f} s')
  print(table(rows))
  return code(rows)


def code(rows: list[Row]) -> int:
  """0 if every fault that was asked for took effect and left no trace."""
  return int(any(not row.asked == row.faults == row.equal for row in rows))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
