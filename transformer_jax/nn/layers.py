"""The layers of figure 1, as Flax modules: parameters here, maths elsewhere.

A parameter is named by its letters (`w_q_DHK`) and drawn from its path. There
are no biases in attention, as in the authors' code (tensor2tensor's
`transformer_base_v1`); the feed-forward has both of eq. 2, a norm has gain and
bias, the embeddings and the pre-softmax product have none.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.config import SITES, ModelConfig
from transformer_jax.nn import (
  attention,
  norms,
  positions,
  projections,
  randomness,
)
from transformer_jax.nn.implementations import score_shape
from transformer_jax.nn.initializers import (
  HEAD_INITS,
  INITIALIZATIONS,
  QUERY_KEY_INITS,
  Draw,
)
from transformer_jax.nn.module import Dropout, Module, within

ACTIVATIONS = {'relu': jax.nn.relu, 'gelu': jax.nn.gelu, 'silu': jax.nn.silu}


def site_scales(config: ModelConfig) -> attention.Scales:
  """The factor on the scores of each site, as the config has it."""
  return attention.Scales(
    **{
      site: attention.SCALES[config.at('scale', site)].factor(config.d_k)
      for site in SITES
    }
  )


# Where the attention of each site is in the tree of parameters.
SITE_PATHS = {
  'encoder_self': ('encoder', 'layers', 'self_attention'),
  'decoder_self': ('decoder', 'layers', 'self_attention'),
  'cross': ('decoder', 'layers', 'cross_attention'),
}


def query_rates(config: ModelConfig) -> dict[str, float]:
  """{path: factor on its learning rate} where a scale is folded into it."""
  rates = {}
  for site, path in SITE_PATHS.items():
    fold = attention.SCALES[config.at('scale', site)].fold(config.d_k)
    rates['/'.join((*path, 'w_q_DHK'))] = fold.rate
  return {path: rate for path, rate in rates.items() if rate != 1.0}


class LayerContext(NamedTuple):
  """What a stack tells all its layers beside x.

  scales: of the scores at each site.
  real_BT: which of the positions hold a token; axes of size 1 repeat.
  turn: angles of the positions for queries and keys of self-attention, if any.
  bias_HA: added to the scores of self-attention by distance, if anything is.
  sees: which positions may see which in self-attention; None: any.
  """

  scales: attention.Scales
  real_BT: Array
  turn: positions.Turn | None = None
  bias_HA: Array | None = None
  sees: attention.Sees | None = None


class Norm(Module):
  """The norm of config.norm, in float32; batch norm keeps running moments.

  It takes a batch's own moments where the collection `statistics` may change,
  which is in training only, and the running ones elsewhere.
  """

  def setup(self):
    rule, shape = norms.NORMS[self.config.norm], (self.config.d_model,)
    start = {'g_D': jnp.ones, 'b_D': jnp.zeros}
    start |= {'mean_D': jnp.zeros, 'variance_D': jnp.ones}
    # Bind `name` now: the draw runs after the loop has ended.
    self.own_D = [
      self.own(name, lambda _, name=name: start[name](shape, jnp.float32))
      for name in rule.parameters
    ]
    self.running = [
      self.variable('statistics', name, start[name], shape, jnp.float32)
      for name in rule.statistics
    ]

  def __call__(self, x_BTD: Array, context: LayerContext) -> Array:
    x = x_BTD.astype(jnp.float32)
    rule = norms.NORMS[self.config.norm]
    kept = [self.moments(x, context.real_BT)] if rule.statistics else []
    return rule.apply(x, *self.own_D, *kept).astype(x_BTD.dtype)

  def moments(self, x_BTD: Array, real_BT: Array) -> norms.Moments:
    """Those of the batch when training, which also go into the running ones."""
    before = norms.Moments(*(entry.value for entry in self.running))
    if self.is_initializing() or not self.is_mutable_collection('statistics'):
      return before
    found = norms.moments(x_BTD, real_BT)
    after = norms.running(before, jax.lax.stop_gradient(found), real_BT)
    for entry, value in zip(self.running, after, strict=True):
      entry.value = value
    return found


class MultiHeadAttention(Module):
  """H attentions side by side, summed through W_O (section 3.2.2).

  Attributes:
    config: of the model.
    site: one of SITES.
    attention_fn: computes `attention.attention`, in its way.
  """

  site: str
  attention_fn: Callable[..., Array]

  def setup(self):
    c = self.config
    D, H, K, E = c.d_model, c.heads, c.d_k, c.d_v
    names = projections.PROJECTIONS[c.projections]
    recipe = INITIALIZATIONS[c.initialization]
    inputs = recipe['attention_input']
    query_key = QUERY_KEY_INITS[c.query_key_init](recipe)
    scale = attention.SCALES[c.at('scale', self.site)]
    starts = {
      'w_q_DHK': (lambda *args: scale.fold(K).initial * query_key(*args), K),
      'w_k_DHK': (query_key, K),
      'w_v_DHE': (inputs, E),
    }
    made = {
      name: self._of_heads(name, draw, (D, H, width), (D, H * width))
      for name, (draw, width) in starts.items()
      if name in names
    }
    self.w_q, self.w_k, self.w_v = (made.get(name) for name in names)
    self.w_o = self._first(
      projections.OUTPUT_PROJECTIONS[c.output_projection],
      'attention_output',
      (H, E, D),
      (H * E, D),
    )
    self.scale_H = self._first(scale.parameters, 'scale_H', (H,), (K, K))
    self.w_score = self._of_score(attention.SCORES[c.score])

  def _first(self, names: tuple[str, ...], role, shape, fans) -> Array | None:
    """The one parameter named, or None where none is."""
    made = [self.parameter(name, role, shape, fans) for name in names]
    return next(iter(made), None)

  def _of_heads(self, name: str, draw: Draw, shape, fans) -> Array:
    """A parameter that starts as config.head_init says."""
    start = HEAD_INITS[self.config.head_init]
    return self.drawn(name, start(draw, name.rpartition('_')[2]), shape, fans)

  def _of_score(self, score: attention.Score) -> Array | None:
    """The parameter of the score, or None where it has none."""
    if not score.parameter:
      return None
    H, K = self.config.heads, self.config.d_k
    shape = score_shape(self.config.score, score, heads=H, d_k=K)
    return self._of_heads(score.parameter, score.draw, shape, (K, K))

  def keys_values(
    self, y_BSD: Array, turn: positions.Turn | None = None
  ) -> tuple[Array, Array]:
    """k_BSHK, turned if asked, and v_BSHE of what is attended to."""
    heads = self.config.heads
    k_BSHK = projections.project(y_BSD, self.w_k, heads=heads)
    v_BSHE = projections.project(y_BSD, self.w_v, heads=heads)
    return _turned(k_BSHK, turn), v_BSHE

  def attend(
    self,
    x_BTD: Array,
    keys_values: tuple[Array, Array],
    mask_BTS: Array,
    context: LayerContext,
    dropout: Dropout | None,
  ) -> Array:
    """What each position of x reads from the keys and values.

    Args:
      x_BTD: positions that queries are made of.
      keys_values: `keys_values` of what is attended to, k_BSHK and v_BSHE.
      mask_BTS: bool, true where a query may see a key; axes of size 1 repeat.
      context: what all layers are told; its turn, bias and order of positions
        are of queries and keys of one sentence, None across two.
      dropout: of this site, or None when there is none.

    Returns:
      [B, T, D].
    """
    q_BTHK = projections.project(x_BTD, self.w_q, heads=self.config.heads)
    drop = None
    if dropout is not None and self.config.attention_dropout:
      drop = attention.Drop(dropout.key, dropout.attention)
    scale = getattr(context.scales, self.site)
    if self.scale_H is not None:
      scale = scale * self.scale_H
    how = attention.How(
      scale=scale,
      scores=attention.SCORES[self.config.score].scores,
      w=self.w_score,
      bias_HA=context.bias_HA,
      drop=drop,
      sees=context.sees,
    )
    q_BTHK = _turned(q_BTHK, context.turn)
    mixed_BTHE = self.attention_fn(q_BTHK, *keys_values, mask_BTS, how)
    return projections.join_heads(mixed_BTHE, self.w_o)


def _turned(x_BTHK: Array, by: positions.Turn | None) -> Array:
  return x_BTHK if by is None else positions.turn(x_BTHK, by)


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


# residual: (input of a sub-layer, its output) -> what goes on (3.1).
RESIDUALS = {'sum': lambda x, y: x + y, 'none': lambda x, y: y}


class NormOrder(NamedTuple):
  """Where the norms are; each (norm, x) -> x, normed or not.

  enter: what a sub-layer is given.
  leave: what becomes of its residual sum.
  finish: what the last layer of a stack gives.
  """

  enter: Callable[..., Array] = lambda norm, x: x
  leave: Callable[..., Array] = lambda norm, x: x
  finish: Callable[..., Array] = lambda norm, x: x


def normed(norm: Callable[[Array], Array], x: Array) -> Array:
  return norm(x)


# norm_order: where norms are (3.1). Pre-norm leaves the residual stream
# unnormed: one more norm at the end.
NORM_ORDERS = {
  'post': NormOrder(leave=normed),
  'pre': NormOrder(enter=normed, finish=normed),
}


class Residual(Module):
  """Adds what a sub-layer computes to its input, with norm and dropout.

  post: norm(x + dropout(f(x))), section 3.1. pre: x + dropout(f(norm(x))).
  """

  def setup(self):
    self.norm = Norm(self.config)

  def enter(self, x_BTD: Array, context: LayerContext) -> Array:
    """What the sub-layer is given."""
    norm = functools.partial(self.norm, context=context)
    return NORM_ORDERS[self.config.norm_order].enter(norm, x_BTD)

  def leave(
    self,
    x_BTD: Array,
    y_BTD: Array,
    context: LayerContext,
    dropout: Dropout | None,
  ) -> Array:
    """The sum of the sub-layer's input x and its output y."""
    y_BTD = drop_residual(y_BTD, dropout)
    sum_BTD = RESIDUALS[self.config.residual](x_BTD, y_BTD)
    norm = functools.partial(self.norm, context=context)
    return NORM_ORDERS[self.config.norm_order].leave(norm, sum_BTD)


