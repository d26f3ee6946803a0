"""Timing in turns, and the rows that come of it.

Two programs are compared by running them in one process, by turns, several
rounds: what else the machine does then hits all of them alike. The figure is
the median over the rounds, its spread the fastest and the slowest one.
"""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformer_jax.training import record

# Threads of one library spin for a while after their work is done, and would
# take that time from the next one's.
SETTLE_SECONDS = 0.3

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch')


def say(text: str) -> None:
  """Progress: not part of the result."""
  print(text, file=sys.stderr, flush=True)


class Contestant(NamedTuple):
  """One of several that are timed by turns.

  `work` does one turn and comes back when it is done. Its first call, which
  compiles and fills caches, is not timed.
  """

  name: str
  work: Callable[[], Any]


class Turns(NamedTuple):
  """What one contestant took, round by round."""

  seconds: tuple[float, ...]
  last: Any  # what the last turn returned

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)


def take_turns(
  contestants: Sequence[Contestant],
  *,
  rounds: int,
  settle: float = SETTLE_SECONDS,
) -> dict[str, Turns]:
  """Times each contestant once a round.

  Args:
    contestants: of different names; who begins changes from round to round.
    rounds: how often each is timed.
    settle: seconds of silence before each turn.

  >>> take_turns([Contestant('a', lambda: 7)], rounds=3, settle=0)['a'].last
  7
  """
  for contestant in contestants:
    say(f'preparing: {contestant.name}')
    contestant.work()
  seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
  last = {}
  for turn in range(rounds):
    say(f'round {turn + 1} of {rounds}')
    start = turn % len(contestants)
    for contestant in (*contestants[start:], *contestants[:start]):
      time.sleep(settle)
      begin = time.perf_counter()
      last[contestant.name] = contestant.work()
      seconds[contestant.name].append(time.perf_counter() - begin)
  return {
    name: Turns(tuple(found), last[name]) for name, found in seconds.items()
  }


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table.

  Attributes:
    suite: that it belongs to.
    name: what was measured.
    value: the median.
    unit: of value, low and high.
    low: the least value of all rounds.
    high: the greatest.
    rounds: how many there were; 0 where the value is no measurement.
    ratio: what ours does over what this one does in the same time, the median
      over the rounds; None where there is nothing to compare.
    note: what the value needs to be understood.
  """

  suite: str
  name: str
  value: float
  unit: str
  low: float
  high: float
  rounds: int
  ratio: float | None = None
  note: str = ''


def row(
  suite: str, name: str, values: Sequence[float], unit: str, **more: Any
) -> Row:
  """A row of one value a round."""
  return Row(
    suite,
    name,
    statistics.median(values),
    unit,
    min(values),
    max(values),
    len(values),
    **more,
  )


def fact(suite: str, name: str, value: float, unit: str, note: str = '') -> Row:
  """A row that is computed, not measured."""
  return Row(suite, name, value, unit, value, value, 0, note=note)


def rate_row(
  suite: str,
  name: str,
  turns: Turns,
  *,
  amount: float,
  unit: str,
  ours: Turns | None = None,
  note: str = '',
) -> Row:
  """A row of what is done in a second, compared to `ours` in the same round.

  Args:
    suite: that the row belongs to.
    name: of the contestant.
    turns: its times.
    amount: done in one turn.
    unit: of the rate.
    ours: the times to compare with; they did the same amount.
    note: see `Row`.
  """
  ratio = None
  if ours is not None:
    pairs = zip(turns.seconds, ours.seconds, strict=True)
    ratio = statistics.median(theirs / own for theirs, own in pairs)
  rates = [amount / seconds for seconds in turns.seconds]
  return row(suite, name, rates, unit, ratio=ratio, note=note)


def cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def cpu_model() -> str:
  """The processor's name, as far as the system tells it."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def machine() -> dict[str, str]:
  """What a figure of speed depends on, besides the program."""
  found = dict(
    cpu=f'{cpu_model()}, {cores()} cores to use',
    python=platform.python_version(),
    **record.versions(PACKAGES),
    xla_flags=os.environ.get('XLA_FLAGS', 'none'),
  )
  if hasattr(os, 'getloadavg'):
    busy = os.getloadavg()[0]
    found['load'] = f'{busy:.2f} before the start (0 is a quiet machine)'
  return found


def head(found: Mapping[str, str]) -> str:
  """The lines above the tables."""
  return '\n'.join(f'{name:10} {value}' for name, value in found.items())


def table(rows: Sequence[Row]) -> str:
  """Rows as text: value, fastest and slowest round, ratio, note."""
  compared = any(r.ratio is not None for r in rows)
  title = 'ours/this' if compared else ''
  cells = [('', 'median', '', 'low .. high', title, '')]
  for r in rows:
    spread = f'{number(r.low)} .. {number(r.high)}' if r.rounds > 1 else ''
    ratio = '' if r.ratio is None else f'{r.ratio:.2f}'
    cells.append((r.name, number(r.value), r.unit, spread, ratio, r.note))
  wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = []
  for name, value, unit, spread, ratio, note in cells:
    line = (
      f'{name:{wide[0]}}  {value:>{wide[1]}} {unit:{wide[2]}}'
      f'  {spread:>{wide[3]}}  {ratio:>{wide[4]}}  {note}'
    )
    lines.append(line.rstrip())
  return '\n'.join(lines)


def number(value: float) -> str:
  """Three digits or more, never an exponent; a whole number as it is.

  >>> number(8123.4), number(12.345), number(0.01234), number(32.0)
  ('8,123', '12.3', '0.0123', '32')
  """
  size = abs(value)
  if size >= 100 or value == int(value):
    return f'{value:,.0f}'
  digits = 1 if size >= 10 else 2 if size >= 1 else 4
  return f'{value:.{digits}f}'


def json_lines(found: Mapping[str, str], rows: Iterable[Row]) -> str:
  """The machine, then one object a row."""
  objects = [dict(suite='machine', **found)]
  objects += [dataclasses.asdict(r) for r in rows]
  return ''.join(json.dumps(o, ensure_ascii=False) + '\n' for o in objects)
