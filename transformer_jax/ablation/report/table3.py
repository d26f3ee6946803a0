"""Table 3 of the paper, its single runs held against ours.

The paper trained each row once, at its size, on its data; so what is held
against ours is the difference to the base row, in nats a token, and an arm is
a row where it changes the base by the same ratio: half of the heads, a third
of the layers.
"""

import math

import numpy as np

from transformer_jax.ablation import published as held
from transformer_jax.ablation import table3
from transformer_jax.ablation.cells import arm_config
from transformer_jax.ablation.report import answers
from transformer_jax.ablation.report.reading import PAPER, Results
from transformer_jax.ablation.report.tables import Table
from transformer_jax.ablation.study import Value
from transformer_jax.config import Config
from transformer_jax.fields import difference, override


def _changes(base: Config, other: Config) -> dict[str, Value]:
  """Sizes as ratios to the base, everything else as it is."""
  changed: dict[str, Value] = {}
  for path, (old, new) in difference(base, other).items():
    if path not in ('train.steps', 'model.max_positions'):
      changed[path] = new / old if isinstance(new, int) else new
  return changed


def rows_of(results: Results) -> dict[str, str]:
  """{arm: the name of its row in the table} of the arms that are one."""
  paper = {}
  for name, row in table3.ALL.items():
    config = override(Config(), row.overrides)
    paper[frozenset(_changes(Config(), config).items())] = name
  found = {}
  arms = results.study.arms
  base = arm_config(results.study, arms[0])
  for arm in arms[1:]:
    changes = _changes(base, arm_config(results.study, arm))
    row = paper.get(frozenset(changes.items()))
    if row is not None:
      found[arm.name] = row
  return found


def published(results: Results) -> Table | None:
  """Each published row against ours; None where the study is not `table3`."""
  if results.study.name != 'table3':
    return None
  base_runs = results.of(results.variants[0], PAPER)
  base_R = [run.value('loss') for run in base_runs]
  named = rows_of(results)
  shown = []
  for name, row in named.items():
    runs = results.of(name, PAPER)
    values_R = np.array([run.value('loss') for run in runs])
    printed = table3.ALL[row].published.perplexity
    gap = math.log(printed / table3.BASE.perplexity)
    if (
      len(runs) != len(base_R)
      or len(runs) < 3
      or any(run.diverged for run in (*runs, *base_runs))
    ):
      shown.append(
        (
          row,
          name,
          answers.number(gap, signed=True),
          '–',
          '–',
          'not held: too few runs, or one diverged',
        )
      )
      continue
    # The paper's two runs shared no seed: neither do the runs of a difference.
    apart_R = values_R - np.roll(base_R, 1)
    found = held.hold_against(gap, apart_R, rows=len(named))
    shown.append(
      (
        row,
        name,
        answers.number(gap, signed=True),
        answers.number(found.mean, signed=True),
        f'{answers.number(found.low, signed=True)} to '
        f'{answers.number(found.high, signed=True)}',
        found.statement,
      )
    )
  return Table(
    'Table 3: published and ours',
    ('row', 'our arm', 'published', 'ours', 'prediction interval', 'reading'),
    shown,
    'Difference to the base row in nats a token: log of the ratio of '
    'perplexities, one run a row, on other data and at another size; ours: '
    'mean over seeds, and where one more run of this kind falls, for all rows '
    'at once with 95 %. Seeds are not paired here, as they were not there.',
  )
