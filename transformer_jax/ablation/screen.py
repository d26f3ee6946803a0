"""What a person sees of a study under way: cells done, time left, the table."""

import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transformer_jax.ablation import results as results_lib
from transformer_jax.ablation import tuning
from transformer_jax.ablation.cells import Cell

EVERY = 10.0  # seconds between lines while a population trains


class Screen:
  """Lines on stderr; none where `quiet`."""

  def __init__(self, folder: pathlib.Path, name: str, *, quiet: bool) -> None:
    self.folder, self.name, self.quiet = folder, name, quiet
    self._cells: set[str] = set()
    self._done = -1
    self._begun = self._shown = time.monotonic()
    # Steps: left when these cells were first seen; left now; made in the batch
    # at hand.
    self._first = self._left = self._made = 0

  def say(self, text: str) -> None:
    """A line that stays."""
    if not self.quiet:
      print(text, file=sys.stderr, flush=True)

  def cells(self, cells: Sequence[Cell], done: set[str]) -> None:
    """Takes what all workers have done; prints it where it changed."""
    every = {cell.identity: cell for cell in cells}
    count = len(done & every.keys())
    if (count, every.keys()) == (self._done, self._cells):
      return
    steps = [c.config.train.steps for i, c in every.items() if i not in done]
    self._done, self._left = count, sum(steps)
    if every.keys() != self._cells:
      self._cells, self._first = set(every), self._left
      self._begun = time.monotonic()
    self.say(self._line())
    if 0 < self._done < len(every):
      self.say(table(self.folder, list(every.values())))

  def steps(self, count: int) -> None:
    """Steps that members of this worker made."""
    self._made += count
    now = time.monotonic()
    if now - self._shown > EVERY:
      self.say(self._line())
      self._shown = now

  def batch_ended(self) -> None:
    """The members of this worker are cells that are done."""
    self._made = 0

  def _line(self) -> str:
    """How far it is; time left at the pace since these cells were begun.

    What other workers do counts as soon as one of their cells is done.
    """
    text = f'{self.name}: {self._done} of {len(self._cells)} cells'
    made = self._first - self._left + self._made
    if made > 0 and self._done < len(self._cells):
      seconds = time.monotonic() - self._begun
      left = seconds / made * max(0, self._left - self._made)
      text += f', about {max(1, round(left / 60))} min left'
    return text + (f', {self._made:,} steps into the next' * (self._made > 0))


def verdict(row: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
  """A row of summary.json in one line.

  Args:
    row: of a comparison.
    chosen: of tuning.json, empty where nothing was tuned.
  """
  limits = ' to '.join(
    'open' if row[end] is None else f'{row[end]:+.3f}'
    for end in ('ci_low', 'ci_high')
  )
  parts = [
    f'{row["variant"]} against {row["baseline"]}: {row["verdict"]}',
    f'{row["metric"]} {row["difference"]:+.3f} ({limits})',
    f'{row["seeds"]} seeds',
    tuning.basins(row, chosen),
  ]
  return ', '.join(filter(None, parts))


def table(folder: pathlib.Path, cells: Sequence[Cell]) -> str:
  """Means so far: arm, runs, loss and accuracy at the last step."""
  rows: dict[str, list[tuple[float, float]]] = {}
  diverged: dict[str, int] = {}
  for cell in cells:
    name = cell.label
    rows.setdefault(name, [])
    result = results_lib.read_result(folder, cell)
    if result is not None and result.diverged:
      diverged[name] = diverged.get(name, 0) + 1
    elif result is not None:
      found = result.body['metrics']
      rows[name].append((found['loss'], found['accuracy']))
  width = max(map(len, rows), default=0)
  lines = [f'  {"":{width}}  runs   loss  accuracy']
  for name, found in rows.items():
    loss, accuracy = np.mean(found, axis=0) if found else (math.nan, math.nan)
    line = f'  {name:{width}}  {len(found):4}  {loss:5.3f}     {accuracy:5.1%}'
    failed = diverged.get(name, 0)
    lines.append(line + (f'  {failed} diverged' if failed else ''))
  return '\n'.join(lines)
