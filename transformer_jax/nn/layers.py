"""The layers of figure 1, as Flax modules: parameters here, maths elsewhere.

A parameter is named by its letters (`w_q_DHK`) and drawn from its path. There
are no biases in attention, as in the authors' code (tensor2tensor's
`transformer_base_v1`); the feed-forward has both of eq. 2, a norm has gain and
bias, the embeddings and the pre-softmax product have none.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.config import ModelConfig
from transformer_jax.nn import attention, randomness
from transformer_jax.nn.initializers import INITIALIZATIONS

ACTIVATIONS = {'relu': jax.nn.relu, 'gelu': jax.nn.gelu, 'silu': jax.nn.silu}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
EPSILON = 1e-6  # of the layer norm, as in the authors' code


class Dropout(NamedTuple):
  """The key of this place in the model, and the rates (traced numbers)."""

  key: Array
  residual: Array | float
  attention: Array | float
  feed_forward: Array | float

  def at(self, site: str | Array) -> 'Dropout':
    """For the part `site` of this place: a name, or the number of a layer."""
    return self._replace(key=randomness.at(self.key, site))


class Module(nn.Module):
  """A Linen module whose parameters are drawn from their paths."""

  config: ModelConfig

  @property
  def dtype(self) -> Any:
    return DTYPES[self.config.compute_dtype]

  def parameter(
    self, name: str, role: str, shape: tuple[int, ...], fans: tuple[int, int]
  ) -> Array:
    """The array `name`, first drawn as config.initialization says of `role`.

    Args:
      name: with its letters.
      role: a key of INITIALIZATIONS[...].
      shape: of the array.
      fans: fan-in and fan-out.
    """
    draw = INITIALIZATIONS[self.config.initialization][role]
    value = self.own(name, lambda key: draw(key, shape, *fans))
    return value.astype(self.dtype)

  def own(self, name: str, draw: Callable[[Array], Any]) -> Any:
    """The parameter, or tree of parameters, `name`; drawn if it is not yet."""
    # Where it exists Linen would trace `draw` again, to compare the shapes.
    if self.has_variable('params', name):
      return self.get_variable('params', name)
    # The run's own key and the path, not Linen's key: that one counts calls.
    root: Any = self.scope
    key = root.root.rngs['params'].as_jax_rng()
    key = randomness.at(key, '/'.join((*self.path, name)))
    return self.param(name, lambda _: draw(key))


class LayerNorm(Module):
  """(x - mean) / deviation over D, times a gain, plus a bias; in float32."""

  def setup(self):
    shape = (self.config.d_model,)
    self.g_D = self.own('g_D', lambda _: jnp.ones(shape, jnp.float32))
    self.b_D = self.own('b_D', lambda _: jnp.zeros(shape, jnp.float32))

  def __call__(self, x_BTD: Array) -> Array:
    x = x_BTD.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(variance + EPSILON)
    gained = scaled * self.g_D[None, None] + self.b_D[None, None]
    return gained.astype(x_BTD.dtype)


class MultiHeadAttention(Module):
  """H attentions side by side, summed through W_O (section 3.2.2).

  Attributes:
    config: of the model.
    site: encoder_self, decoder_self or cross.
    mix: computes `attention.attention`, in its way.
  """

  site: str
  mix: Callable[..., Array]

  def setup(self):
    c = self.config
    D, H, K, E = c.d_model, c.heads, c.d_k, c.d_v
    wide = 'attention_input'
    self.w_q_DHK = self.parameter('w_q_DHK', wide, (D, H, K), (D, H * K))
    self.w_k_DHK = self.parameter('w_k_DHK', wide, (D, H, K), (D, H * K))
    self.w_v_DHE = self.parameter('w_v_DHE', wide, (D, H, E), (D, H * E))
    self.w_o_HED = self.parameter(
      'w_o_HED', 'attention_output', (H, E, D), (H * E, D)
    )
    score = attention.SCORES[c.score]
    self.w_score = None
    if score.parameter:
      sizes = dict(H=H, K=K, L=K)
      shape = tuple(sizes[axis] for axis in score.parameter.rpartition('_')[2])
      self.w_score = self.parameter(
        score.parameter, score.parameter, shape, (K, K)
      )

  def keys_values(self, y_BSD: Array) -> tuple[Array, Array]:
    """k_BSHK and v_BSHE of what is attended to."""
    k_BSHK = jnp.einsum('BSD,DHK->BSHK', y_BSD, self.w_k_DHK)
    v_BSHE = jnp.einsum('BSD,DHE->BSHE', y_BSD, self.w_v_DHE)
    return k_BSHK, v_BSHE

  def attend(
    self,
    x_BTD: Array,
    keys_values: tuple[Array, Array],
    mask_BTS: Array,
    dropout: Dropout | None,
  ) -> Array:
    """What each position of x reads from the keys and values: [B, T, D]."""
    q_BTHK = jnp.einsum('BTD,DHK->BTHK', x_BTD, self.w_q_DHK)
    drop = None
    if dropout is not None and self.config.attention_dropout:
      drop = attention.Drop(dropout.key, dropout.attention)
    mixed_BTHE = self.mix(
      q_BTHK,
      *keys_values,
      mask_BTS,
      scale=attention.SCALES[self.config.scale](self.config.d_k),
      scores=attention.SCORES[self.config.score].scores,
      w=self.w_score,
      drop=drop,
    )
    return jnp.einsum('BTHE,HED->BTD', mixed_BTHE, self.w_o_HED)


class FeedForward(Module):
  """activation(x W_1 + b_1) W_2 + b_2 at every position (3.3, eq. 2)."""

  def setup(self):
    D, F = self.config.d_model, self.config.d_ff
    role, bias = 'feed_forward', 'feed_forward_bias'
    self.w_1_DF = self.parameter('w_1_DF', role, (D, F), (D, F))
    self.b_1_F = self.parameter('b_1_F', bias, (F,), (D, F))
    self.w_2_FD = self.parameter('w_2_FD', role, (F, D), (F, D))
    self.b_2_D = self.parameter('b_2_D', bias, (D,), (F, D))

  def __call__(self, x_BTD: Array, dropout: Dropout | None) -> Array:
    h_BTF = jnp.einsum('BTD,DF->BTF', x_BTD, self.w_1_DF)
    h_BTF = ACTIVATIONS[self.config.activation](h_BTF + self.b_1_F[None, None])
    if dropout is not None and self.config.feed_forward_dropout:
      h_BTF = randomness.dropout(h_BTF, dropout.key, dropout.feed_forward)
    return (
      jnp.einsum('BTF,FD->BTD', h_BTF, self.w_2_FD) + self.b_2_D[None, None]
    )


# norm_order: what a sub-layer is given, and what becomes of what it gives.
ENTER = {'post': lambda norm, x: x, 'pre': lambda norm, x: norm(x)}
LEAVE = {
  'post': lambda norm, x, y: norm(x + y),
  'pre': lambda norm, x, y: x + y,
}


class Residual(Module):
  """Adds what a sub-layer computes to its input, with norm and dropout.

  post: norm(x + dropout(f(x))), section 3.1. pre: x + dropout(f(norm(x))).
  """

  def setup(self):
    self.norm = LayerNorm(self.config)

  def enter(self, x_BTD: Array) -> Array:
    """What the sub-layer is given."""
    return ENTER[self.config.norm_order](self.norm, x_BTD)

  def leave(self, x_BTD: Array, y_BTD: Array, dropout: Dropout | None) -> Array:
    """The sum of the sub-layer's input x and its output y."""
    y_BTD = drop_residual(y_BTD, dropout)
    return LEAVE[self.config.norm_order](self.norm, x_BTD, y_BTD)


