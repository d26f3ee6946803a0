"""How many seeds a question needs, and what few seeds can show (pure).

For paired differences, by the noncentral t distribution. The sign-flip test
from 8 seeds on has nearly the same power under normality: within 0.03 (the
tests measure it).
"""

import numpy as np
from scipy import optimize, stats
from scipy.special import gammaln

from transformer_jax.ablation import paired_tests

POWER = 0.8
FEWEST = 3  # seeds below which nothing is concluded
MOST = 10_000  # where more seeds are needed, no number is named


def _check(*, spread: float, alpha: float, power: float) -> None:
  if not (np.isfinite(spread) and spread > 0):
    raise ValueError(
      f'spread {spread}: a positive standard deviation is needed'
    )
  if not 0 < alpha < power < 1:
    raise ValueError(f'alpha {alpha}, power {power}: 0 < alpha < power < 1')


def _power(effect: float, seeds: int, alpha: float) -> float:
  """Power of the two-sided paired t-test at difference / spread = effect."""
  freedom = seeds - 1
  critical = stats.t.ppf(1 - alpha / 2, freedom)
  shift = abs(effect) * np.sqrt(seeds)
  # The lower tail is the upper tail of the mirrored shift: scipy's nct.cdf
  # loses its digits there.
  return float(
    stats.nct.sf(critical, freedom, shift)
    + stats.nct.sf(critical, freedom, -shift)
  )


def difference_power(
  difference: float, *, spread: float, seeds: int, alpha: float = 0.05
) -> float:
  """Chance that the paired t-test finds a difference of this size.

    P(|T| > t(1 - alpha / 2, R - 1)), T noncentral: sqrt(R) difference / spread

  Args:
    difference: true mean difference, in the metric's unit.
    spread: standard deviation of the paired differences, same unit.
    seeds: R.
    alpha: two-sided level; alpha / K for K primary comparisons under Holm.

  >>> round(difference_power(1.0, spread=1.0, seeds=10), 3)
  0.803

  Reference: Cohen (1988), Statistical Power Analysis, section 2.
  """
  _check(spread=spread, alpha=alpha, power=POWER)
  return _power(difference / spread, seeds, alpha)


def equivalence_power(
  margin: float, *, spread: float, seeds: int, alpha: float = 0.05
) -> float:
  """Chance of "equivalent" when the true difference is zero, about.

    max(0, 2 F(sqrt(R) margin / spread - t(1 - alpha, R - 1)) - 1)

  with F the t distribution of R - 1 degrees of freedom.

  Reference: Chow, Shao and Wang (2008), Sample Size Calculations, 3.2.
  """
  _check(spread=spread, alpha=alpha, power=POWER)
  critical = stats.t.ppf(1 - alpha, seeds - 1)
  shifted = np.sqrt(seeds) * margin / spread - critical
  return max(0.0, float(2 * stats.t.cdf(shifted, seeds - 1) - 1))


def _fewest(enough) -> int | None:
  """Smallest number of seeds that is enough; None beyond `MOST`."""
  low, high = FEWEST, FEWEST
  while not enough(high):
    low, high = high + 1, 2 * high
    if high > MOST:
      return None
  while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if enough(middle) else (middle + 1, high)
  return low


def seeds_for_difference(
  difference: float,
  *,
  spread: float,
  alpha: float = 0.05,
  power: float = POWER,
) -> int | None:
  """Fewest seeds that find this difference with this power; None if > MOST.

  >>> seeds_for_difference(1.0, spread=1.0)
  10
  """
  _check(spread=spread, alpha=alpha, power=power)
  effect = difference / spread
  return _fewest(lambda seeds: _power(effect, seeds, alpha) >= power)


def seeds_for_margin(
  margin: float, *, spread: float, alpha: float = 0.05, power: float = POWER
) -> int | None:
  """Fewest seeds that decide about a margin either way; None if > MOST.

  Enough to find a difference as large as the margin, and enough to call no
  difference at all equivalent, each with this power. A true difference in
  between can stay open with any number of seeds.

  >>> seeds_for_margin(1.0, spread=1.0)  # the equivalence needs one more
  11
  """
  _check(spread=spread, alpha=alpha, power=power)

  def enough(seeds: int) -> bool:
    same = equivalence_power(margin, spread=spread, seeds=seeds, alpha=alpha)
    return same >= power and _power(margin / spread, seeds, alpha) >= power

  return _fewest(enough)


def seeds_for_signs(alpha: float = 0.05) -> int:
  """Fewest seeds with which signs or ranks can pass: all have one sign then.

    2 / 2^R <= alpha

  >>> seeds_for_signs(0.05)
  6
  """
  return int(np.ceil(1 - np.log2(alpha) - paired_tests.TIE))


def minimum_detectable(
  *, spread: float, seeds: int, alpha: float = 0.05, power: float = POWER
) -> float:
  """Smallest true difference that this many seeds find with this power.

  The `difference` at which `difference_power` is `power`, in the metric's
  unit.

  >>> round(minimum_detectable(spread=1.0, seeds=10), 3)
  0.996
  """
  _check(spread=spread, alpha=alpha, power=power)
  top = 1.0
  while _power(top, seeds, alpha) < power:
    top *= 2
  root = optimize.brentq(lambda d: _power(d, seeds, alpha) - power, 0, top)
  return float(np.asarray(root)) * spread


def upper_spread(
  spread: float, *, seeds: int, confidence: float = 0.8
) -> float:
  """What the true spread is at most, with this confidence (normal runs).

    s sqrt((R - 1) / chi2(1 - confidence, R - 1))

  A pilot's spread is itself uncertain, and half the time too small: planning
  with its upper limit keeps the promised power.

  >>> round(upper_spread(1.0, seeds=5), 2)
  1.56

  Reference: Browne (1995), On the use of a pilot sample for sample size.
  """
  if seeds < 2:
    raise ValueError(f'{seeds} pilot seeds: a spread needs two or more')
  return spread * float(
    np.sqrt((seeds - 1) / stats.chi2.ppf(1 - confidence, seeds - 1))
  )


def effect_size(difference_R: np.ndarray) -> float:
  """Paired d_z with Hedges' small-sample correction; nan without spread.

    g_z = J mean / s,  J = Gamma(v / 2) / (sqrt(v / 2) Gamma((v - 1) / 2))

  with v = R - 1; J is 0.80 at 5 seeds and 0.91 at 10. Needs three seeds.

  >>> round(effect_size(np.array([1.0, 2.0, 3.0])), 4)  # J = sqrt(1 / pi)
  1.1284

  Reference: Hedges (1981), Distribution theory for Glass's estimator.
  """
  freedom = len(difference_R) - 1
  if freedom < 2:
    return float('nan')
  spread = difference_R.std(ddof=1)
  if spread == 0:
    return float('nan')
  log_j = gammaln(freedom / 2) - gammaln((freedom - 1) / 2)
  correction = np.exp(log_j) / np.sqrt(freedom / 2)
  return float(correction * difference_R.mean() / spread)


def rank_effect_size(difference_R: np.ndarray) -> float:
  """Matched-pairs rank-biserial correlation, -1 to 1; nan if all are zero.

    (sum of ranks of positive - of negative differences) / their sum

  >>> rank_effect_size(np.array([1.0, -2.0, 3.0, 4.0]))  # (8 - 2) / 10
  0.6

  Reference: Kerby (2014), The simple difference formula.
  """
  kept = difference_R[difference_R != 0]
  if not len(kept):
    return float('nan')
  rank = stats.rankdata(np.abs(kept))
  return float(np.sum(np.sign(kept) * rank) / np.sum(rank))
