"""A model as decoding sees it: how likely is each next token.

Letters: B sentences, K hypotheses of a sentence, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.nn.transformer import variables

Params = Any
Cache = Any


class Stepper(Protocol):
  """A model as decoding sees it; hashable, and equal to one that is alike."""

  def start(
    self, params: Params, source_BS: Array, *, length: int, width: int
  ) -> Cache:
    """What comes before `length` tokens of `width` hypotheses a sentence."""
    ...

  def step(
    self, params: Params, cache: Cache, token_BK: Array, index: Array
  ) -> tuple[Array, Cache]:
    """float32 log_probs_BKV of what follows token_BK, the token `index`."""
    ...

  def reorder(self, cache: Cache, parent_BK: Array) -> Cache:
    """Hypothesis k of a sentence goes on where parent_BK[:, k] was."""
    ...


@dataclasses.dataclass(frozen=True)
class ModelStepper:
  """A Linen encoder-decoder as a `Stepper`.

  The hypotheses of a sentence read one copy of its source: the model's step
  is mapped over K, the keys and values of the source are not. They are neither
  repeated nor moved when hypotheses change places.

  Attributes:
    model: with methods encode, start_cache and decode_step. The fields of its
      cache are arrays whose axis 1 is the batch; those named `self_*` belong
      to the tokens so far and get K as axis 1, before B; the others are the
      sentence's.
  """

  model: nn.Module

  def start(
    self, params: Params, source_BS: Array, *, length: int, width: int
  ) -> Cache:
    memory = self._apply(params, source_BS, method='encode')
    cache = self._apply(params, memory, length, method='start_cache')
    return _own(cache, lambda x: jnp.repeat(x[:, None], width, axis=1))

  def step(
    self, params: Params, cache: Cache, token_BK: Array, index: Array
  ) -> tuple[Array, Cache]:
    def one(token_B, cache):
      logits_BV, cache = self._apply(
        params, token_B, index, cache, method='decode_step'
      )
      return jax.nn.log_softmax(logits_BV), cache

    axes = _own(type(cache)(*[None] * len(cache)), lambda _: 1)
    mapped = jax.vmap(one, in_axes=(1, axes), out_axes=(1, axes))
    return mapped(token_BK, cache)

  def reorder(self, cache: Cache, parent_BK: Array) -> Cache:
    B, K = parent_BK.shape
    row_KB = parent_BK.T * B + jnp.arange(B)[None]

    def move(x):
      flat = x.reshape(x.shape[0], K * B, *x.shape[3:])
      moved = jnp.take(flat, row_KB.reshape(-1), axis=1, mode='clip')
      return moved.reshape(x.shape)

    return _own(cache, move)

  def _apply(self, params: Params, *args: Any, method: str) -> Any:
    return self.model.apply(variables(params), *args, method=method)


def _own(cache: Cache, change: Callable[[Any], Any]) -> Cache:
  """`cache` with `change` made to the fields that each hypothesis owns."""
  own = [name for name in cache._fields if name.startswith('self_')]
  return cache._replace(**{n: change(getattr(cache, n)) for n in own})