def drop_residual(x_BTD: Array, dropout: Dropout | None) -> Array:
  """Dropout at the rate P_drop of section 5.4."""
  if dropout is None:
    return x_BTD
  key = randomness.at(dropout.key, 'residual')
  return randomness.dropout(x_BTD, key, dropout.residual)


def within(dropout: Dropout | None, site: str | Array) -> Dropout | None:
  return None if dropout is None else dropout.at(site)


class EncoderLayer(Module):
  """Self-attention, then feed-forward (3.1)."""

  mix: Callable[..., Array] = attention.attention

  def setup(self):
    self.self_attention = MultiHeadAttention(
      self.config, 'encoder_self', self.mix
    )
    self.self_attention_sum = Residual(self.config)
    self.feed_forward = FeedForward(self.config)
    self.feed_forward_sum = Residual(self.config)

  def __call__(
    self, x_BSD: Array, mask_BTS: Array, dropout: Dropout | None
  ) -> Array:
    site = within(dropout, 'self_attention')
    h_BSD = self.self_attention_sum.enter(x_BSD)
    keys_values = self.self_attention.keys_values(h_BSD)
    h_BSD = self.self_attention.attend(h_BSD, keys_values, mask_BTS, site)
    x_BSD = self.self_attention_sum.leave(x_BSD, h_BSD, site)

    site = within(dropout, 'feed_forward')
    h_BSD = self.feed_forward_sum.enter(x_BSD)
    h_BSD = self.feed_forward(h_BSD, site)
    return self.feed_forward_sum.leave(x_BSD, h_BSD, site)

  def declare(self) -> None:
    """Creates every parameter; what is computed on these zeros is not used."""
    x_BSD = jnp.zeros((1, 1, self.config.d_model), self.dtype)
    self(x_BSD, jnp.ones((1, 1, 1), bool), None)


