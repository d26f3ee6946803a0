"""Attention in four steps: scores, mask, weights, mix (pure; section 3.2).

Letters: B batch, T queries, S keys, H heads, K width of a key, E of a value, A
how far apart a query and a key are, T + S - 1 in all.

By hand, for the three words of "I love NLP": D = 2, one head, K = 4, E = 2,
with embeddings x, and q = x W_q, k = x W_k, v = x W_v.

>>> x_TD = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # I, love, NLP
>>> w_q_DK = jnp.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
>>> w_k_DK = jnp.array([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
>>> w_v_DE = 10 * jnp.eye(2)
>>> q_TK, k_SK, v_SE = x_TD @ w_q_DK, x_TD @ w_k_DK, x_TD @ w_v_DE
>>> q, k, v = (x[None, :, None] for x in (q_TK, k_SK, v_SE))  # B, H of one
>>> scores_BHTS = dot_scores(q, k, scale=4**-0.5)  # q . k / sqrt(K)
>>> scores_BHTS[0, 0].tolist()
[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0]]
>>> see_BTS = jnp.ones((1, 1, 3), bool)
>>> weights_BHTS = attention_weights(scores_BHTS, see_BTS)
>>> (100 * weights_BHTS[0, 0]).round().astype(int).tolist()  # per cent
[[42, 16, 42], [16, 42, 42], [21, 21, 58]]
>>> mixed_BTHE = attention(q, k, v, see_BTS, How(scale=4**-0.5))
>>> (10 * mixed_BTHE[0, :, 0]).round().astype(int).tolist()  # in tenths
[[84, 58], [58, 84], [79, 79]]
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.nn import randomness
from transformer_jax.nn.initializers import Draw, identity, normal

# A masked score. Finite, so that a row without any key (a row of padding)
# gives even weights and no NaN, forward or backward.
MASKED = -1e30


def dot_scores(
  q_BTHK: Array, k_BSHK: Array, w: None = None, *, scale: Array | float
) -> Array:
  """scale * q . k for every query and key of each head.

  The scale goes into q, which is smaller than the scores.

  Args:
    q_BTHK: queries.
    k_BSHK: keys.
    w: this score has no parameter.
    scale: a number, traced or not, or one a head, [H]. The paper's is K**-0.5,
      so that scores of independent q and k of unit variance have unit
      variance, and not K.

  Returns:
    float32 scores_BHTS.

  Reference: section 3.2.1, eq. 1 and footnote 4.
  """
  q_BTHK = q_BTHK * jnp.asarray(scale, q_BTHK.dtype).reshape(1, 1, -1, 1)
  return jnp.einsum(
    'BTHK,BSHK->BHTS', q_BTHK, k_BSHK, preferred_element_type=jnp.float32
  )


def additive_scores(
  q_BTHK: Array, k_BSHK: Array, w_HK: Array, *, scale: Array | float
) -> Array:
  """scale * sum_K w tanh(q + k): a feed-forward network scores each pair.

  Args:
    q_BTHK: queries.
    k_BSHK: keys.
    w_HK: the output layer of the network, one a head.
    scale: Bahdanau et al. have none (1).

  Returns:
    float32 scores_BHTS. On the way it holds B*T*S*H*K numbers.

  Reference: Bahdanau et al. 2015, appendix A.1.2; section 3.2.1 here.
  """
  hidden_BTSHK = jnp.tanh(q_BTHK[:, :, None] + k_BSHK[:, None])
  return jnp.einsum(
    'BTSHK,HK->BHTS',
    hidden_BTSHK,
    w_HK * jnp.asarray(scale, w_HK.dtype).reshape(-1, 1),
    preferred_element_type=jnp.float32,
  )


def general_scores(
  q_BTHK: Array, k_BSHK: Array, w_HKL: Array, *, scale: Array | float
) -> Array:
  """scale * q W k of each head: the dot product, seen through a matrix.

  Args:
    q_BTHK: queries.
    k_BSHK: keys; their axis K is called L beside that of the queries.
    w_HKL: one matrix a head.
    scale: as in `dot_scores`.

  Returns:
    float32 scores_BHTS.

  Reference: Luong et al. 2015, eq. 8, `general`.
  """
  seen_BTHL = jnp.einsum('BTHK,HKL->BTHL', q_BTHK, w_HKL)
  return dot_scores(seen_BTHL, k_BSHK, scale=scale)


def cosine_scores(
  q_BTHK: Array, k_BSHK: Array, w: None = None, *, scale: Array | float
) -> Array:
  """scale * cos(q, k): the dot product without the lengths.

  Args:
    q_BTHK: queries.
    k_BSHK: keys.
    w: this score has no parameter.
    scale: scores lie in +-scale; at 1 or less, weights are nearly even.

  Returns:
    float32 scores_BHTS.

  Reference: Graves et al. 2014, eq. 6.
  """
  q_BTHK, k_BSHK = (
    x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-6)
    for x in (q_BTHK, k_BSHK)
  )
  return dot_scores(q_BTHK, k_BSHK, scale=scale)


def uniform_scores(
  q_BTHK: Array, k_BSHK: Array, w: None = None, *, scale: Array | float
) -> Array:
  """0 for every pair: the mean of the values, whatever they hold.

  The negative control: attention that does not look.

  Returns:
    float32 scores_BHTS, all zero.
  """
  del w, scale
  B, T, H, _ = q_BTHK.shape
  return jnp.zeros((B, H, T, k_BSHK.shape[1]), jnp.float32)


class Score(NamedTuple):
  """How well a key answers a query: all that there is to say of a score.

  scores: (q_BTHK, k_BSHK, w, scale=) -> scores_BHTS. Each number depends on
    one query and one key alone: attention in blocks and decoding with a cache
    give it some of them at a time.
  parameter: name of its w, with letters of H, K, L = K; or none.
  draw: how w starts; its fans are K and K.
  products: matrix products of d_k terms for one query and one key; 0 says that
    it reads neither.
  query_products: those of d_k^2 terms for one query alone.
  """

  scores: Callable[..., Array]
  parameter: str = ''
  draw: Draw = normal(lambda fan_in, fan_out: fan_in**-0.5)
  products: int = 1
  query_products: int = 0


# score: what computes it, and what it needs. The scores of this file;
# `implementations.admit_score` checks any other. Of additive the one product is
# that with w: sum and tanh of d_k terms are no matrix product.
SCORES = {
  'dot': Score(dot_scores),
  'additive': Score(additive_scores, 'w_score_HK'),
  'general': Score(
    general_scores, 'w_score_HKL', draw=identity(), query_products=1
  ),
  'cosine': Score(cosine_scores),
  'uniform': Score(uniform_scores, products=0),
}


def parameter_shape(score: Score, *, heads: int, d_k: int) -> tuple[int, ...]:
  """Shape of a score's parameter, by the letters of its name.

  >>> parameter_shape(SCORES['general'], heads=8, d_k=64)
  (8, 64, 64)

  Raises:
    ValueError: it has none, or a letter beside H, K and L.
  """
  sizes = dict(H=heads, K=d_k, L=d_k)
  letters = score.parameter.rpartition('_')[2]
  if not letters or not set(letters) <= set(sizes):
    raise ValueError(
      f'the parameter of a score ends in letters of H, K and L = K, unlike '
      f'{score.parameter!r}'
    )
  return tuple(sizes[letter] for letter in letters)


class Fold(NamedTuple):
  """A scale that is in the query's weights W instead of on the scores.

  Under Adam, W' = s W stays s W only if its learning rate is s times as large
  and its epsilon 1/s times: its gradient is 1/s times that of W, and Adam's
  direction depends on the length of a gradient through epsilon only.

  initial: s, factor on the query's initial values.
  rate: s, factor on the query's learning rate and gradient; 1: unchanged.
  """

  initial: float = 1.0
  rate: float = 1.0


class Scale(NamedTuple):
  """What is done about the size of the scores (3.2.1).

  factor: d_k -> the factor on the scores at run time.
  fold: d_k -> how the query's weights differ.
  parameters: those that multiply the factor: (H,) each.
  """

  factor: Callable[[int], float]
  fold: Callable[[int], Fold] = lambda d_k: Fold()
  parameters: tuple[str, ...] = ()


# scale: all that there is to say of it.
SCALES = {
  'rsqrt_d_k': Scale(lambda d_k: d_k**-0.5),
  'none': Scale(lambda d_k: 1.0),
  'inverse_d_k': Scale(lambda d_k: 1.0 / d_k),
  'learned': Scale(lambda d_k: 1.0, parameters=('scale_H',)),
  'folded_init': Scale(lambda d_k: 1.0, lambda d_k: Fold(d_k**-0.5)),
  'folded_rate': Scale(lambda d_k: 1.0, lambda d_k: Fold(1.0, d_k**-0.5)),
  'folded_init_rate': Scale(
    lambda d_k: 1.0, lambda d_k: Fold(d_k**-0.5, d_k**-0.5)
  ),
}


class Scales(NamedTuple):
  """The factor on the scores at each of the model's sites; traced numbers."""

  encoder_self: Array | float
  decoder_self: Array | float
  cross: Array | float