def drop_residual(x_BTD: Array, dropout: Dropout | None) -> Array:
  """Dropout at the rate P_drop of section 5.4."""
  if dropout is None:
    return x_BTD
  key = randomness.at(dropout.key, 'residual')
  return randomness.dropout(x_BTD, key, dropout.residual)


class EncoderLayer(Module):
  """Self-attention, then feed-forward (3.1)."""

  attention_fn: Callable[..., Array] = attention.attention

  def setup(self):
    self.self_attention = MultiHeadAttention(
      self.config, 'encoder_self', self.attention_fn
    )
    self.self_attention_sum = Residual(self.config)
    self.feed_forward = FeedForward(self.config)
    self.feed_forward_sum = Residual(self.config)

  def __call__(
    self,
    x_BSD: Array,
    mask_BTS: Array,
    context: LayerContext,
    dropout: Dropout | None,
  ) -> Array:
    """One layer.

    Args:
      x_BSD: source positions.
      mask_BTS: bool, true where a source position may see another; axes of
        size 1 repeat.
      context: what all layers are told.
      dropout: of this layer, or None when there is none.

    Returns:
      [B, S, D].
    """
    site = within(dropout, 'self_attention')
    h_BSD = self.self_attention_sum.enter(x_BSD, context)
    keys_values = self.self_attention.keys_values(h_BSD, context.turn)
    h_BSD = self.self_attention.attend(
      h_BSD, keys_values, mask_BTS, context, site
    )
    x_BSD = self.self_attention_sum.leave(x_BSD, h_BSD, context, site)

    site = within(dropout, 'feed_forward')
    h_BSD = self.feed_forward_sum.enter(x_BSD, context)
    h_BSD = self.feed_forward(h_BSD, site)
    return self.feed_forward_sum.leave(x_BSD, h_BSD, context, site)

  def declare(self) -> None:
    """Creates every parameter; what is computed on these zeros is not used."""
    x_BSD = jnp.zeros((1, 1, self.config.d_model), self.dtype)
    see_BTS = jnp.ones((1, 1, 1), bool)
    context = LayerContext(site_scales(self.config), see_BTS[0])
    self(x_BSD, see_BTS, context, None)


