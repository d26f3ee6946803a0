"""A score from outside the package: how near a key lies to the query.

  python -m experiments.train --plugin=experiments/examples/gaussian_score.py \\
    --preset=reverse --model.score=gaussian --workdir=runs/gaussian
  python -m experiments.ablate --study=gaussian --workdir=runs/gaussian_study \\
    --plugin=experiments/examples/gaussian_score.py

Copy this file anywhere and change the formula; nothing in the package is
touched. Evaluating or translating with such a run, and the report of such a
study, need the same --plugin, with the same text.
"""

import jax.numpy as jnp
from jax import Array

from experiments.small import SMALL
from transformer_jax import plugins
from transformer_jax.ablation.study import Primary, Study, arms
from transformer_jax.nn import attention


def gaussian_scores(
  q_BTHK: Array, k_BSHK: Array, w: None = None, *, scale: Array | float
) -> Array:
  """-scale |q - k|^2 / 2 = scale (q . k - |q|^2 / 2 - |k|^2 / 2).

  The weights are those of a Gaussian kernel: unlike a dot product, a long key
  does not win by its length.

  Each number is of one query and one key, whatever stands beside them: a score
  may be shown a part of them at a time, and one that looks at more is refused.

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

# A file may ask a question as well: this one is --study=gaussian. A minute on
# two cores.
STUDY = Study(
  name='gaussian',
  question='Does it help that a key cannot win by its length?',
  paper='3.2.1: dot-product attention is identical to our algorithm, except '
  'for the scaling factor',
  axes=('model.score',),
  baseline=SMALL,
  arms=arms([{}, {'model.score': 'gaussian'}]),
  primary=(Primary('score=gaussian', 'baseline', margin=0.05),),
  seeds=5,
  looks=(5,),
  threshold=1.0,
)
