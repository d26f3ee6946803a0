"""Do heads see different things, and which of them does the model need?

Measures of one batch: how far apart the weights of two heads are, and what the
loss becomes when a head's output is nothing. Their control is a model whose
heads all begin alike: `model.head_init`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.ablation.probes import seen_pairs
from transformer_jax.config import SITES, Config
from transformer_jax.nn.attention import How
from transformer_jax.nn.transformer import Transformer
from transformer_jax.nn.watch import Place, watch, weights_seen
from transformer_jax.training.state import Numbers, loss_function


def distances(weights_BHTS: Array, see_BTS: Array) -> Array:
  """Jensen-Shannon distance of every two heads, mean over rows.

    sqrt(H((p + q) / 2) - (H(p) + H(q)) / 2), entropies in bits

  Args:
    weights_BHTS: rows sum to one.
    see_BTS: bool, true where a query that is no padding may see a key; rows
      with a single key, in which no two heads can differ, do not count.

  Returns:
    [H, H] between 0, the same weights, and 1, no key in common.

  >>> one, other = [1.0, 0.0], [0.0, 1.0]
  >>> weights = jnp.array([[[one], [other], [one]]])
  >>> distances(weights, jnp.ones((1, 1, 2), bool)).tolist()
  [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]

  Reference: Lin 1991; Endres and Schindelin 2003.
  """
  choice_BT = jnp.sum(see_BTS, axis=-1) > 1
  rows = jnp.maximum(jnp.sum(choice_BT), 1)
  own_BHT = _bits(weights_BHTS)

  def to_one(one_BTS: Array) -> Array:
    both_BHT = _bits((weights_BHTS + one_BTS[:, None]) / 2)
    mean_BHT = (own_BHT + _bits(one_BTS)[:, None]) / 2
    # Equal rows can come out a rounding below zero.
    far_BHT = jnp.sqrt(jnp.maximum(both_BHT - mean_BHT, 0.0))
    far_BHT = jnp.where(choice_BT[:, None], far_BHT, 0.0)
    return jnp.sum(far_BHT, axis=(0, 2)) / rows

  return jax.lax.map(to_one, jnp.swapaxes(weights_BHTS, 0, 1))


def _bits(p: Array) -> Array:
  """Entropy over the last axis."""
  return -jnp.sum(p * jnp.log2(jnp.where(p > 0, p, 1.0)), axis=-1)


def head_distances(
  config: Config, model: Transformer, params: Any, batch: Any, numbers: Numbers
) -> dict[str, np.ndarray]:
  """{site: [N, H, H]}, the distance of every two heads of a layer."""

  def keep(place: Place, weights_BHTS, mask_BTS):
    return distances(weights_BHTS, seen_pairs(place.site, mask_BTS, batch))

  def measure(params, numbers):
    _, seen = watch(
      model,
      lambda watched: loss_function(config, watched)(
        params, batch, None, numbers
      ),
      weights_seen(keep),
    )
    return seen.sites

  return jax.device_get(jax.jit(measure)(params, numbers))


def knock_out(
  config: Config, model: Transformer, params: Any, batch: Any, numbers: Numbers
) -> dict[str, np.ndarray]:
  """{site: [N, H]}, by how much the loss rises without a head.

  The output of the head is set to zero for every token, before W_O. Nothing is
  trained again. The loss is that of the references, nats a token, without
  smoothing.
  """
  N, H = config.model.layers, config.model.heads
  whole = {site: np.ones((N, H), np.float32) for site in SITES}
  kept = {site: [whole[site]] for site in SITES}
  for site in SITES:
    for layer in range(N):
      for head in range(H):
        without = whole[site].copy()
        without[layer, head] = 0
        for other in SITES:
          kept[other].append(without if other == site else whole[other])

  def look(place: Place, q_BTHK, k_BSHK, v_BSHE, mask_BTS, how: How):
    mixed_BTHE = model.attention_fn(q_BTHK, k_BSHK, v_BSHE, mask_BTS, how)
    keep_H = place.inputs.astype(mixed_BTHE.dtype)
    return mixed_BTHE * keep_H[None, None, :, None], ()

  def losses(params, numbers, kept):
    def one(inputs):
      sums, _ = watch(
        model,
        lambda watched: loss_function(config, watched)(
          params, batch, None, numbers
        ),
        look,
        inputs,
      )
      return sums.plain / jnp.maximum(sums.tokens, 1.0)

    return jax.lax.map(one, kept)

  stacked = {site: np.stack(every) for site, every in kept.items()}
  found = np.asarray(jax.jit(losses)(params, numbers, stacked))
  rises = (found[1:] - found[0]).reshape(len(SITES), N, H)
  return dict(zip(SITES, rises, strict=True))
