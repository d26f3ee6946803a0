"""The distribution of initial values, by what a parameter is for (pure).

The fans are given, never read off a shape: in `w_q_DHK` the fan-in is D and
the fan-out H*K, which no library can know from three numbers.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from transformer_jax.nn import randomness

Draw = Callable[..., Array]


def uniform(bound: Callable[[int, int], float]) -> Draw:
  """Uniform in +-bound(fan_in, fan_out)."""

  def draw(key, shape, fan_in, fan_out):
    limit = jnp.float32(bound(fan_in, fan_out))
    return (2.0 * randomness.uniform(key, shape) - 1.0) * limit

  return draw


def normal(deviation: Callable[[int, int], float]) -> Draw:
  """Normal of standard deviation deviation(fan_in, fan_out)."""

  def draw(key, shape, fan_in, fan_out):
    scale = jnp.float32(deviation(fan_in, fan_out))
    return randomness.normal(key, shape) * scale

  return draw


def constant(value: float) -> Draw:
  def draw(key, shape, fan_in, fan_out):
    del key, fan_in, fan_out
    return jnp.full(shape, value, jnp.float32)

  return draw


def glorot(gain: float = 1.0) -> Draw:
  """Uniform of variance gain^2 * 2 / (fan_in + fan_out) (Glorot 2010)."""
  return uniform(lambda i, o: gain * math.sqrt(6 / (i + o)))


def identity() -> Draw:
  """The unit matrix, of each head where there are heads."""

  def draw(key, shape, fan_in, fan_out):
    del key, fan_in, fan_out
    return jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=jnp.float32), shape)

  return draw


def _rsqrt_fan_in(key, shape, fan_in, fan_out):
  del key, fan_out
  return jnp.full(shape, fan_in**-0.5, jnp.float32)


_NORMAL_OUT = normal(lambda fan_in, fan_out: fan_out**-0.5)
_FAN_IN = uniform(lambda fan_in, fan_out: fan_in**-0.5)


def as_first_head(draw: Draw, letters: str) -> Draw:
  """`draw`, and then every head as the first one.

    w[..., h, ...] = draw[..., 0, ...]

  Args:
    draw: of the parameter.
    letters: of its axes; without an H nothing is changed.

  >>> from transformer_jax.nn.randomness import seed_key
  >>> draw = as_first_head(glorot(), 'DHK')
  >>> w_DHK = draw(seed_key(0), (4, 2, 3), 4, 6)
  >>> bool((w_DHK[:, 1] == glorot()(seed_key(0), (4, 2, 3), 4, 6)[:, 0]).all())
  True
  """
  if 'H' not in letters:
    return draw

  def alike(key, shape, fan_in, fan_out):
    drawn = draw(key, shape, fan_in, fan_out)
    axis = letters.index('H')
    return jnp.broadcast_to(jnp.take(drawn, jnp.array([0]), axis), shape)

  return alike


# Parameters that only an ablation adds start the same under every recipe; where
# possible so that the model starts equal to the paper's.
# The parameter of a score starts as its entry says, in `attention.SCORES`.
_ADDED = {
  'scale_H': _rsqrt_fan_in,
  'w_bias_UH': constant(0.0),
  'join_identity': identity(),
  'join_random': glorot(),
}

# {initialization: {what a parameter is for: its distribution}}
INITIALIZATIONS: dict[str, dict[str, Draw]] = {
  # The authors' code: Glorot for every matrix, biases zero, embeddings normal
  # of variance 1/d_model so that sqrt(d_model) times them has variance one.
  'tensor2tensor': {
    'attention_input': glorot(),
    'attention_output': glorot(),
    'feed_forward': glorot(),
    'feed_forward_bias': constant(0.0),
    'embedding': _NORMAL_OUT,
    'unembedding': _NORMAL_OUT,
    'positions': _NORMAL_OUT,
    **_ADDED,
  },
  # Queries, keys and values of half the variance and a feed-forward of fan-in
  # bounds: branches start smaller against the residual.
  'fairseq': {
    'attention_input': glorot(2**-0.5),
    'attention_output': glorot(),
    'feed_forward': _FAN_IN,
    'feed_forward_bias': _FAN_IN,
    'embedding': _NORMAL_OUT,
    'unembedding': _NORMAL_OUT,
    'positions': _NORMAL_OUT,
    **_ADDED,
  },
}

# query_key_init: recipe -> how the query and key weights W_DHK start. Their
# fans are D and H*K. Under fan_in and inputs of unit variance a query and a
# key have unit variance, and q . k has variance d_k, as footnote 4 supposes;
# the authors' fan_avg gives d_k (2 D / (D + H K))^2, the same where H K = D.
QUERY_KEY_INITS: dict[str, Callable[[dict[str, Draw]], Draw]] = {
  'recipe': lambda recipe: recipe['attention_input'],
  'fan_in': lambda recipe: uniform(lambda i, o: math.sqrt(3 / i)),
  'fan_avg': lambda recipe: glorot(),
}

# head_init: (draw, letters) -> how a parameter of queries, keys, values or
# scores starts. W_O is each head's own, so that training can tell them apart.
HEAD_INITS: dict[str, Callable[[Draw, str], Draw]] = {
  'own': lambda draw, letters: draw,
  'alike': as_first_head,
}
