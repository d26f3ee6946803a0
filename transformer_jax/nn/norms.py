"""Normalisation of a position's vector (pure; section 3.1).

All are computed in float32. Letters: B batch, T positions, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-6  # as in the authors' code
# Of the running moments of batch norm. After 20 batches, where a study of 120
# steps evaluates first, an eighth of what they start from is left; at 0.99, as
# long runs have it, four fifths would be.
MOMENTUM = 0.9


class Moments(NamedTuple):
  """Mean and variance of each of D features over tokens."""

  mean_D: Array
  variance_D: Array


def layer_norm(x_BTD: Array, g_D: Array, b_D: Array) -> Array:
  """g (x - mean) / deviation + b, mean and deviation over D.

  Args:
    x_BTD: float32.
    g_D: gain.
    b_D: bias.

  Returns:
    float32 [B, T, D]. EPSILON is added to the variance, so that a position
    whose numbers are equal gives b.

  Reference: Ba et al. 2016; section 3.1 here.

  >>> x = jnp.array([[[1.0, 3.0]]])
  >>> layer_norm(x, jnp.ones(2), jnp.zeros(2)).round(3).tolist()
  [[[-1.0, 1.0]]]
  """
  centred = x_BTD - jnp.mean(x_BTD, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  scaled = centred * jax.lax.rsqrt(variance + EPSILON)
  return scaled * g_D[None, None] + b_D[None, None]


def rms_norm(x_BTD: Array, g_D: Array) -> Array:
  """g x / sqrt(mean of x^2 over D).

  Args:
    x_BTD: float32.
    g_D: gain.

  Returns:
    float32 [B, T, D].

  Reference: Zhang and Sennrich 2019, eq. 4.

  >>> rms_norm(jnp.array([[[3.0, 3.0]]]), jnp.ones(2)).round(3).tolist()
  [[[1.0, 1.0]]]
  """
  square = jnp.mean(jnp.square(x_BTD), axis=-1, keepdims=True)
  return x_BTD * jax.lax.rsqrt(square + EPSILON) * g_D[None, None]


def moments(x_BTD: Array, real_BT: Array) -> Moments:
  """Mean and variance over the real tokens of a batch.

  A token's value then depends on the others of its batch, and in a decoder on
  tokens after it: batch norm leaks the future through these two numbers, in
  training and only there.

  Args:
    x_BTD: float32.
    real_BT: bool, false at padding; axes of size 1 repeat.

  Returns:
    Moments; zeros when no token is real.
  """
  shape = x_BTD.shape[:2]
  weight_BTD = jnp.broadcast_to(real_BT, shape)[..., None].astype(x_BTD.dtype)
  tokens = jnp.maximum(jnp.sum(weight_BTD), 1.0)
  mean_D = jnp.sum(x_BTD * weight_BTD, axis=(0, 1)) / tokens
  squares_BTD = jnp.square(x_BTD - mean_D[None, None])
  return Moments(
    mean_D, jnp.sum(squares_BTD * weight_BTD, axis=(0, 1)) / tokens
  )


def running(old: Moments, new: Moments, real_BT: Array) -> Moments:
  """The exponential mean that evaluation uses.

  It begins at mean 0 and variance 1, of which MOMENTUM**n is left after n
  batches. A batch without real tokens leaves it unchanged.

  Args:
    old: moments so far.
    new: those of a batch.
    real_BT: bool, false at padding of that batch.
  """
  rate = (1 - MOMENTUM) * jnp.any(real_BT).astype(jnp.float32)
  return Moments(*(a + rate * (b - a) for a, b in zip(old, new, strict=True)))


def batch_norm(x_BTD: Array, g_D: Array, b_D: Array, own: Moments) -> Array:
  """g (x - mean) / deviation + b, mean and deviation over tokens.

  Args:
    x_BTD: float32.
    g_D: gain.
    b_D: bias.
    own: of the batch in training (`moments`), else the `running` ones.

  Returns:
    float32 [B, T, D].

  Reference: Ioffe and Szegedy 2015.

  >>> own = Moments(jnp.array([3.0]), jnp.array([4.0]))
  >>> x = jnp.array([[[1.0], [5.0]]])
  >>> batch_norm(x, jnp.ones(1), jnp.zeros(1), own).round(3).tolist()
  [[[-1.0], [1.0]]]
  """
  centred = x_BTD - own.mean_D[None, None]
  scaled = centred * jax.lax.rsqrt(own.variance_D + EPSILON)[None, None]
  return scaled * g_D[None, None] + b_D[None, None]


class Rule(NamedTuple):
  """A norm and what it needs.

  apply: (x_BTD, *its parameters) -> [B, T, D]; with Moments as last argument
    where it has statistics.
  parameters: names among `g_D`, gain, and `b_D`, bias.
  statistics: names of what it keeps of the tokens seen, or none.
  """

  apply: Callable[..., Array]
  parameters: tuple[str, ...] = ()
  statistics: tuple[str, ...] = ()


# norm (3.1): what the sub-layers' sums go through.
NORMS = {
  'layer': Rule(layer_norm, ('g_D', 'b_D')),
  'rms': Rule(rms_norm, ('g_D',)),
  'batch': Rule(batch_norm, ('g_D', 'b_D'), Moments._fields),
  'none': Rule(lambda x_BTD: x_BTD),
}
