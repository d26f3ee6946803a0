"""Attention in four steps: scores, mask, weights, mix (pure; section 3.2).

Letters: B batch, T queries, S keys, H heads, K width of a key, E of a value.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

# A masked score. Finite, so that a row without any key (a row of padding)
# gives even weights and no NaN, forward or backward.
MASKED = -1e30


def dot_scores(q_BTHK: Array, k_BSHK: Array) -> Array:
  """q . k for every query and key of each head.

  Args:
    q_BTHK: queries, already times the scale 1/sqrt(d_k) of eq. 1.
    k_BSHK: keys.

  Returns:
    float32 scores_BHTS.

  Reference: section 3.2.1, eq. 1.
  """
  return jnp.einsum(
    'BTHK,BSHK->BHTS', q_BTHK, k_BSHK, preferred_element_type=jnp.float32
  )


def attention_weights(scores_BHTS: Array, mask_BTS: Array) -> Array:
  """softmax over the keys that the mask allows.

  Args:
    scores_BHTS: float32.
    mask_BTS: bool, true where a query may see a key; axes of size 1 repeat.

  Returns:
    float32 [B, H, T, S], rows summing to one; even where no key is allowed.
  """
  masked = jnp.where(mask_BTS[:, None], scores_BHTS, jnp.float32(MASKED))
  return jax.nn.softmax(masked, axis=-1)


def attention(
  q_BTHK: Array,
  k_BSHK: Array,
  v_BSHE: Array,
  mask_BTS: Array,
  *,
  scale: Array | float,
  drop_weights: Callable[[Array], Array] | None = None,
) -> Array:
  """softmax(scale * q k^T) v of each head.

  Args:
    q_BTHK: queries.
    k_BSHK: keys.
    v_BSHE: values; E need not equal K.
    mask_BTS: bool, true where a query may see a key; axes of size 1 repeat.
    scale: multiplies the scores, by way of q; the paper's is K**-0.5.
    drop_weights: dropout on the weights, if any.

  Returns:
    mixed_BTHE in the dtype of v.

  A query near one key reads that key's value, as in a dictionary:

  >>> k = jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 2, 1, 2)
  >>> v = jnp.array([7.0, 9.0]).reshape(1, 2, 1, 1)
  >>> q = jnp.array([0.0, 1.0]).reshape(1, 1, 1, 2)
  >>> see_all = jnp.ones((1, 1, 2), bool)
  >>> attention(q, k, v, see_all, scale=100.0).item()
  9.0

  Reference: section 3.2.1, eq. 1.
  """
  q_BTHK = q_BTHK * jnp.asarray(scale, q_BTHK.dtype)
  weights_BHTS = attention_weights(dot_scores(q_BTHK, k_BSHK), mask_BTS)
  if drop_weights is not None:
    weights_BHTS = drop_weights(weights_BHTS)
  return jnp.einsum(
    'BHTS,BSHE->BTHE', weights_BHTS.astype(v_BSHE.dtype), v_BSHE
  )


def causal_mask_BTS(length: int) -> Array:
  """[1, T, T], true where the key is not after the query (3.2.3)."""
  return jnp.tri(length, dtype=bool)[None]
