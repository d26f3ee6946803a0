"""Tests and intervals for differences that are paired by seed (pure).

Every function takes differences [..., R], one per seed, variant minus
baseline. Leading axes are independent studies: the code that judges a real
study also judges ten thousand simulated ones.

A test gives two tails: `greater` is the p-value against "the centre is at
most `center`", `less` against "at least `center`". Two-sided p, equivalence
and, by inversion, the interval follow from them.

There is no bootstrap over seeds: its 95 % interval of 5 seeds covers 84 %.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

EXACT_SEEDS = 16  # all sign patterns up to here: 65,535 of them
DRAWS = 9_999  # random sign patterns beyond, so that (b + 1) / (m + 1) is even
FLIP_FROM = 8  # seeds from which the sign-flip test is used
TIE = 1e-12  # relative difference below which two numbers are rounding apart

PAIRED_T = 'paired t (assumes normality)'
SIGN_FLIP = 'sign-flip (exact)'
SIGN_FLIP_DRAWN = f'sign-flip (Monte Carlo, {DRAWS} draws)'
SIGNED_RANK = 'Wilcoxon signed-rank (exact)'


class Tails(NamedTuple):
  """One-sided p-values [...] against a centre: above it, below it."""

  greater: Floats
  less: Floats

  @property
  def two_sided(self) -> Floats:
    return np.minimum(1.0, 2 * np.minimum(self.greater, self.less))


class Interval(NamedTuple):
  """Closed interval [...]; infinite where so few seeds can give no bound."""

  low: Floats
  high: Floats


class Pairing(NamedTuple):
  """What pairing by seed bought.

  correlation: Pearson's r of the arms over seeds; nan without spread.
  width_ratio: paired t interval over the unpaired one of the same runs.
  statement: one sentence for the reader.
  """

  correlation: float
  width_ratio: float
  statement: str


def direction(better: str) -> int:
  """+1 where higher values are better, -1 where lower ones are."""
  if better not in ('lower', 'higher'):
    raise ValueError(f'better {better!r}: lower or higher')
  return 1 if better == 'higher' else -1


def check_differences(difference_R: ArrayLike) -> Floats:
  """As float64 [..., R]; ValueError where empty or not finite."""
  difference_R = np.asarray(difference_R, np.float64)
  if difference_R.ndim == 0 or difference_R.shape[-1] == 0:
    raise ValueError('no paired seeds: both arms need runs of the same seeds')
  if not np.all(np.isfinite(difference_R)):
    raise ValueError(
      'a value is not finite: name diverged runs and what they count as'
    )
  return difference_R


def is_flat(difference_R: Floats) -> NDArray[np.bool_]:
  """Whether all seeds give the same difference, up to rounding: bool [...]."""
  size = np.max(np.abs(difference_R), axis=-1)
  return np.ptp(difference_R, axis=-1) <= TIE * size


def t_tails(difference_R: ArrayLike, *, center: float = 0.0) -> Tails:
  """Paired t-test: exact for normal differences, cautious for heavy tails.

    t = (mean - center) / (s / sqrt(R)), R - 1 degrees of freedom

  Differences that are all equal have no spread to divide by. With a metric that
  counts (exact match) this happens by chance. `flip_tails` takes these.

  Args:
    difference_R: [..., R], at least 2 seeds, in the metric's unit.
    center: the difference under the hypothesis.

  >>> round(float(t_tails([1.0, 2.0, 3.0]).two_sided), 4)  # t = 2 sqrt(3)
  0.0742

  Reference: Student (1908), The probable error of a mean.
  """
  difference_R = check_differences(difference_R)
  seeds = difference_R.shape[-1]
  with np.errstate(divide='ignore', invalid='ignore'):
    error = difference_R.std(axis=-1, ddof=1) / np.sqrt(seeds)
    t = (difference_R.mean(axis=-1) - center) / error
  flat = is_flat(difference_R)
  greater = np.asarray(stats.t.sf(t, seeds - 1))
  less = np.asarray(stats.t.cdf(t, seeds - 1))
  if not np.any(flat):
    return Tails(greater, less)
  flip = flip_tails(difference_R, center=center)
  return Tails(
    np.where(flat, flip.greater, greater), np.where(flat, flip.less, less)
  )


def t_interval(difference_R: ArrayLike, *, alpha: float = 0.05) -> Interval:
  """mean -+ t(1 - alpha / 2, R - 1) s / sqrt(R); see `t_tails`.

  >>> low, high = t_interval([1.0, 2.0, 3.0])
  >>> round(float(low), 3), round(float(high), 3)  # 2 -+ 4.303 / sqrt(3)
  (-0.484, 4.484)
  """
  difference_R = check_differences(difference_R)
  seeds = difference_R.shape[-1]
  mean = difference_R.mean(axis=-1)
  error = difference_R.std(axis=-1, ddof=1) / np.sqrt(seeds)
  half = stats.t.ppf(1 - alpha / 2, seeds - 1) * error
  flat = is_flat(difference_R)
  if not np.any(flat):
    return Interval(np.asarray(mean - half), np.asarray(mean + half))
  flip = flip_interval(difference_R, alpha=alpha)
  return Interval(
    np.where(flat, flip.low, mean - half),
    np.where(flat, flip.high, mean + half),
  )


@lru_cache(maxsize=8)
def _subsets(seeds: int) -> Floats:
  """0/1 [M, R]: every non-empty subset of the seeds, or DRAWS random ones."""
  if seeds <= EXACT_SEEDS:
    numbers_M1 = np.arange(1, 2**seeds)[:, None]
    return ((numbers_M1 >> np.arange(seeds)) & 1).astype(np.float64)
  # The draw is fixed: the same results give the same verdict, always.
  drawn_MR = np.random.default_rng(seeds).integers(0, 2, (DRAWS, seeds))
  return drawn_MR.astype(np.float64)


def flip_tails(difference_R: ArrayLike, *, center: float = 0.0) -> Tails:
  """Sign-flip test of the mean: exact if differences are symmetric about it.

  If arms do not differ, d and -d are equally likely in every pair. Turning
  the signs of a subset A lowers the sum of d - center by 2 sum_A, so the
  observed sum is passed or reached where sum_A(d - center) <= 0:

    greater = (1 + #{A not empty: sum_A(d - center) <= 0}) / (M + 1)

  with all M = 2^R - 1 subsets up to `EXACT_SEEDS`, else `DRAWS` fixed random
  ones, where the same formula is the corrected (b + 1) / (m + 1).

  >>> float(flip_tails([1.0, 2.0, 3.0]).greater)  # nothing beats all positive
  0.125

  Reference: Fisher (1935), The Design of Experiments, section 21; Phipson
  and Smyth (2010) for the correction.
  """
  shifted_R = check_differences(difference_R) - center
  subsets_MR = _subsets(shifted_R.shape[-1])
  sums_M = shifted_R @ subsets_MR.T
  tie_1 = TIE * np.sum(np.abs(shifted_R), axis=-1, keepdims=True)
  patterns = len(subsets_MR) + 1
  return Tails(
    (1 + np.count_nonzero(sums_M <= tie_1, axis=-1)) / patterns,
    (1 + np.count_nonzero(sums_M >= -tie_1, axis=-1)) / patterns,
  )


def flip_interval(difference_R: ArrayLike, *, alpha: float = 0.05) -> Interval:
  """All centres that `flip_tails` does not reject, two-sided at alpha.

  sum_A(d - c) <= 0 says that c is at least the mean of d over A, so the
  limits are order statistics of the M subset means: with
  k = floor(alpha / 2 (M + 1)), the k-th smallest and the k-th largest. It
  covers 1 - 2k / 2^R exactly when differences are continuous and symmetric;
  below 6 seeds k = 0 and there is no bound at 95 %.

  >>> flip_interval([1.0, 2.0, 3.0], alpha=0.5)  # k = 2 of 7 subset means
  Interval(low=array(1.5), high=array(2.5))

  Reference: Hartigan (1969), Using subsample values as typical values.
  """
  difference_R = check_differences(difference_R)
  subsets_MR = _subsets(difference_R.shape[-1])
  size_M = subsets_MR.sum(axis=-1)
  if not size_M.all():  # a drawn subset may be empty, and has no mean
    subsets_MR, size_M = subsets_MR[size_M > 0], size_M[size_M > 0]
  k = int(alpha / 2 * (len(subsets_MR) + 1) + TIE)
  if k == 0:
    limit = np.full(difference_R.shape[:-1], np.inf)
    return Interval(-limit, limit)
  means_M = difference_R @ subsets_MR.T / size_M
  means_M = np.partition(means_M, (k - 1, -k), axis=-1)
  return Interval(np.asarray(means_M[..., k - 1]), np.asarray(means_M[..., -k]))


def _rank_distribution(double_XR: NDArray[np.int64]) -> Floats:
  """P(sum of a random half of the ranks = w): [X, R (R + 1) + 1]."""
  seeds = double_XR.shape[-1]
  width = seeds * (seeds + 1) + 1
  p_XW = np.zeros((len(double_XR), width))
  p_XW[:, 0] = 1.0
  for rank_X in double_XR.T:
    from_XW = np.arange(width) - rank_X[:, None]
    moved_XW = np.take_along_axis(p_XW, np.maximum(from_XW, 0), axis=-1)
    p_XW = 0.5 * p_XW + 0.5 * np.where(from_XW >= 0, moved_XW, 0.0)
  return p_XW


def _double_ranks(shifted_R: Floats) -> NDArray[np.int64]:
  """Twice the mid-ranks of the sizes (integers); 0 for a difference of 0."""
  size_R = np.abs(shifted_R)
  zero_R = size_R == 0
  rank_R = stats.rankdata(size_R, axis=-1)
  rank_R = rank_R - np.count_nonzero(zero_R, axis=-1, keepdims=True)
  return np.rint(np.where(zero_R, 0.0, 2 * rank_R)).astype(np.int64)


def rank_tails(difference_R: ArrayLike, *, center: float = 0.0) -> Tails:
  """Wilcoxon's signed-rank test, exact with ties too; zeros are left out.

    W = sum of ranks of |d - center| over the positive d - center

  The size of the largest differences plays no part. So it hardly matters which
  value a diverged run counts as. With 5 seeds the smallest two-sided p is
  2 / 2^5 = 0.0625: there is no verdict below 6 seeds.

  >>> float(rank_tails([1.0, -2.0, 3.0, 4.0]).greater)  # W = 8 or more: 3 / 16
  0.1875

  Reference: Wilcoxon (1945), Individual comparisons by ranking methods.
  """
  shifted_R = check_differences(difference_R) - center
  shifted_XR = shifted_R.reshape(-1, shifted_R.shape[-1])
  double_XR = _double_ranks(shifted_XR)
  w_X = np.sum(double_XR * (shifted_XR > 0), axis=-1)
  p_XW = _rank_distribution(double_XR)
  below_XW = np.cumsum(p_XW, axis=-1)
  at_most_X = np.take_along_axis(below_XW, w_X[:, None], axis=-1)[:, 0]
  exactly_X = np.take_along_axis(p_XW, w_X[:, None], axis=-1)[:, 0]
  shape = shifted_R.shape[:-1]
  return Tails(
    np.reshape(1 - at_most_X + exactly_X, shape), np.reshape(at_most_X, shape)
  )


def _walsh(difference_R: Floats) -> Floats:
  """The R (R + 1) / 2 averages of two seeds, or of one with itself, sorted."""
  i_W, j_W = np.triu_indices(difference_R.shape[-1])
  return np.sort((difference_R[..., i_W] + difference_R[..., j_W]) / 2, axis=-1)


def rank_center(difference_R: ArrayLike) -> Floats:
  """Hodges and Lehmann's estimate: the median of the Walsh averages.

  >>> float(rank_center([0.0, 1.0, 100.0]))  # of 0 .5 1 50 50.5 100
  25.5
  """
  return np.asarray(np.median(_walsh(check_differences(difference_R)), axis=-1))


def rank_interval(difference_R: ArrayLike, *, alpha: float = 0.05) -> Interval:
  """All centres that the signed-rank test does not reject, two-sided.

  The k-th smallest and k-th largest Walsh average, with the largest k for
  which P(W <= k - 1) <= alpha / 2; unbounded below 6 seeds at 95 %. With tied
  differences it is the interval of untied ones, which is wide enough.

  >>> rank_interval([1.0, 2.0, 4.0], alpha=0.25)  # k = 1
  Interval(low=array(1.), high=array(4.))

  Reference: Hollander and Wolfe (1999), section 3.3.
  """
  difference_R = check_differences(difference_R)
  seeds = difference_R.shape[-1]
  p_1W = _rank_distribution(2 * np.arange(1, seeds + 1)[None])
  below_W = np.cumsum(p_1W[0, ::2])  # W itself, not twice W
  k = int(np.count_nonzero(below_W <= alpha / 2 + TIE))
  if k == 0:
    limit = np.full(difference_R.shape[:-1], np.inf)
    return Interval(-limit, limit)
  walsh_W = _walsh(difference_R)
  return Interval(np.asarray(walsh_W[..., k - 1]), np.asarray(walsh_W[..., -k]))


def mean_test_name(seeds: int) -> str:
  """Which test of the mean serves this number of seeds."""
  if seeds < FLIP_FROM:
    return PAIRED_T
  return SIGN_FLIP if seeds <= EXACT_SEEDS else SIGN_FLIP_DRAWN


def mean_tails(difference_R: ArrayLike, *, center: float = 0.0) -> Tails:
  """`t_tails` below `FLIP_FROM` seeds, `flip_tails` from there on."""
  difference_R = check_differences(difference_R)
  few = difference_R.shape[-1] < FLIP_FROM
  return (t_tails if few else flip_tails)(difference_R, center=center)


def mean_interval(difference_R: ArrayLike, *, alpha: float = 0.05) -> Interval:
  """`t_interval` below `FLIP_FROM` seeds, `flip_interval` from there on."""
  difference_R = check_differences(difference_R)
  few = difference_R.shape[-1] < FLIP_FROM
  return (t_interval if few else flip_interval)(difference_R, alpha=alpha)


def equivalence_p(difference_R: ArrayLike, *, margin: float) -> Floats:
  """Two one-sided tests: p against "the mean is margin or more from zero".

    p = max(greater than -margin, less than +margin)

  Args:
    difference_R: [..., R].
    margin: the smallest difference that would matter, in the metric's unit,
      declared before the runs. There is no default, and none is made from the
      spread: a noisy study would then find everything equivalent.

  >>> round(float(equivalence_p([-0.1, 0.0, 0.1], margin=0.5)), 4)
  0.0065

  Reference: Schuirmann (1987), J. Pharmacokinetics and Biopharmaceutics 15.
  """
  if not (np.isfinite(margin) and margin > 0):
    raise ValueError(f'margin {margin}: a positive number, declared beforehand')
  above = mean_tails(difference_R, center=-margin).greater
  below = mean_tails(difference_R, center=margin).less
  return np.maximum(above, below)


def holm(p_K: ArrayLike) -> Floats:
  """Holm's step-down adjustment of K p-values [..., K]; compare with alpha.

    sorted p(1) <= ... <= p(K): adjusted(i) = max over j <= i of (K-j+1) p(j)

  capped at 1. A comparison without a p-value (nan) stays so, and still counts.

  >>> [round(float(p), 3) for p in holm([0.01, 0.04, 0.03])]
  [0.03, 0.06, 0.06]

  Reference: Holm (1979), A simple sequentially rejective test procedure.
  """
  p_K = np.asarray(p_K, np.float64)
  missing_K = np.isnan(p_K)
  filled_K = np.where(missing_K, 1.0, p_K)
  order_K = np.argsort(filled_K, axis=-1)
  sorted_K = np.take_along_axis(filled_K, order_K, axis=-1)
  steps_K = np.arange(p_K.shape[-1], 0, -1)
  grown_K = np.maximum.accumulate(sorted_K * steps_K, axis=-1)
  adjusted_K = np.empty_like(filled_K)
  np.put_along_axis(adjusted_K, order_K, np.minimum(1.0, grown_K), axis=-1)
  return np.where(missing_K, np.nan, adjusted_K)


def pairing(variant_R: ArrayLike, baseline_R: ArrayLike) -> Pairing:
  """Correlation between the arms, and whether pairing was worth it.

    ratio = t(R - 1) sqrt(var(d)) / (t(2R - 2) sqrt(var(a) + var(b)))

  Pairing halves the degrees of freedom, so it gains nothing unless the arms
  vary together. The paired test is valid in both cases.

  >>> pairing([1.0, 2.0, 3.0], [1.0, 2.0, 3.1]).statement
  'arms vary together (correlation 1.00): pairing cut the interval to 0.06'
  >>> pairing([1.0, 2.0, 3.0], [3.0, 1.0, 2.0]).statement
  'pairing bought nothing (correlation -0.50)'
  """
  a_R, b_R = check_differences(variant_R), check_differences(baseline_R)
  seeds = len(a_R)
  apart = a_R.var(ddof=1) + b_R.var(ddof=1) if seeds > 1 else 0.0
  if is_flat(a_R) or is_flat(b_R) or apart == 0:
    return Pairing(
      float('nan'), float('nan'), 'no correlation: an arm does not vary'
    )
  r = float(np.corrcoef(a_R, b_R)[0, 1])
  critical = stats.t.ppf(0.975, seeds - 1) / stats.t.ppf(0.975, 2 * seeds - 2)
  ratio = float(critical * np.sqrt((a_R - b_R).var(ddof=1) / apart))
  if ratio >= 1:
    text = f'pairing bought nothing (correlation {r:.2f})'
  else:
    text = (
      f'arms vary together (correlation {r:.2f}): '
      f'pairing cut the interval to {ratio:.2f}'
    )
  return Pairing(r, ratio, text)
