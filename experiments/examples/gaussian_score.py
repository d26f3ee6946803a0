"""A score from outside the package: how near a key lies to the query.

  python -m experiments.train --plugin=experiments/examples/gaussian_score.py \\
    --preset=reverse --model.score=gaussian --workdir=runs/gaussian

Copy this file anywhere and change the formula; nothing in the package is
touched. Evaluating or translating with such a run needs the same --plugin.
"""

import jax.numpy as jnp
from jax import Array

from transformer_jax import plugins
from transformer_jax.nn import attention


def gaussian_scores(
  q_BTHK: Array, k_BSHK: Array, w: None = None, *, scale: Array | float
) -> Array:
  """-scale |q - k|^2 / 2 = scale (q . k - |q|^2 / 2 - |k|^2 / 2).

  The weights are those of a Gaussian kernel: unlike a dot product, a long key
  does not win by its length.

  Args:
    q_BTHK: queries.
    k_BSHK: keys.
    w: this score has no parameter.
    scale: multiplies the scores: a number, traced or not, or one a head, [H].

  Returns:
    float32 scores_BHTS, none above 0.
  """
  products_BHTS = attention.dot_scores(q_BTHK, k_BSHK, w, scale=scale)
  scale_BTH = jnp.asarray(scale, jnp.float32).reshape(1, 1, -1)
  q_BTH, k_BSH = (
    0.5 * scale_BTH * jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)
    for x in (q_BTHK, k_BSHK)
  )
  q_BHT, k_BHS = jnp.moveaxis(q_BTH, 2, 1), jnp.moveaxis(k_BSH, 2, 1)
  return products_BHTS - q_BHT[..., None] - k_BHS[:, :, None]


plugins.add(
  'model.score',
  'gaussian',
  attention.SCORES,
  attention.Score(gaussian_scores),
)
