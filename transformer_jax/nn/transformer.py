"""The encoder-decoder of figure 1: token ids in, logits out."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.config import ModelConfig
from transformer_jax.data.tokens import BOS, PAD
from transformer_jax.nn import attention, positions, randomness
from transformer_jax.nn.layers import (
  DecoderLayer,
  Dropout,
  EncoderLayer,
  LayerNorm,
  Module,
  Past,
  drop_residual,
  within,
)


class Memory(NamedTuple):
  """What the encoder made of the source."""

  memory_BSD: Array
  mask_BTS: Array  # [B, 1, S], false at padding


class Cache(NamedTuple):
  """What decoding one more token needs; the batch is axis 1 everywhere.

  `self_*` hold the target positions so far, T of them at most; `cross_*` the
  encoder's output as the decoder's layers see it.
  """

  self_k_NBTHK: Array
  self_v_NBTHE: Array
  cross_k_NBSHK: Array
  cross_v_NBSHE: Array
  source_mask_NBTS: Array  # [1, B, 1, S]


def shift_right(target_BT: Array) -> Array:
  """What the decoder reads: BOS, then the target without its last token."""
  return jnp.pad(target_BT[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)


EMBEDDING_SCALES = {'sqrt_d_model': math.sqrt, 'none': lambda d_model: 1.0}


class Embedding(Module):
  """A table of vectors, times sqrt(d_model) on the way in (3.4)."""

  vocabulary: int

  def setup(self):
    D, V = self.config.d_model, self.vocabulary
    self.w_VD = self.parameter('w_VD', 'embedding', (V, D), (V, D))

  def __call__(self, tokens_BT: Array) -> Array:
    scale = EMBEDDING_SCALES[self.config.embedding_scale](self.config.d_model)
    return jnp.take(self.w_VD, tokens_BT, axis=0) * self.dtype(scale)


# position: (Positions, length) -> [length, D] or more rows.
POSITIONS = {
  'sinusoid': lambda own, length: positions.sinusoid_TD(
    length, own.config.d_model
  ),
  'learned': lambda own, length: own.w_TD,
  'none': lambda own, length: jnp.zeros((length, own.config.d_model)),
}


class Positions(Module):
  """Joins the position code to the embeddings (3.5)."""

  def setup(self):
    c = self.config
    if c.position == 'learned':
      shape = (c.max_positions, c.d_model)
      self.w_TD = self.parameter('w_TD', 'positions', shape, shape)
    join, D = positions.JOINS[c.position_join], c.d_model
    maps = {
      name: self.parameter(name, join.role, (D, D), (D, D))
      for name in join.maps
    }
    self.w_token_DD = maps.get('w_token_DD')
    self.w_position_DD = maps.get('w_position_DD')

  def __call__(self, x_BTD: Array, start: Array | int, length: int) -> Array:
    """x, standing at positions start, start + 1, ... below `length`."""
    table = POSITIONS[self.config.position]
    table_TD = jnp.asarray(table(self, length), self.dtype)
    rows_TD = jax.lax.dynamic_slice_in_dim(table_TD, start, x_BTD.shape[1])
    join = positions.JOINS[self.config.position_join].join
    return join(x_BTD, rows_TD, self.w_token_DD, self.w_position_DD)


# layer_loop: how many of N layers are written out in the program at a time.
LAYER_LOOPS = {'scan': lambda layers: 1, 'unroll': lambda layers: layers}


class Stack(Module):
  """N equal layers, their parameters one tree with a leading N."""

  layer: type[EncoderLayer] | type[DecoderLayer]
  mix: Callable[..., Array]

  def setup(self):
    one = self.layer(self.config, self.mix, parent=None)

    def draw(key):
      numbers_N = jnp.arange(self.config.layers)
      keys_N = jax.vmap(lambda n: randomness.at(key, n))(numbers_N)
      return jax.vmap(
        lambda key: one.init({'params': key}, method='declare')['params']
      )(keys_N)

    self.layers = self.own('layers', draw)

  def __call__(
    self,
    x_BTD: Array,
    apply: Callable,
    inputs_N: Any = None,
    dropout: Dropout | None = None,
  ) -> tuple[Array, Any]:
    """x through the layers, first to last.

    Args:
      x_BTD: what the first layer reads.
      apply: (layer bound to its parameters, x_BTD, its slice of inputs_N, its
        dropout) -> (x_BTD, what to keep of the layer).
      inputs_N: arrays with a leading N, or None.
      dropout: of the stack.

    Returns:
      What the last layer gives, and what was kept, with a leading N.
    """
    one = self.layer(self.config, self.mix, parent=None)

    def body(x_BTD, slice_N):
      n, params, inputs = slice_N
      layer = one.bind({'params': params})
      return apply(layer, x_BTD, inputs, within(dropout, n))

    if self.config.remat == 'layer':
      body = jax.checkpoint(body)
    numbers_N = jnp.arange(self.config.layers)
    unroll = LAYER_LOOPS[self.config.layer_loop](self.config.layers)
    return jax.lax.scan(
      body, x_BTD, (numbers_N, self.layers, inputs_N), unroll=unroll
    )


class Transformer(Module):
  """The model of section 3.

  Attributes:
    config: of the model.
    source_vocabulary: tokens that the encoder knows.
    target_vocabulary: V, tokens that the decoder knows; the same ones when all
      embeddings are tied.
    attend: computes `attention.attention`, in its way; see
      `implementations.choose`.
  """

  source_vocabulary: int
  target_vocabulary: int
  attend: Callable[..., Array] = attention.attention

  def setup(self):
    c = self.config
    V = self.target_vocabulary
    if c.tie == 'all':
      self.embedding = Embedding(c, V)
      self.source_embedding = self.target_embedding = self.embedding
    else:
      self.source_embedding = Embedding(c, self.source_vocabulary)
      self.target_embedding = Embedding(c, V)
    if c.tie == 'none':
      shape = (V, c.d_model)
      self.unembedding_VD = self.parameter(
        'unembedding_VD', 'unembedding', shape, shape
      )
    self.source_positions = Positions(c)
    self.target_positions = Positions(c)
    self.encoder = Stack(c, EncoderLayer, self.attend)
    self.decoder = Stack(c, DecoderLayer, self.attend)
    if c.norm_order == 'pre':
      self.encoder_norm = LayerNorm(c)
      self.decoder_norm = LayerNorm(c)

  def __call__(
    self, source_BS: Array, target_BT: Array, dropout: Dropout | None = None
  ) -> Array:
    """float32 logits_BTV of every target token, given those before it.

    Args:
      source_BS: int32 token ids, 0 where there is none.
      target_BT: int32 token ids, 0 where there is none.
      dropout: key and rates when training, else None.
    """
    h_BTD = self.hidden(source_BS, target_BT, dropout)
    return self.logits(h_BTD)

  def hidden(
    self, source_BS: Array, target_BT: Array, dropout: Dropout | None = None
  ) -> Array:
    """[B, T, D], which `unembed_VD` turns into logits."""
    memory = self.encode(source_BS, within(dropout, 'encoder'))
    return self.decode(memory, target_BT, within(dropout, 'decoder'))

  def unembed_VD(self) -> Array:
    """The pre-softmax linear transformation (3.4)."""
    if self.config.tie == 'none':
      return self.unembedding_VD
    return self.target_embedding.w_VD

  def logits(self, h_BTD: Array) -> Array:
    """float32 [B, T, V]."""
    return jnp.einsum(
      'BTD,VD->BTV',
      h_BTD,
      self.unembed_VD(),
      preferred_element_type=jnp.float32,
    )

  def encode(self, source_BS: Array, dropout: Dropout | None = None) -> Memory:
    """The source as the decoder may read it."""
    mask_BTS = (source_BS != PAD)[:, None]
    x_BSD = self.source_embedding(source_BS)
    x_BSD = self.source_positions(x_BSD, 0, source_BS.shape[1])
    x_BSD = drop_residual(x_BSD, within(dropout, 'embedding'))
    x_BSD, _ = self.encoder(
      x_BSD,
      lambda layer, x, _, site: (layer(x, mask_BTS, site), None),
      dropout=dropout,
    )
    if self.config.norm_order == 'pre':
      x_BSD = self.encoder_norm(x_BSD)
    return Memory(x_BSD, mask_BTS)

  def decode(
    self, memory: Memory, target_BT: Array, dropout: Dropout | None = None
  ) -> Array:
    """[B, T, D] for every target token, given the source and those before."""
    T = target_BT.shape[1]
    causal = attention.causal_mask_BTS(T)
    y_BTD = self.target_embedding(shift_right(target_BT))
    y_BTD = self.target_positions(y_BTD, 0, T)
    y_BTD = drop_residual(y_BTD, within(dropout, 'embedding'))

    def apply(layer, y_BTD, _, site):
      cross = layer.cross_keys_values(memory.memory_BSD)
      y_BTD, _ = layer(y_BTD, causal, cross, memory.mask_BTS, dropout=site)
      return y_BTD, None

    y_BTD, _ = self.decoder(y_BTD, apply, dropout=dropout)
    return self._finish(y_BTD)

  def _finish(self, y_BTD: Array) -> Array:
    # Pre-norm leaves the residual stream unnormed: one more norm at the end.
    return (
      self.decoder_norm(y_BTD) if self.config.norm_order == 'pre' else y_BTD
    )

  def start_cache(self, memory: Memory, length: int) -> Cache:
    """The cache before the first of at most `length` target tokens."""
    c = self.config
    B = memory.memory_BSD.shape[0]
    _, (cross_k_NBSHK, cross_v_NBSHE) = self.decoder(
      memory.memory_BSD,
      lambda layer, x, _, site: (x, layer.cross_keys_values(x)),
    )
    return Cache(
      jnp.zeros((c.layers, B, length, c.heads, c.d_k), self.dtype),
      jnp.zeros((c.layers, B, length, c.heads, c.d_v), self.dtype),
      cross_k_NBSHK,
      cross_v_NBSHE,
      memory.mask_BTS[None],
    )

  def decode_step(
    self, token_B: Array, index: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """The logits of the next token, after one more has been read.

    Args:
      token_B: the token before the one asked for; BOS at first.
      index: how many tokens were read before it; 0 at first.
      cache: of those tokens.

    Returns:
      float32 logits_BV, and the cache with this token in it.
    """
    length = cache.self_k_NBTHK.shape[2]
    y_BTD = self.target_embedding(token_B[:, None])
    y_BTD = self.target_positions(y_BTD, index, length)
    seen_BTS = (jnp.arange(length) <= index)[None, None]
    source_mask_BTS = cache.source_mask_NBTS[0]

    def apply(layer, y_BTD, inputs, _):
      self_k, self_v, cross_k, cross_v = inputs
      return layer(
        y_BTD,
        seen_BTS,
        (cross_k, cross_v),
        source_mask_BTS,
        past=Past(self_k, self_v, index),
      )

    y_BTD, (self_k, self_v) = self.decoder(y_BTD, apply, tuple(cache[:4]))
    logits_BTV = self.logits(self._finish(y_BTD))
    cache = cache._replace(self_k_NBTHK=self_k, self_v_NBTHE=self_v)
    return logits_BTV[:, 0], cache


def initial_params(
  config: ModelConfig, *, source_vocabulary: int, target_vocabulary: int
) -> Callable[[Array], dict]:
  """key -> the parameters of a new model, float32; to be jitted."""
  model = Transformer(config, source_vocabulary, target_vocabulary)
  token = jnp.full((1, 1), BOS, jnp.int32)

  def draw(key: Array) -> dict:
    return dict(model.init({'params': key}, token, token)['params'])

  return draw
