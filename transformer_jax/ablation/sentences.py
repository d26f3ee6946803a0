"""How two given checkpoints differ, over sentences (pure).

It says nothing about the methods that made them: another seed gives other
checkpoints. That question is answered over seeds, in `stats`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST_SENTENCES = 20
CHUNK = 250  # resamples at a time: bounds memory at 250 x sentences
CLAIM = 'for these two checkpoints'

Score = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class CheckpointDifference(NamedTuple):
  """difference (first minus second, of the corpus score), interval, claim."""

  difference: float
  ci_low: float
  ci_high: float
  statement: str


def ratio(sums_K2: NDArray[np.float64]) -> NDArray[np.float64]:
  """First sum over second: nats a token of (nats, tokens); correct a token."""
  return sums_K2[..., 0] / sums_K2[..., 1]


def checkpoint_difference(
  first_SK: ArrayLike,
  second_SK: ArrayLike,
  *,
  score: Score = ratio,
  seed: int = 0,
  resamples: int = 2_000,
  alpha: float = 0.05,
) -> CheckpointDifference:
  """Paired bootstrap over the sentences of one test set.

  Sentences are drawn with replacement, the same ones for both checkpoints,
  and the score of the drawn corpus is taken from the sums of its sentences;
  the interval is the alpha / 2 and 1 - alpha / 2 percentile of the difference.

  Args:
    first_SK: K sufficient statistics of S sentences under one checkpoint:
      (nats, tokens) for loss, counts of n-grams and lengths for BLEU.
    second_SK: the same sentences under the other.
    score: sums [..., K] to scores [...].
    seed: of the draws.
    resamples: how many corpora are drawn.
    alpha: 1 - the share of resamples within the interval.

  Raises:
    ValueError: sentences do not correspond, or are fewer than 20.

  >>> loss = np.column_stack([np.arange(1.0, 25.0), np.full(24, 10.0)])
  >>> checkpoint_difference(loss + [1.0, 0.0], loss).statement
  'differs for these two checkpoints'

  Reference: Koehn (2004), Statistical significance tests for machine
  translation evaluation.
  """
  first_SK = np.asarray(first_SK, np.float64)
  second_SK = np.asarray(second_SK, np.float64)
  if first_SK.shape != second_SK.shape or first_SK.ndim != 2:
    raise ValueError(
      f'shapes {first_SK.shape} and {second_SK.shape}: both [sentences, K]'
    )
  sentences = len(first_SK)
  if sentences < FEWEST_SENTENCES:
    raise ValueError(
      f'{sentences} sentences: a percentile interval needs {FEWEST_SENTENCES}'
    )
  draw = np.random.default_rng(seed)
  differences = []
  for start in range(0, resamples, CHUNK):
    size = min(CHUNK, resamples - start)
    even_S = np.full(sentences, 1 / sentences)
    times_MS = draw.multinomial(sentences, even_S, size=size) * 1.0
    differences.append(score(times_MS @ first_SK) - score(times_MS @ second_SK))
  low, high = np.quantile(
    np.concatenate(differences), [alpha / 2, 1 - alpha / 2]
  )
  whole = score(first_SK.sum(axis=0)) - score(second_SK.sum(axis=0))
  verb = 'differs' if low > 0 or high < 0 else 'not told apart'
  return CheckpointDifference(
    float(whole), float(low), float(high), f'{verb} {CLAIM}'
  )
