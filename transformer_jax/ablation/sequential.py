"""Looks at a study before its last seed; they share one error rate (pure).

Looking after 5 seeds and again after 10, each at 5 %, finds a false
difference in 8 % of studies. The looks are declared before the first seed, and
each gets a part of the error rate: little early, nearly all at the end.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import optimize, stats

from transformer_jax.ablation.paired_tests import Floats

NODES = 64  # Gauss-Legendre; the levels are stable to 8 digits


def spent(fraction: float, *, alpha: float = 0.05) -> float:
  """Error rate spent when this fraction of the seeds has been seen.

    alpha(t) = 4 (1 - Phi(z(1 - alpha / 4) / sqrt(t)))

  O'Brien and Fleming's shape: next to nothing early. Each tail spends its
  own alpha / 2.

  >>> round(spent(0.5), 5), round(spent(1.0), 5)
  (0.00305, 0.05)

  Reference: Lan and DeMets (1983), Discrete sequential boundaries.
  """
  z = stats.norm.isf(alpha / 4) / np.sqrt(fraction)
  return float(4 * stats.norm.sf(z))


def check_looks(looks: Sequence[int]) -> tuple[int, ...]:
  """Numbers of seeds at which a study is read; ValueError if unusable."""
  looks = tuple(looks)
  rising = all(a < b for a, b in pairwise(looks))
  if not looks or looks[0] < 1 or not rising:
    raise ValueError(
      f'looks {looks}: numbers of seeds that rise, such as 5, 10'
    )
  return looks


def _edge(
  point_J: Floats, mass_J: Floats, *, step: float, budget: float
) -> float:
  """The |S| beyond which the next step carries `budget` of these paths."""

  def excess(edge: float) -> float:
    up_J = stats.norm.sf((edge - point_J) / step)
    down_J = stats.norm.cdf((-edge - point_J) / step)
    return float(np.sum(mass_J * (up_J + down_J))) - budget

  return float(np.asarray(optimize.brentq(excess, 0.0, 40.0, xtol=1e-12)))


def nominal_levels(
  looks: Sequence[int], *, alpha: float = 0.05
) -> tuple[float, ...]:
  """Two-sided p-value that each look must reach, one per look.

  With S(k) a Brownian motion read at t(k) = looks(k) / looks(last), level k
  is such that P(no crossing before k, crossing at k) = alpha(t(k)) -
  alpha(t(k - 1)). The density of paths that have not crossed is carried from
  look to look by quadrature.

  The level is applied to the p-value of whichever test serves, which keeps
  the overall rate closely (tests: 10,000 studies of 5 and 10 seeds).

  >>> [round(level, 4) for level in nominal_levels((5, 10))]
  [0.0031, 0.049]

  Reference: Armitage, McPherson and Rowe (1969); Jennison and Turnbull
  (2000), sections 3.8 and 7.2.
  """
  looks = check_looks(looks)
  node_J, weight_J = np.polynomial.legendre.leggauss(NODES)
  point_J, mass_J = np.zeros(1), np.ones(1)  # paths that have not crossed
  before, used, levels = 0.0, 0.0, []
  for seeds in looks:
    now = seeds / looks[-1]
    step = np.sqrt(now - before)
    total = spent(now, alpha=alpha)
    edge = _edge(point_J, mass_J, step=step, budget=total - used)
    levels.append(float(2 * stats.norm.sf(edge / np.sqrt(now))))
    next_J = edge * node_J
    move_JI = stats.norm.pdf((next_J[:, None] - point_J) / step) / step
    mass_J = edge * weight_J * (move_JI @ mass_J)
    point_J, before, used = next_J, now, total
  return tuple(levels)


def level_at(seeds: int, looks: Sequence[int], *, alpha: float = 0.05) -> float:
  """The nominal level of the look at this many seeds.

  Raises:
    ValueError: a look that was not declared.
  """
  looks = check_looks(looks)
  if seeds not in looks:
    planned = ', '.join(map(str, looks))
    raise ValueError(
      f'{seeds} seeds: not a planned look; run until one of {planned}'
    )
  return nominal_levels(looks, alpha=alpha)[looks.index(seeds)]
