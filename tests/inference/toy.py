"""A toy to decode: log-probabilities from a table, and what it says of text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.data.tokens import BOS, EOS, PAD
from transformer_jax.inference.beam import beam

STATES = 251  # of the toy, a prime: prefixes hardly ever meet


def follow(state, token):
  return (state * 31 + token) % STATES


@dataclasses.dataclass(frozen=True)
class Toy:
  """Log-probabilities from a table, by a hash of the source and the prefix.

  The cache is the hash, so that a beam that is not reordered goes astray.
  """

  def start(self, params, source_BS, *, length, width):
    del params, length
    state_B = jnp.zeros(source_BS.shape[0], jnp.int32)
    for s in range(source_BS.shape[1]):
      token_B = source_BS[:, s]
      state_B = jnp.where(token_B == PAD, state_B, follow(state_B, token_B))
    return jnp.repeat(state_B[:, None], width, axis=1)

  def step(self, params, cache, token_BK, index):
    del index
    state_BK = follow(cache, token_BK)
    return params[state_BK], state_BK

  def reorder(self, cache, parent_BK):
    return jnp.take_along_axis(cache, parent_BK, axis=1)


def table(seed, vocabulary, ending=1.0):
  """Random log_probs_PV; a larger `ending` makes EOS likelier."""
  logits_PV = 2 * np.random.default_rng(seed).normal(size=(STATES, vocabulary))
  logits_PV[:, EOS] += ending
  return np.asarray(jax.nn.log_softmax(jnp.asarray(logits_PV, jnp.float32)))


def sources(seed, rows, width, vocabulary):
  """Sources of different lengths, padded to `width`."""
  rng = np.random.default_rng(seed)
  source_BS = rng.integers(4, vocabulary, (rows, width)).astype(np.int32)
  length_B = rng.integers(1, width + 1, rows)
  source_BS[np.arange(width)[None] >= length_B[:, None]] = PAD
  return source_BS


def root(source_S):
  state = 0
  for token in source_S:
    if token != PAD:
      state = follow(state, int(token))
  return state


def penalty(length, alpha):
  return ((5 + length) / 6) ** alpha


def log_prob(table_PV, source_S, tokens):
  state, total = root(source_S), 0.0
  for before, token in zip([BOS, *tokens], tokens, strict=False):
    state = follow(state, before)
    total += float(table_PV[state, token])
  return total


def run_beam(table_PV, source_BS, limit_B, **kwargs):
  kwargs = {'length': int(max(limit_B)), 'n_best': 1} | kwargs
  result = beam(
    Toy(),
    jnp.asarray(table_PV),
    jnp.asarray(source_BS),
    jnp.asarray(limit_B, jnp.int32),
    **kwargs,
  )
  return jax.device_get(result)


def tokens_of(result, row, k=0):
  return tuple(result.tokens_BKT[row, k, : result.lengths_BK[row, k]].tolist())