class Past(NamedTuple):
  """Keys and values of earlier target positions, and where the next go."""

  k_BSHK: Array
  v_BSHE: Array
  index: Array


class DecoderLayer(Module):
  """Masked self-attention, attention to the encoder, feed-forward (3.1)."""

  attention_fn: Callable[..., Array] = attention.attention

  def setup(self):
    self.self_attention = MultiHeadAttention(
      self.config, 'decoder_self', self.attention_fn
    )
    self.self_attention_sum = Residual(self.config)
    self.cross_attention = MultiHeadAttention(
      self.config, 'cross', self.attention_fn
    )
    self.cross_attention_sum = Residual(self.config)
    self.feed_forward = FeedForward(self.config)
    self.feed_forward_sum = Residual(self.config)

  def __call__(
    self,
    y_BTD: Array,
    self_mask_BTS: Array,
    memory_keys_values: tuple[Array, Array],
    memory_mask_BTS: Array,
    context: LayerContext,
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
      context: what all layers are told.
      past: keys and values of earlier target positions, S long in all.
      dropout: or None when there is none.

    Returns:
      [B, T, D], and the self-attention's keys and values, the past's included.
    """
    site = within(dropout, 'self_attention')
    h_BTD = self.self_attention_sum.enter(y_BTD, context)
    keys_values = self.self_attention.keys_values(h_BTD, context.turn)
    if past is not None:
      k_BSHK, v_BSHE = keys_values
      keys_values = (
        jax.lax.dynamic_update_slice_in_dim(past.k_BSHK, k_BSHK, past.index, 1),
        jax.lax.dynamic_update_slice_in_dim(past.v_BSHE, v_BSHE, past.index, 1),
      )
    h_BTD = self.self_attention.attend(
      h_BTD, keys_values, self_mask_BTS, context, site
    )
    y_BTD = self.self_attention_sum.leave(y_BTD, h_BTD, context, site)

    site = within(dropout, 'cross_attention')
    h_BTD = self.cross_attention_sum.enter(y_BTD, context)
    h_BTD = self.cross_attention.attend(
      h_BTD,
      memory_keys_values,
      memory_mask_BTS,
      # Order, distances and angles are within one sentence, not across two.
      context._replace(turn=None, bias_HA=None, sees=None),
      site,
    )
    y_BTD = self.cross_attention_sum.leave(y_BTD, h_BTD, context, site)

    site = within(dropout, 'feed_forward')
    h_BTD = self.feed_forward_sum.enter(y_BTD, context)
    h_BTD = self.feed_forward(h_BTD, site)
    return self.feed_forward_sum.leave(y_BTD, h_BTD, context, site), keys_values

  def cross_keys_values(self, memory_BSD: Array) -> tuple[Array, Array]:
    """k_BSHK and v_BSHE of the encoder's output."""
    return self.cross_attention.keys_values(memory_BSD)

  def declare(self) -> None:
    """Creates every parameter; what is computed on these zeros is not used."""
    y_BTD = jnp.zeros((1, 1, self.config.d_model), self.dtype)
    see_BTS = jnp.ones((1, 1, 1), bool)
    context = LayerContext(site_scales(self.config), see_BTS[0])
    self(y_BTD, see_BTS, self.cross_keys_values(y_BTD), see_BTS, context)
