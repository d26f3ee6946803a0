"""A single published run, held against runs of ours over seeds (pure)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from transformer_jax.ablation.paired_tests import Interval


class Published(NamedTuple):
  """A published number beside ours; low and high: prediction interval."""

  published: float
  mean: float
  low: float
  high: float
  statement: str


def prediction_interval(
  values_R: ArrayLike, *, rows: int = 1, confidence: float = 0.95
) -> Interval:
  """Where one more run of this kind falls, simultaneously for `rows` rows.

    mean -+ t(1 - (1 - confidence) / (2 rows), R - 1) s sqrt(1 + 1 / R)

  A published number is one run, not a mean: it is to be expected within the
  spread of runs, not within the interval of their mean.

  Args:
    values_R: one value per seed, at least three.
    rows: numbers of one table that are read together (Bonferroni), so that
      all lie inside with the given confidence if they are runs like ours.
    confidence: for the whole table.

  >>> low, high = prediction_interval([1.0, 2.0, 3.0])
  >>> round(float(low), 3), round(float(high), 3)  # 2 -+ 4.303 sqrt(4 / 3)
  (-2.968, 6.968)

  Reference: Hahn and Meeker (1991), Statistical Intervals, section 4.3.
  """
  values_R = np.asarray(values_R, np.float64)
  seeds = len(values_R)
  if seeds < 3 or not np.all(np.isfinite(values_R)):
    raise ValueError(
      f'{seeds} runs: a prediction interval needs three or more, all finite'
    )
  if rows < 1:
    raise ValueError(f'{rows} rows: the table has at least this one')
  quantile = stats.t.ppf(1 - (1 - confidence) / (2 * rows), seeds - 1)
  half = quantile * values_R.std(ddof=1) * np.sqrt(1 + 1 / seeds)
  mean = values_R.mean()
  return Interval(np.asarray(mean - half), np.asarray(mean + half))


def hold_against(
  published: float,
  values_R: ArrayLike,
  *,
  rows: int = 1,
  confidence: float = 0.95,
) -> Published:
  """Is the published run one that ours could have been?

  >>> hold_against(9.0, [1.0, 2.0, 3.0]).statement
  'unlike our runs'
  """
  low, high = prediction_interval(values_R, rows=rows, confidence=confidence)
  mean = float(np.asarray(values_R, np.float64).mean())
  inside = low <= published <= high
  return Published(
    published=float(published),
    mean=mean,
    low=float(low),
    high=float(high),
    statement='like one of our runs' if inside else 'unlike our runs',
  )