class Drop(NamedTuple):
  """Dropout of attention weights.

  The bits of weight (b, h, t, s) are `randomness.coordinate_bits(key, b, h, t,
  s)`, of global coordinates: every implementation drops the same weights.
  """

  key: Array  # uint32 [2], of this attention in this layer and step
  rate: Array | float


# (t, s), positions that broadcast -> bool, of their common shape.
Sees = Callable[[Array, Array], Array]


class How(NamedTuple):
  """What an attention is, beside its queries, keys, values and mask.

  scale: multiplies the scores; a number, traced or not, or one a head, [H];
    the paper's is K**-0.5.
  scores: of one of SCORES, or any function of (q, k, w, scale=).
  w: the parameter of the scores, if they have one.
  bias_HA: float32, added to the scaled scores by how far apart query and key
    are, if anything is: [H, T + S - 1], see `spread_HTS`.
  drop: dropout on the weights, if any.
  sees: (t, s), positions of queries and keys -> whether the query may see the
    key; the mask must allow it too. None: the mask alone decides.

  `bias_HA` and `sees` are given by position, so that nobody has to hold T*S
  numbers: a block computes its own part.
  """

  scale: Array | float
  scores: Callable[..., Array] = dot_scores
  w: Array | None = None
  bias_HA: Array | None = None
  drop: Drop | None = None
  sees: Sees | None = None


