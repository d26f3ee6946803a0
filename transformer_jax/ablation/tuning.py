"""Which learning rate each arm is given: from a grid that grows at its edges.

At the baseline's rate a variant can lose for that reason alone. So each arm
gets its own rate, chosen on validation, over seeds that are used for nothing
else. The width of the basin of good rates says how much care the choice needs.
All is pure, but for the function that gives the loss of a cell.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import study as study_lib
from transformer_jax.ablation.cells import Cell
from transformer_jax.ablation.study import Overrides, Study
from transformer_jax.config import Config
from transformer_jax.fields import override

FACTOR = 2.0  # between neighbouring rates
MOST_EXTENSIONS = 3  # rates that are added on each side, at most
TOLERANCE = 0.05  # nats a token above the best that still count as good
# What tuning sets. An arm may bring a warmup, and a rate beside it.
RATE, WARMUP = 'optim.learning_rate', 'optim.warmup_steps'

Loss = Callable[[Cell], float]


@dataclasses.dataclass(frozen=True)
class Grid:
  """Rates and warmups of one arm."""

  variant: str
  rates: tuple[float, ...]
  warmups: tuple[int, ...]
  seeds: tuple[int, ...]

  def recipes(self) -> list[Overrides]:
    return [
      {RATE: rate, WARMUP: warmup}
      for warmup in self.warmups
      for rate in self.rates
    ]

  def runs(self, study: Study, recipe: Overrides) -> list[Cell]:
    return [
      cells_lib.cell(
        study, self.variant, seed=seed, phase='tune', recipe=recipe
      )
      for seed in self.seeds
    ]

  def cells(self, study: Study) -> list[Cell]:
    return [c for one in self.recipes() for c in self.runs(study, one)]


def first_grids(study: Study) -> dict[str, Grid]:
  """The declared grid, for each arm.

  An arm with a warmup of its own keeps it. Its rates are those of the grid,
  times its own rate over the shared one.
  """
  grid = study.tuning
  assert grid is not None
  shared = override(Config(), study.baseline).optim.learning_rate
  found = {}
  for arm in study.arms:
    times = float(arm.overrides.get(RATE, shared)) / shared
    warmups = grid.warmups
    if WARMUP in arm.overrides:
      warmups = (int(arm.overrides[WARMUP]),)
    rates = tuple(sorted(rate * times for rate in grid.rates))
    found[arm.name] = Grid(arm.name, rates, warmups, grid.seeds)
  return found


def losses(study: Study, grid: Grid, loss: Loss) -> list[float]:
  """Mean over tuning seeds, for each recipe."""
  return [
    float(np.mean([loss(cell) for cell in grid.runs(study, recipe)]))
    for recipe in grid.recipes()
  ]


def best(study: Study, grid: Grid, loss: Loss) -> Overrides:
  """The recipe of the least mean loss; of equals the first."""
  return grid.recipes()[int(np.argmin(losses(study, grid, loss)))]


def extended(
  study: Study, grids: Mapping[str, Grid], loss: Loss
) -> dict[str, Grid]:
  """Grids with one more rate where the best lies on an edge, up to a bound."""
  first = first_grids(study)
  found = {}
  for name, grid in grids.items():
    low = first[name].rates[0] / FACTOR**MOST_EXTENSIONS
    high = first[name].rates[-1] * FACTOR**MOST_EXTENSIONS
    rate = float(best(study, grid, loss)[RATE])
    more = grid.rates
    if rate == grid.rates[0] and rate / FACTOR >= low * 0.999:
      more = (rate / FACTOR, *more)
    if rate == grid.rates[-1] and rate * FACTOR <= high * 1.001:
      more = (*more, rate * FACTOR)
    found[name] = dataclasses.replace(grid, rates=more)
  return found


def basin(rates: tuple[float, ...], loss: list[float]) -> float:
  """Octaves around the best whose loss is within TOLERANCE of it.

  Each rate stands for one factor of the grid, half to each side.

  >>> basin((1.0, 2.0, 4.0, 8.0), [0.9, 0.51, 0.5, 0.52])
  3.0
  """
  least = int(np.argmin(loss))
  good = [x <= loss[least] + TOLERANCE for x in loss]
  low = high = least
  while low > 0 and good[low - 1]:
    low -= 1
  while high + 1 < len(good) and good[high + 1]:
    high += 1
  return math.log2(rates[high] / rates[low]) + math.log2(FACTOR)


def chosen(
  study: Study, grids: Mapping[str, Grid], loss: Loss
) -> dict[str, Any]:
  """What tuning.json says; it can be committed beside the study."""
  found = {}
  for name, grid in grids.items():
    every = losses(study, grid, loss)
    recipe = grid.recipes()[int(np.argmin(every))]
    width = len(grid.rates)
    row = grid.warmups.index(int(recipe[WARMUP]))
    found[name] = dict(
      recipe=dict(recipe),
      basin_octaves=basin(grid.rates, every[row * width : (row + 1) * width]),
      on_edge=recipe[RATE] in (grid.rates[0], grid.rates[-1])
      and len(grid.rates) > 1,
      grid=[
        dict(rate=one[RATE], warmup=one[WARMUP], loss=value)
        for one, value in zip(grid.recipes(), every, strict=True)
      ],
    )
  body = dict(
    study=study.name,
    essence=fingerprint(study),
    tolerance=TOLERANCE,
    seeds=list(grids[study.arms[0].name].seeds),
    chosen=found,
  )
  return body | dict(sha256=study_lib.digest(body))


def fingerprint(study: Study) -> str:
  """Of all that the choice depends on: configs of the arms, and the grid."""
  configs = {
    arm.name: study_lib.deviations(cells_lib.arm_config(study, arm))
    for arm in study.arms
  }
  rates = study.tuning and dataclasses.asdict(study.tuning)
  return study_lib.digest([configs, rates])


def fits(study: Study, text: str) -> bool:
  """Whether a tuning.json is of this very study."""
  return json.loads(text).get('essence') == fingerprint(study)


def basins(row: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
  """How wide the basins of both arms of a tuned comparison are, in words.

  Args:
    row: of summary.json.
    chosen: of tuning.json.

  Returns:
    '' for the paper's recipe, which is not tuned.

  >>> row = dict(phase='tuned', variant='b (tuned)', baseline='a (tuned)')
  >>> basins(row, {'a': {'basin_octaves': 2.0}, 'b': {'basin_octaves': 1.0}})
  'basin 1 octave (baseline 2)'
  """
  if row['phase'] != 'tuned' or not chosen:
    return ''
  arm, base = (
    chosen[study_lib.arm_of(row[side])]['basin_octaves']
    for side in ('variant', 'baseline')
  )
  many = 's' * (arm != 1)
  return f'basin {arm:.3g} octave{many} (baseline {base:.3g})'


def read(study: Study, text: str) -> dict[str, Any]:
  """A tuning.json of this study.

  Raises:
    ValueError: it does not match its sum, is of other configs or lacks
      something. Of one without a sum only the form is checked.
  """
  try:
    body = json.loads(text)
    known = body.get('sha256')
    rest = {name: value for name, value in body.items() if name != 'sha256'}
    whole = known is None or study_lib.digest(rest) == known
    own = 'essence' not in body or fits(study, text)
    for arm in study.arms:
      one = body['chosen'][arm.name]
      numbers = [one['recipe'][RATE], one['recipe'][WARMUP]]
      numbers += [one['basin_octaves'], one['on_edge'], body['tolerance']]
      numbers += [x[k] for x in one['grid'] for k in ('rate', 'warmup', 'loss')]
      whole = whole and all(math.isfinite(x) for x in numbers)
      whole = whole and set(one['recipe']) == {RATE, WARMUP}
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'no {error}') from error
  if not (whole and own):
    raise ValueError('its sum, its study or its numbers do not match')
  return body