class Past(NamedTuple):
  """Keys and values of earlier target positions, and where the next go."""

  k_BSHK: Array
  v_BSHE: Array
  index: Array


class DecoderLayer(Module):
  """Masked self-attention, attention to the encoder, feed-forward (3.1)."""

  mix: Callable[..., Array] = attention.attention

  def setup(self):
    self.self_attention = MultiHeadAttention(
      self.config, 'decoder_self', self.mix
    )
    self.self_attention_sum = Residual(self.config)
    self.cross_attention = MultiHeadAttention(self.config, 'cross', self.mix)
    self.cross_attention_sum = Residual(self.config)
    self.feed_forward = FeedForward(self.config)
    self.feed_forward_sum = Residual(self.config)

  def __call__(
    self,
    y_BTD: Array,
    self_mask_BTS: Array,
    memory_keys_values: tuple[Array, Array],
    memory_mask_BTS: Array,
    *,
    past: Past | None = None,
    dropout: Dropout | None = None,
  ) -> tuple[Array, tuple[Array, Array]]:
    """One layer.

    Args:
      y_BTD: target positions; with a past, those that follow it.
      self_mask_BTS: which target positions a target position may see.
      memory_keys_values: `cross_keys_values` of the encoder's output.
      memory_mask_BTS: which source positions it may see.
      past: keys and values of earlier target positions, S long in all.
      dropout: or None when there is none.

    Returns:
      [B, T, D], and the self-attention's keys and values, the past's included.
    """
    site = within(dropout, 'self_attention')
    h_BTD = self.self_attention_sum.enter(y_BTD)
    keys_values = self.self_attention.keys_values(h_BTD)
    if past is not None:
      k_BSHK, v_BSHE = keys_values
      keys_values = (
        jax.lax.dynamic_update_slice_in_dim(past.k_BSHK, k_BSHK, past.index, 1),
        jax.lax.dynamic_update_slice_in_dim(past.v_BSHE, v_BSHE, past.index, 1),
      )
    h_BTD = self.self_attention.attend(h_BTD, keys_values, self_mask_BTS, site)
    y_BTD = self.self_attention_sum.leave(y_BTD, h_BTD, site)

    site = within(dropout, 'cross_attention')
    h_BTD = self.cross_attention_sum.enter(y_BTD)
    h_BTD = self.cross_attention.attend(
      h_BTD, memory_keys_values, memory_mask_BTS, site
    )
    y_BTD = self.cross_attention_sum.leave(y_BTD, h_BTD, site)

    site = within(dropout, 'feed_forward')
    h_BTD = self.feed_forward_sum.enter(y_BTD)
    h_BTD = self.feed_forward(h_BTD, site)
    return self.feed_forward_sum.leave(y_BTD, h_BTD, site), keys_values

  def cross_keys_values(self, memory_BSD: Array) -> tuple[Array, Array]:
    """k_BSHK and v_BSHE of the encoder's output."""
    return self.cross_attention.keys_values(memory_BSD)

  def declare(self) -> None:
    """Creates every parameter; what is computed on these zeros is not used."""
    y_BTD = jnp.zeros((1, 1, self.config.d_model), self.dtype)
    see_BTS = jnp.ones((1, 1, 1), bool)
    self(y_BTD, see_BTS, self.cross_keys_values(y_BTD), see_BTS)
