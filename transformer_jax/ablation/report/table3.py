"""Table 3 of the paper, its single runs held against ours.

The paper trained each row once, at its size, on its data; so what is held
against ours is the difference to the base row, in nats a token, and an arm is
a row where it changes the base by the same ratio: half of the heads, a third
of the layers.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from transformer_jax import config as config_lib
from transformer_jax.ablation import published as held
from transformer_jax.ablation.report import answers
from transformer_jax.ablation.report.reading import PAPER, Results
from transformer_jax.ablation.report.tables import Table
from transformer_jax.ablation.study import Value, arm_config
from transformer_jax.config import Config

BASE_PERPLEXITY = 4.92  # newstest2013, per wordpiece


class Row(NamedTuple):
  """A row: its name, what it changes in the base model, its perplexity."""

  name: str
  overrides: Mapping[str, Value]
  perplexity: float


def _heads(heads: int, width: int) -> dict[str, Value]:
  return {'model.heads': heads, 'model.d_k': width, 'model.d_v': width}


def _width(d_model: int, width: int) -> dict[str, Value]:
  return {'model.d_model': d_model, 'model.d_k': width, 'model.d_v': width}


# Vaswani et al. (2017), arXiv:1706.03762v7, Table 3.
ROWS = (
  Row('A: 1 head', _heads(1, 512), 5.29),
  Row('A: 4 heads', _heads(4, 128), 5.00),
  Row('A: 16 heads', _heads(16, 32), 4.91),
  Row('A: 32 heads', _heads(32, 16), 5.01),
  Row('B: d_k 16', {'model.d_k': 16}, 5.16),
  Row('B: d_k 32', {'model.d_k': 32}, 5.01),
  Row('C: 2 layers', {'model.layers': 2}, 6.11),
  Row('C: 4 layers', {'model.layers': 4}, 5.19),
  Row('C: 8 layers', {'model.layers': 8}, 4.88),
  Row('C: d_model 256', _width(256, 32), 5.75),
  Row('C: d_model 1024', _width(1024, 128), 4.66),
  Row('C: d_ff 1024', {'model.d_ff': 1024}, 5.12),
  Row('C: d_ff 4096', {'model.d_ff': 4096}, 4.75),
  Row('D: no dropout', {'model.dropout': 0.0}, 5.77),
  Row('D: dropout 0.2', {'model.dropout': 0.2}, 4.95),
  Row('D: no label smoothing', {'optim.label_smoothing': 0.0}, 4.67),
  Row('D: label smoothing 0.2', {'optim.label_smoothing': 0.2}, 5.47),
  Row('E: learned positions', {'model.position': 'learned'}, 4.92),
  Row(
    'big',
    {
      'model.d_model': 1024,
      'model.d_ff': 4096,
      'model.heads': 16,
      'model.dropout': 0.3,
    },
    4.33,
  ),
)


def _changes(base: Config, other: Config) -> dict[str, Value]:
  """Sizes as ratios to the base, everything else as it is."""
  changed: dict[str, Value] = {}
  for path, (old, new) in config_lib.difference(base, other).items():
    if path not in ('train.steps', 'model.max_positions'):
      changed[path] = new / old if isinstance(new, int) else new
  return changed


def rows_of(results: Results) -> dict[str, Row]:
  """{arm: its row of the table} of the arms that are one."""
  paper = {}
  for row in ROWS:
    config = config_lib.override(Config(), row.overrides)
    paper[frozenset(_changes(Config(), config).items())] = row
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
    gap = math.log(row.perplexity / BASE_PERPLEXITY)
    if (
      len(runs) != len(base_R)
      or len(runs) < 3
      or any(run.diverged for run in (*runs, *base_runs))
    ):
      shown.append(
        (
          row.name,
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
        row.name,
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
