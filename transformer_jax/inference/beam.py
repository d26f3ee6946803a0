"""Beam search with a length penalty (section 6.1).

Letters and words as in `decode`; C counts the candidates to go on with.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.data.tokens import BOS, EOS, PAD
from transformer_jax.inference.decode import (
  IMPOSSIBLE,
  Hypotheses,
  pick,
  restrict,
)
from transformer_jax.inference.stepper import Cache, Params, Stepper

ALL = np.iinfo(np.int32).max  # hypotheses that no search ends with


def length_penalty(length: Array | int, alpha: Array | float) -> Array:
  """((5 + length) / 6)^alpha, by which a log-probability is divided.

  Args:
    length: tokens of the hypothesis, EOS included.
    alpha: 0 compares plain log-probabilities; the paper takes 0.6.

  >>> float(length_penalty(7, 1.0))
  2.0

  Reference: section 6.1, and Wu et al. (2016), eq. 14.
  """
  return jnp.power((5.0 + length) / 6.0, alpha)


def plain_penalty(length: Array | int, alpha: Array | float) -> Array:
  """length^alpha: 1 compares log-probabilities a token, as fairseq does.

  See `length_penalty`.

  >>> float(plain_penalty(7, 1.0))
  7.0
  """
  return jnp.power(jnp.float32(length), alpha)


# decode.penalty: (tokens of a hypothesis, alpha) -> what divides its
# log-probability.
Penalty = Callable[[Array | int, Array | float], Array]
PENALTIES: dict[str, Penalty] = {
  'paper': length_penalty,
  'length': plain_penalty,
}


def _nothing(sentences: int, n_best: int, length: int) -> Hypotheses:
  shape = (sentences, n_best)
  return Hypotheses(
    tokens_BKT=jnp.full((*shape, length), PAD, jnp.int32),
    log_probs_BK=jnp.full(shape, IMPOSSIBLE, jnp.float32),
    scores_BK=jnp.full(shape, IMPOSSIBLE, jnp.float32),
    lengths_BK=jnp.zeros(shape, jnp.int32),
    steps_B=jnp.zeros(sentences, jnp.int32),
    done_B=jnp.zeros(sentences, bool),
  )


class _Beam(NamedTuple):
  """The live hypotheses, and the best of those that have ended."""

  index: Array
  token_BK: Array
  tokens_BKT: Array
  log_probs_BK: Array
  found: Hypotheses
  ended_B: Array  # how many have
  cache: Cache


class _Candidates(NamedTuple):
  """The likeliest steps from the live hypotheses, best first."""

  log_probs_BC: Array
  parent_BC: Array
  token_BC: Array
  ends_BC: Array  # this one is finished now


def _candidates(
  log_probs_BK: Array, log_probs_BKV: Array, enough: Array | int
) -> _Candidates:
  """The 2 K likeliest: each live hypothesis has one way to end, so that among
  twice as many there are always K that go on.

  One that ends counts if it is likelier than the last of these, and among the
  `enough` likeliest. So a beam of one is greedy search.
  """
  B, K, V = log_probs_BKV.shape
  total_BKV = log_probs_BK[..., None] + log_probs_BKV
  top_BC, flat_BC = jax.lax.top_k(total_BKV.reshape(B, K * V), 2 * K)
  token_BC = flat_BC % V
  ends_BC = token_BC == EOS
  ends_BC &= jnp.cumsum(~ends_BC, axis=1) < K
  ends_BC &= jnp.arange(2 * K)[None] < enough
  return _Candidates(top_BC, flat_BC // V, token_BC, ends_BC)


def _merge(
  found: Hypotheses,
  candidates: _Candidates,
  tokens_BCT: Array,
  *,
  index: Array,
  alpha: Array | float,
  penalty: Penalty,
) -> Hypotheses:
  """The best of those found before and those that end now."""
  score_BC = jnp.where(
    candidates.ends_BC,
    candidates.log_probs_BC / penalty(index + 1, alpha),
    IMPOSSIBLE,
  )
  log_probs_BC = jnp.where(
    candidates.ends_BC, candidates.log_probs_BC, IMPOSSIBLE
  )
  lengths_BC = jnp.full_like(candidates.token_BC, index + 1)

  def join(old, new):
    return jnp.concatenate([old, new], axis=1)

  # Of equals the first stays: the older one, and a place without any.
  scores_BK, order_BK = jax.lax.top_k(
    join(found.scores_BK, score_BC), found.scores_BK.shape[1]
  )
  return found._replace(
    tokens_BKT=pick(join(found.tokens_BKT, tokens_BCT), order_BK),
    log_probs_BK=pick(join(found.log_probs_BK, log_probs_BC), order_BK),
    scores_BK=scores_BK,
    lengths_BK=pick(join(found.lengths_BK, lengths_BC), order_BK),
  )


def _busy_B(beam: _Beam, most_B: Array, enough: Array | int) -> Array:
  """Where a live hypothesis may still enter what is kept, if one is wanted.

  A log-probability is negative and only falls. So the best that can come is the
  likeliest of now, unchanged, over most_B, the largest penalty.
  """
  bound_B = jnp.max(beam.log_probs_BK, axis=1) / most_B
  return (bound_B > beam.found.scores_BK[:, -1]) & (beam.ended_B < enough)


def _advance(
  beam: _Beam,
  log_probs_BKV: Array,
  busy_B: Array,
  *,
  alpha: Array | float,
  penalty: Penalty,
  enough: Array | int,
) -> tuple[_Beam, Array]:
  """The beam after one more token.

  Args:
    beam: before it.
    log_probs_BKV: of the tokens that may follow.
    busy_B: bool, of the sentences whose search goes on.
    alpha: see `beam`.
    penalty: see `beam`.
    enough: see `beam`.

  Returns:
    The beam, its cache as it was, and parent_BK: which live hypothesis each of
    those that are live now goes on from.
  """
  candidates = _candidates(beam.log_probs_BK, log_probs_BKV, enough)
  # A sentence that is done keeps what it has while the others go on.
  there_BC = jnp.isfinite(candidates.log_probs_BC) & busy_B[:, None]
  candidates = candidates._replace(ends_BC=candidates.ends_BC & there_BC)
  tokens_BCT = pick(beam.tokens_BKT, candidates.parent_BC)
  tokens_BCT = tokens_BCT.at[:, :, beam.index].set(candidates.token_BC)
  found = _merge(
    beam.found,
    candidates,
    tokens_BCT,
    index=beam.index,
    alpha=alpha,
    penalty=penalty,
  )
  going_BC = jnp.where(
    candidates.token_BC == EOS, IMPOSSIBLE, candidates.log_probs_BC
  )
  log_probs_BK, place_BK = jax.lax.top_k(going_BC, beam.token_BK.shape[1])
  after = beam._replace(
    index=beam.index + 1,
    token_BK=pick(candidates.token_BC, place_BK),
    tokens_BKT=pick(tokens_BCT, place_BK),
    log_probs_BK=log_probs_BK,
    found=found._replace(steps_B=found.steps_B + busy_B),
    ended_B=beam.ended_B + candidates.ends_BC.sum(axis=1),
  )
  return after, pick(candidates.parent_BC, place_BK)


@functools.partial(
  jax.jit,
  static_argnames=('stepper', 'length', 'beam_size', 'penalty', 'n_best'),
)
def beam(
  stepper: Stepper,
  params: Params,
  source_BS: Array,
  limit_B: Array,
  *,
  length: int,
  beam_size: int,
  alpha: Array | float,
  penalty: Penalty = length_penalty,
  enough: Array | int = ALL,
  n_best: int = 1,
) -> Hypotheses:
  """Beam search with the length penalty of section 6.1.

  At each step the beam_size likeliest hypotheses that go on stay live. One
  that ends, is likelier than the last of these and among the `enough` likeliest
  steps, is kept if its log-probability over its penalty is among the n_best so
  far. A sentence
  is done when no live hypothesis can still change what is kept, or `enough`
  have ended. Hypotheses that ended take no place in the beam, so n_best
  changes only how many are shown and when the search may stop.

  Args:
    stepper: the model.
    params: its parameters.
    source_BS: see `greedy`.
    limit_B: see `greedy`.
    length: see `greedy`.
    beam_size: live hypotheses a sentence; with 1 and alpha 0 this is greedy.
    alpha: of the length penalty, not negative.
    penalty: of PENALTIES, which does not fall with the length.
    enough: hypotheses that end a sentence's search, whatever might come: a
      large alpha asks for long ones, and of all those that can be found the
      longest may be a word said again and again. So that these are not the
      short ones that end unlikely, an ending counts only among the `enough`
      likeliest steps. With beam_size this is fairseq's search.
    n_best: K of the result.
  """
  B, most_B = limit_B.shape[0], penalty(limit_B, alpha)

  def body(beam: _Beam) -> _Beam:
    log_probs_BKV, cache = stepper.step(
      params, beam.cache, beam.token_BK, beam.index
    )
    beam, parent_BK = _advance(
      beam,
      restrict(log_probs_BKV, beam.index, limit_B),
      _busy_B(beam, most_B, enough),
      alpha=alpha,
      penalty=penalty,
      enough=enough,
    )
    return beam._replace(cache=stepper.reorder(cache, parent_BK))

  # All hypotheses are empty at first: one of them stands for all.
  first_BK = (jnp.arange(beam_size) == 0)[None] & (limit_B > 0)[:, None]
  end = jax.lax.while_loop(
    lambda beam: jnp.any(_busy_B(beam, most_B, enough)) & (beam.index < length),
    body,
    _Beam(
      jnp.int32(0),
      jnp.full((B, beam_size), BOS, jnp.int32),
      jnp.full((B, beam_size, length), PAD, jnp.int32),
      jnp.where(first_BK, 0.0, IMPOSSIBLE).astype(jnp.float32),
      _nothing(B, n_best, length),
      jnp.zeros(B, jnp.int32),
      stepper.start(params, source_BS, length=length, width=beam_size),
    ),
  )
  return end.found._replace(done_B=~_busy_B(end, most_B, enough))
