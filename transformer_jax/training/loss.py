"""Label-smoothed cross entropy, as sums and counts (pure; section 5.4).

Sums, never means: padding, rows of weight zero, the cut into chunks and the
number of devices then cannot change the loss.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.data.tokens import PAD


class TokenLosses(NamedTuple):
  """Per target token; zero where the target is padding.

  smoothed: cross entropy with the smoothed distribution, nats (float32).
  plain: -log p(target), nats (float32).
  correct: 1 where the likeliest token is the target (float32).
  """

  smoothed: Array
  plain: Array
  correct: Array


class LossSums(NamedTuple):
  """Sums over target tokens, float32 scalars; see `TokenLosses`."""

  smoothed: Array
  plain: Array
  correct: Array
  tokens: Array


def token_losses(
  logits_MV: Array, targets_M: Array, *, smoothing: Array | float
) -> TokenLosses:
  """Cross entropy of M tokens against the smoothed target distribution.

    q(v) = (1 - smoothing) [v = target] + smoothing / V
    loss = -sum_v q(v) log softmax(logits)(v)

  Args:
    logits_MV: float32.
    targets_M: int32; PAD is not scored.
    smoothing: epsilon_ls in [0, 1).

  Returns:
    TokenLosses, each [M].

  >>> even = jnp.zeros((1, 4))
  >>> round(token_losses(even, jnp.array([3]), smoothing=0.1).plain.item(), 4)
  1.3863

  Reference: section 5.4; Szegedy et al. 2015, section 7. The uniform part is
  over all V classes, the target among them (some codes share it among V-1).
  """
  maximum_M1 = jnp.max(logits_MV, axis=-1, keepdims=True)
  shifted_MV = logits_MV - maximum_M1
  log_z_M = jnp.log(jnp.sum(jnp.exp(shifted_MV), axis=-1))
  target_M = jnp.take_along_axis(shifted_MV, targets_M[:, None], axis=-1)[:, 0]
  mean_M = jnp.mean(shifted_MV, axis=-1)
  scored_M = (targets_M != PAD).astype(jnp.float32)
  smoothed_M = log_z_M - (1 - smoothing) * target_M - smoothing * mean_M
  return TokenLosses(
    smoothed=smoothed_M * scored_M,
    plain=(log_z_M - target_M) * scored_M,
    # The likeliest token's shifted logit is 0 (ties count as correct).
    correct=(target_M >= 0).astype(jnp.float32) * scored_M,
  )


def _sums(losses: TokenLosses, targets_M: Array) -> LossSums:
  return LossSums(
    smoothed=jnp.sum(losses.smoothed),
    plain=jnp.sum(losses.plain),
    correct=jnp.sum(losses.correct),
    tokens=jnp.sum((targets_M != PAD).astype(jnp.float32)),
  )


def _chunks(h_MD: Array, targets_M: Array, size: int) -> tuple[Array, Array]:
  """h and targets cut into [chunks, size, ...]; the last one is padded."""
  short = -h_MD.shape[0] % size
  h_MD = jnp.pad(h_MD, ((0, short), (0, 0)))
  targets_M = jnp.pad(targets_M, (0, short), constant_values=PAD)
  return h_MD.reshape(-1, size, h_MD.shape[1]), targets_M.reshape(-1, size)


def _logits(h_MD: Array, w_VD: Array) -> Array:
  return jnp.einsum('MD,VD->MV', h_MD, w_VD, preferred_element_type=jnp.float32)


def projected_losses(
  h_MD: Array, w_VD: Array, targets_M: Array, *, chunk: int
) -> TokenLosses:
  """`token_losses` of the logits h w^T, unsmoothed, `chunk` tokens at a time.

  Args:
    h_MD: what the decoder gives for M tokens.
    w_VD: the pre-softmax matrix, in the dtype of h.
    targets_M: int32; PAD is not scored.
    chunk: tokens at a time.

  Returns:
    TokenLosses, each [M].
  """

  def losses(slice_: tuple[Array, Array]) -> TokenLosses:
    h_CD, targets_C = slice_
    return token_losses(_logits(h_CD, w_VD), targets_C, smoothing=0.0)

  found = jax.lax.map(losses, _chunks(h_MD, targets_M, chunk))
  return jax.tree.map(lambda x: x.reshape(-1)[: targets_M.size], found)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def projected_cross_entropy(
  h_MD: Array,
  w_VD: Array,
  targets_M: Array,
  smoothing: Array | float,
  chunk: int,
) -> LossSums:
  """`token_losses` of the logits h w^T, summed, `chunk` tokens at a time.

  The logits of a whole batch are the largest array of a training step; here
  only [chunk, V] of them exist. The gradient is made in the same pass (it is
  softmax minus target, known once the logits are), so nothing is kept for the
  backward pass but its result.

  Args:
    h_MD: what the decoder gives for M tokens.
    w_VD: the pre-softmax matrix, in the dtype of h.
    targets_M: int32; PAD is not scored.
    smoothing: epsilon_ls; no gradient flows to it.
    chunk: tokens at a time.

  Returns:
    LossSums; only `smoothed` has a gradient.
  """

  def body(sums, slice_):
    h_CD, targets_C = slice_
    losses = token_losses(_logits(h_CD, w_VD), targets_C, smoothing=smoothing)
    return jax.tree.map(jnp.add, sums, _sums(losses, targets_C)), None

  zero = LossSums(*[jnp.zeros((), jnp.float32)] * 4)
  return jax.lax.scan(body, zero, _chunks(h_MD, targets_M, chunk))[0]


def _forward(h_MD, w_VD, targets_M, smoothing, chunk):
  """Sums and gradients in one pass over the chunks.

  With e = exp(logits - max) and z its sum, dlogits = e / z - q. The part of q
  is not worth an array [chunk, V]: what is on the target is a row of w for
  dh and a row of h for dw, what is even is the mean of w and the sum of h.
  """
  V = w_VD.shape[0]
  mean_w_D = jnp.mean(w_VD.astype(jnp.float32), axis=0)

  def body(carry, slice_):
    sums, dw_VD = carry
    h_CD, targets_C = slice_
    logits_CV = _logits(h_CD, w_VD)
    losses = token_losses(logits_CV, targets_C, smoothing=smoothing)
    # The same exponentials as in `token_losses`: XLA makes them once.
    maximum_C1 = jnp.max(logits_CV, axis=-1, keepdims=True)
    e_CV = jnp.exp(logits_CV - maximum_C1)
    z_C1 = jnp.sum(e_CV, axis=-1, keepdims=True)
    e_CV = e_CV.astype(w_VD.dtype)
    scored_C1 = (targets_C != PAD).astype(jnp.float32)[:, None]

    mixed_CD = jnp.einsum(
      'CV,VD->CD', e_CV, w_VD, preferred_element_type=jnp.float32
    )
    target_CD = jnp.take(w_VD, targets_C, axis=0).astype(jnp.float32)
    dh_CD = mixed_CD / z_C1 - (1 - smoothing) * target_CD
    dh_CD = (dh_CD - smoothing * mean_w_D[None]) * scored_C1

    h_CD = h_CD.astype(jnp.float32) * scored_C1
    dw_VD += jnp.einsum(
      'CV,CD->VD',
      e_CV,
      (h_CD / z_C1).astype(w_VD.dtype),
      preferred_element_type=jnp.float32,
    )
    dw_VD = dw_VD.at[targets_C].add(-(1 - smoothing) * h_CD)
    sums = jax.tree.map(jnp.add, sums, _sums(losses, targets_C))
    return (sums, dw_VD), (dh_CD.astype(w_VD.dtype), jnp.sum(h_CD, axis=0))

  zero = LossSums(*[jnp.zeros((), jnp.float32)] * 4)
  start = (zero, jnp.zeros(w_VD.shape, jnp.float32))
  (sums, dw_VD), (dh_NCD, h_ND) = jax.lax.scan(
    body, start, _chunks(h_MD, targets_M, chunk)
  )
  dw_VD -= smoothing / V * jnp.sum(h_ND, axis=0)[None]
  dh_MD = dh_NCD.reshape(-1, h_MD.shape[1])[: h_MD.shape[0]]
  return sums, (dh_MD, dw_VD.astype(w_VD.dtype))


def _backward(chunk, saved, cotangent):
  del chunk
  dh_MD, dw_VD = saved
  factor = cotangent.smoothed
  return (
    dh_MD * factor.astype(dh_MD.dtype),
    dw_VD * factor.astype(dw_VD.dtype),
    None,
    None,
  )


projected_cross_entropy.defvjp(_forward, _backward)
