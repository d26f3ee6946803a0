"""Sums of losses to numbers a target token: loss, perplexity, accuracy."""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.config import ConfigError
from transformer_jax.data.tokens import PAD
from transformer_jax.nn.attention import Scales
from transformer_jax.nn.transformer import Transformer, variables
from transformer_jax.training.loss import projected_losses
from transformer_jax.training.state import loss_chunk


def perplexity(loss: float) -> float:
  """e^loss, finite: JSON has no infinity, and the loss says enough then."""
  return math.exp(min(loss, 700.0))


def averages(
  smoothed: float, plain: float, correct: float, tokens: float
) -> dict[str, float]:
  """Sums as in `loss.LossSums` -> numbers a target token, and the tokens."""
  scored = max(tokens, 1.0)
  loss = plain / scored
  return dict(
    loss=loss,
    smoothed_loss=smoothed / scored,
    perplexity=perplexity(loss),
    accuracy=correct / scored,
    tokens=tokens,
  )


class Scores(NamedTuple):
  """Of held-out pairs, all of them together."""

  loss: float  # nats a token, without label smoothing
  perplexity: float  # e^loss
  accuracy: float  # share of tokens that were the likeliest
  exact: float  # share of targets that were so in every token
  tokens: int
  sentences: int


class RowSums(NamedTuple):
  """Of each row of a batch; zeros for a row of padding."""

  loss_B: Array  # float32, nats
  correct_B: Array  # float32
  tokens_B: Array  # float32


@functools.partial(jax.jit, static_argnames='model')
def row_sums(
  model: Transformer,
  params: Any,
  source_BS: Array,
  target_BT: Array,
  scales: Scales | None = None,
) -> RowSums:
  """Sums over the target tokens of each row, pure.

  Only a chunk of the logits exists at a time, as in training. The factors on
  the scores are the config's own unless they are given.
  """
  h_BTD = _apply(
    model, params, source_BS, target_BT, None, scales, method='hidden'
  )
  w_VD = _apply(model, params, method='unembed_VD')
  losses = projected_losses(
    h_BTD.reshape(-1, h_BTD.shape[-1]),
    w_VD,
    target_BT.reshape(-1),
    chunk=loss_chunk(target_BT.size, w_VD.shape[0]),
  )

  def by_row(x_M: Array) -> Array:
    return jnp.sum(x_M.reshape(target_BT.shape), axis=1)

  tokens_B = jnp.sum((target_BT != PAD).astype(jnp.float32), axis=1)
  return RowSums(by_row(losses.plain), by_row(losses.correct), tokens_B)


def _apply(model: Transformer, params: Any, *args: Any, method: str) -> Any:
  return model.apply(variables(params), *args, method=method)


def summarise(rows: Iterable[RowSums]) -> Scores:
  """Scores of all rows, summed in float64 on the host.

  Raises:
    ConfigError: when there is no target token.
  """
  kept = [jax.device_get(row) for row in rows]
  loss_n, correct_n, tokens_n = (
    np.concatenate(column).astype(np.float64)
    for column in zip(*kept, strict=True)
  )
  tokens, sentences = tokens_n.sum(), np.count_nonzero(tokens_n)
  if not sentences:
    raise ConfigError('there is no target token to evaluate')
  exact = np.count_nonzero((tokens_n > 0) & (correct_n == tokens_n))
  loss = loss_n.sum() / tokens
  return Scores(
    loss=float(loss),
    perplexity=perplexity(loss),
    accuracy=float(correct_n.sum() / tokens),
    exact=exact / sentences,
    tokens=int(tokens),
    sentences=int(sentences),
  )