def spread_HTS(bias_HA: Array, queries: int) -> Array:
  """Expands a bias by distance into one for every query and key.

  Args:
    bias_HA: [H, T + S - 1]; entry i is of the key's position minus the
      query's, when that is i - (T - 1).
    queries: T.

  Returns:
    [H, T, S].

  >>> spread_HTS(jnp.array([[10, 11, 12, 13]]), 2).tolist()  # S is 3
  [[[11, 12, 13], [10, 11, 12]]]
  """
  keys = bias_HA.shape[1] + 1 - queries
  apart_TS = jnp.arange(keys)[None] - jnp.arange(queries)[:, None]
  return jnp.take(bias_HA, apart_TS + queries - 1, axis=1)


def all_scores(q_BTHK: Array, k_BSHK: Array, how: How) -> Array:
  """float32 scores_BHTS as the softmax reads them, before the mask."""
  scores_BHTS = how.scores(q_BTHK, k_BSHK, how.w, scale=how.scale)
  if how.bias_HA is None:
    return scores_BHTS
  return scores_BHTS + spread_HTS(how.bias_HA, q_BTHK.shape[1])[None]


def allowed_BTS(mask_BTS: Array, how: How, T: int, S: int) -> Array:
  """The mask, and `how.sees` where there is one."""
  if how.sees is None:
    return mask_BTS
  return mask_BTS & how.sees(jnp.arange(T)[:, None], jnp.arange(S)[None])[None]


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


def mix(weights_BHTS: Array, v_BSHE: Array) -> Array:
  """mixed_BTHE: the weighted sum of the values, in the dtype of v."""
  return jnp.einsum(
    'BHTS,BSHE->BTHE', weights_BHTS.astype(v_BSHE.dtype), v_BSHE
  )


def attention(
  q_BTHK: Array, k_BSHK: Array, v_BSHE: Array, mask_BTS: Array, how: How
) -> Array:
  """softmax(scale * scores(q, k) + bias) v of each head.

  Every implementation has this signature; this one is the formula.

  Args:
    q_BTHK: queries.
    k_BSHK: keys.
    v_BSHE: values; E need not equal K.
    mask_BTS: bool, true where a query may see a key; axes of size 1 repeat.
    how: scale, scores, bias, dropout, and the order of positions.

  Returns:
    mixed_BTHE in the dtype of v.

  A query near one key reads that key's value, as in a dictionary:

  >>> k = jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 2, 1, 2)
  >>> v = jnp.array([7.0, 9.0]).reshape(1, 2, 1, 1)
  >>> q = jnp.array([0.0, 1.0]).reshape(1, 1, 1, 2)
  >>> see_all = jnp.ones((1, 1, 2), bool)
  >>> attention(q, k, v, see_all, How(scale=100.0)).item()
  9.0

  Reference: section 3.2.1, eq. 1.
  """
  mask_BTS = allowed_BTS(mask_BTS, how, q_BTHK.shape[1], k_BSHK.shape[1])
  weights_BHTS = attention_weights(all_scores(q_BTHK, k_BSHK, how), mask_BTS)
  if how.drop is not None:
    weights_BHTS = randomness.dropout(weights_BHTS, *how.drop)
  return mix(weights_BHTS, v_BSHE)


def not_later(t: Array, s: Array) -> Array:
  """True where the key at s is not after the query at t (3.2.3)."""
  return s <= t


class Sight(NamedTuple):
  """Which target tokens a target token may see.

  mask_BTS: of the tokens that are there [B, T], for all queries alike.
  sees: of `How`.
  """

  mask_BTS: Callable[[Array], Array]
  sees: Sees | None = None


# causal_mask. With it no real token sees padding: padding comes later.
CAUSAL_MASKS = {
  'present': Sight(lambda real_BT: jnp.ones((1, 1, 1), bool), not_later),
  'absent': Sight(lambda real_BT: real_BT[:, None]),
}
