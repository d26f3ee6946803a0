"""The encoder-decoder of figure 1: token ids in, logits out."""

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import jax.numpy as jnp
from jax import Array

from transformer_jax.config import ModelConfig
from transformer_jax.data.tokens import BOS, PAD
from transformer_jax.nn import attention
from transformer_jax.nn.embeddings import TIES, Embedding, Positions
from transformer_jax.nn.layers import (
  NORM_ORDERS,
  DecoderLayer,
  EncoderLayer,
  LayerContext,
  Norm,
  Past,
  drop_residual,
  site_scales,
)
from transformer_jax.nn.module import Dropout, Module, within
from transformer_jax.nn.stack import Stack, unchanged


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


class Transformer(Module):
  """The model of section 3.

  Attributes:
    config: of the model.
    source_vocabulary: tokens that the encoder knows.
    target_vocabulary: V, tokens that the decoder knows; the same ones when all
      embeddings are tied.
    attention_fn: computes `attention.attention`, in its way; see
      `implementations.choose`.
    wrap_layer: given the body of the scan over layers, gives another; see
      `Stack`. By default the same one.
  """

  source_vocabulary: int
  target_vocabulary: int
  attention_fn: Callable[..., Array] = attention.attention
  wrap_layer: Callable[[Callable], Callable] = unchanged

  def setup(self):
    c = self.config
    V, tie = self.target_vocabulary, TIES[c.tie]
    sizes = {tie.source: self.source_vocabulary, tie.target: V}
    tables = {n: Embedding(c, size, name=n) for n, size in sizes.items()}
    self.source_embedding = tables[tie.source]
    self.target_embedding = tables[tie.target]
    self.output_embedding = tables.get(tie.output)
    if self.output_embedding is None:
      shape = (V, c.d_model)
      self.w_output_VD = self.parameter(tie.output, 'unembedding', shape, shape)
    self.source_positions = Positions(c, 'encoder')
    self.target_positions = Positions(c, 'decoder')
    self.encoder = Stack(c, EncoderLayer, self.attention_fn, self.wrap_layer)
    self.decoder = Stack(c, DecoderLayer, self.attention_fn, self.wrap_layer)
    # They get parameters only where config.norm_order uses them.
    self.encoder_norm = Norm(c)
    self.decoder_norm = Norm(c)

  def __call__(
    self,
    source_BS: Array,
    target_BT: Array,
    dropout: Dropout | None = None,
    scales: attention.Scales | None = None,
  ) -> Array:
    """float32 logits_BTV of every target token, given those before it.

    Args:
      source_BS: int32 token ids, 0 where there is none.
      target_BT: int32 token ids, 0 where there is none.
      dropout: key and rates when training, else None.
      scales: of the scores, traced; by default those of the config.
    """
    h_BTD = self.hidden(source_BS, target_BT, dropout, scales)
    return self.logits(h_BTD)

  def hidden(
    self,
    source_BS: Array,
    target_BT: Array,
    dropout: Dropout | None = None,
    scales: attention.Scales | None = None,
  ) -> Array:
    """[B, T, D], which `unembed_VD` turns into logits."""
    memory = self.encode(source_BS, within(dropout, 'encoder'), scales)
    return self.decode(memory, target_BT, within(dropout, 'decoder'), scales)

  def unembed_VD(self) -> Array:
    """The pre-softmax linear transformation (3.4)."""
    if self.output_embedding is None:
      return self.w_output_VD
    return self.output_embedding.w_VD

  def logits(self, h_BTD: Array) -> Array:
    """float32 [B, T, V]."""
    return jnp.einsum(
      'BTD,VD->BTV',
      h_BTD,
      self.unembed_VD(),
      preferred_element_type=jnp.float32,
    )

  def _context(
    self,
    place: Positions,
    real_BT: Array,
    length: int,
    scales: attention.Scales | None = None,
    *,
    start: Array | int = 0,
    queries: int,
  ) -> LayerContext:
    """What a stack's layers are told of `queries` positions from `start`."""
    return LayerContext(
      site_scales(self.config) if scales is None else scales,
      real_BT,
      place.turn(start, queries, length),
      place.bias_HA(start, queries, length),
    )

  def encode(
    self,
    source_BS: Array,
    dropout: Dropout | None = None,
    scales: attention.Scales | None = None,
  ) -> Memory:
    """The source as the decoder may read it."""
    real_BS, S = source_BS != PAD, source_BS.shape[1]
    mask_BTS = real_BS[:, None]
    x_BSD = self.source_embedding(source_BS)
    x_BSD = self.source_positions(x_BSD, 0, S)
    x_BSD = drop_residual(x_BSD, within(dropout, 'embedding'))
    context = self._context(
      self.source_positions, real_BS, S, scales, queries=S
    )
    x_BSD, _ = self.encoder(
      x_BSD,
      lambda layer, x, _, site: (layer(x, mask_BTS, context, site), None),
      dropout=dropout,
    )
    x_BSD = self._finish(self.encoder_norm, x_BSD, context)
    return Memory(x_BSD, mask_BTS)

  def decode(
    self,
    memory: Memory,
    target_BT: Array,
    dropout: Dropout | None = None,
    scales: attention.Scales | None = None,
  ) -> Array:
    """[B, T, D] for every target token, given the source and those before."""
    real_BT, T = target_BT != PAD, target_BT.shape[1]
    sight = attention.CAUSAL_MASKS[self.config.causal_mask]
    mask_BTS = sight.mask_BTS(real_BT)
    y_BTD = self.target_embedding(shift_right(target_BT))
    y_BTD = self.target_positions(y_BTD, 0, T)
    y_BTD = drop_residual(y_BTD, within(dropout, 'embedding'))
    context = self._context(
      self.target_positions, real_BT, T, scales, queries=T
    )
    context = context._replace(sees=sight.sees)

    def apply(layer, y_BTD, _, site):
      cross = layer.cross_keys_values(memory.memory_BSD)
      y_BTD, _ = layer(
        y_BTD, mask_BTS, cross, memory.mask_BTS, context, dropout=site
      )
      return y_BTD, None

    y_BTD, _ = self.decoder(y_BTD, apply, dropout=dropout)
    return self._finish(self.decoder_norm, y_BTD, context)

  def _finish(self, norm: Norm, x_BTD: Array, context: LayerContext) -> Array:
    order = NORM_ORDERS[self.config.norm_order]
    return order.finish(functools.partial(norm, context=context), x_BTD)

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

    The cache holds earlier tokens only, so decoding is causal even for a model
    trained without the mask.

    Returns:
      float32 logits_BV, and the cache with this token in it.
    """
    length = cache.self_k_NBTHK.shape[2]
    y_BTD = self.target_embedding(token_B[:, None])
    y_BTD = self.target_positions(y_BTD, index, length)
    seen_BTS = (jnp.arange(length) <= index)[None, None]
    source_mask_BTS = cache.source_mask_NBTS[0]
    context = self._context(
      self.target_positions,
      jnp.ones((1, 1), bool),
      length,
      start=index,
      queries=1,
    )

    def apply(layer, y_BTD, inputs, _):
      self_k, self_v, cross_k, cross_v = inputs
      return layer(
        y_BTD,
        seen_BTS,
        (cross_k, cross_v),
        source_mask_BTS,
        context,
        past=Past(self_k, self_v, index),
      )

    y_BTD, (self_k, self_v) = self.decoder(y_BTD, apply, tuple(cache[:4]))
    h_BTD = self._finish(self.decoder_norm, y_BTD, context)
    logits_BTV = self.logits(h_BTD)
    cache = cache._replace(self_k_NBTHK=self_k, self_v_NBTHE=self_v)
    return logits_BTV[:, 0], cache


def initial_weights(
  config: ModelConfig, *, source_vocabulary: int, target_vocabulary: int
) -> Callable[[Array], tuple[dict, dict]]:
  """key -> parameters and statistics of a new model, float32; to be jitted.

  Statistics are what a batch norm keeps of the tokens seen; {} without one.
  """
  model = Transformer(config, source_vocabulary, target_vocabulary)
  token = jnp.full((1, 1), BOS, jnp.int32)

  def draw(key: Array) -> tuple[dict, dict]:
    made = cast(dict, model.init({'params': key}, token, token))
    return dict(made['params']), dict(made.get('statistics', {}))

  return draw


def initial_params(
  config: ModelConfig, *, source_vocabulary: int, target_vocabulary: int
) -> Callable[[Array], dict]:
  """key -> the parameters of a new model, float32; to be jitted."""
  draw = initial_weights(
    config,
    source_vocabulary=source_vocabulary,
    target_vocabulary=target_vocabulary,
  )
  return lambda key: draw(key)[0]


STATISTICS = 'statistics'


def with_statistics(params: dict, statistics: dict) -> dict:
  """One tree of all that decoding and scoring need of a trained model."""
  return {**params, STATISTICS: statistics} if statistics else params


def variables(weights: dict) -> dict:
  """What `apply` takes, of parameters or of `with_statistics`."""
  params = {name: weights[name] for name in weights if name != STATISTICS}
  return {'params': params, STATISTICS: weights.get(STATISTICS, {})}
