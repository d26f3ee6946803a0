"""Search for the target: greedy, beam and sampling (section 6.1).

A `Stepper` says how likely each next token is; the functions here say which
one is taken, and know nothing of attention. They are jitted with the stepper
and the sizes static: one program for each shape of the source.

Axis B counts sentences, K the hypotheses of a sentence (here not the width of
a key), T target positions, C the candidates to go on with. What a sentence
becomes depends on its own row only, neither on other rows nor on padding.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.data.tokens import BOS, EOS, PAD
from transformer_jax.inference.stepper import Cache, Params, Stepper
from transformer_jax.nn import randomness

IMPOSSIBLE = -jnp.inf  # log-probability of what must not be, or is not there
ALL = np.iinfo(np.int32).max  # hypotheses that no search ends with


class Hypotheses(NamedTuple):
  """What was found, best first; a place without a hypothesis scores -inf."""

  tokens_BKT: Array  # int32, EOS included, then padding
  log_probs_BK: Array  # float32, of all tokens, EOS included, in nats
  scores_BK: Array  # float32, what they are ordered by
  lengths_BK: Array  # int32 tokens, EOS included
  steps_B: Array  # int32 steps that the sentence needed; the loop ran the most
  done_B: Array  # bool, false where `length` steps did not end the search


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


def _restrict(log_probs_BKV: Array, index: Array, limit_B: Array) -> Array:
  """Leaves neither PAD nor BOS, and at the last position EOS alone."""
  token_V = jnp.arange(log_probs_BKV.shape[-1])
  inner_V = (token_V != PAD) & (token_V != BOS)
  last_B = index + 1 >= limit_B
  allowed_BV = jnp.where(last_B[:, None], (token_V == EOS)[None], inner_V[None])
  return jnp.where(allowed_BV[:, None], log_probs_BKV, IMPOSSIBLE)


def _pick(x_BK: Array, index_BC: Array) -> Array:
  """x_BK[b, index_BC[b, c]]; x may have further axes."""
  return jax.vmap(lambda x, index: x[index])(x_BK, index_BC)


# Choices: log_probs_BKV of the allowed tokens, index of the step -> token_BK.
Choose = Callable[[Array, Array], Array]


class _Walk(NamedTuple):
  """One token after the other, none taken back."""

  index: Array
  token_BK: Array
  tokens_BKT: Array
  log_probs_BK: Array
  lengths_BK: Array
  busy_BK: Array
  cache: Cache


def _walk(
  stepper: Stepper,
  params: Params,
  source_BS: Array,
  limit_B: Array,
  *,
  length: int,
  width: int,
  choose: Choose,
) -> Hypotheses:
  """`width` hypotheses a sentence, each as `choose` takes its tokens."""
  shape = (limit_B.shape[0], width)

  def body(walk: _Walk) -> _Walk:
    log_probs_BKV, cache = stepper.step(
      params, walk.cache, walk.token_BK, walk.index
    )
    log_probs_BKV = _restrict(log_probs_BKV, walk.index, limit_B)
    token_BK = choose(log_probs_BKV, walk.index).astype(jnp.int32)
    gain_BK = jnp.take_along_axis(log_probs_BKV, token_BK[..., None], axis=-1)[
      ..., 0
    ]
    token_BK = jnp.where(walk.busy_BK, token_BK, PAD)
    return _Walk(
      walk.index + 1,
      token_BK,
      walk.tokens_BKT.at[:, :, walk.index].set(token_BK),
      walk.log_probs_BK + jnp.where(walk.busy_BK, gain_BK, 0.0),
      walk.lengths_BK + walk.busy_BK,
      walk.busy_BK & (token_BK != EOS),
      cache,
    )

  there_BK = jnp.broadcast_to(limit_B[:, None] > 0, shape)
  walk = jax.lax.while_loop(
    lambda walk: jnp.any(walk.busy_BK) & (walk.index < length),
    body,
    _Walk(
      jnp.int32(0),
      jnp.full(shape, BOS, jnp.int32),
      jnp.full((*shape, length), PAD, jnp.int32),
      jnp.where(there_BK, 0.0, IMPOSSIBLE).astype(jnp.float32),
      jnp.zeros(shape, jnp.int32),
      there_BK,
      stepper.start(params, source_BS, length=length, width=width),
    ),
  )
  log_probs_BK, order_BK = jax.lax.top_k(walk.log_probs_BK, width)
  return Hypotheses(
    tokens_BKT=_pick(walk.tokens_BKT, order_BK),
    log_probs_BK=log_probs_BK,
    scores_BK=log_probs_BK,
    lengths_BK=_pick(walk.lengths_BK, order_BK),
    steps_B=jnp.max(walk.lengths_BK, axis=1),
    done_B=~jnp.any(walk.busy_BK, axis=1),
  )


@functools.partial(jax.jit, static_argnames=('stepper', 'length'))
def greedy(
  stepper: Stepper,
  params: Params,
  source_BS: Array,
  limit_B: Array,
  *,
  length: int,
) -> Hypotheses:
  """The likeliest next token, again and again; one hypothesis a sentence.

  Args:
    stepper: the model.
    params: its parameters.
    source_BS: int32 token ids with EOS, 0 where there is none.
    limit_B: int32, tokens that the target may have, EOS included, which is
      forced there; 0 for a row of padding, which finds nothing.
    length: steps to take at most, static, and places in the cache, which the
      cost of a step grows with. A sentence that needs more is not `done`.

  Returns:
    Hypotheses with K = 1, scored by their log-probability.
  """
  return _walk(
    stepper,
    params,
    source_BS,
    limit_B,
    length=length,
    width=1,
    choose=lambda log_probs_BKV, index: jnp.argmax(log_probs_BKV, axis=-1),
  )


@functools.partial(
  jax.jit, static_argnames=('stepper', 'length', 'top_k', 'samples')
)
def sample(
  stepper: Stepper,
  params: Params,
  source_BS: Array,
  limit_B: Array,
  *,
  length: int,
  id_B: Array,
  key: Array,
  temperature: Array | float,
  top_k: int,
  samples: int,
) -> Hypotheses:
  """Draws each token from softmax(log-probabilities / temperature).

  Args:
    stepper: the model.
    params: its parameters.
    source_BS: see `greedy`.
    limit_B: see `greedy`.
    length: see `greedy`.
    id_B: int32 number of each sentence in its text: the same number, sentence
      and key draw the same tokens in any batch.
    key: of the whole text, from `randomness.seed_key`.
    temperature: above 0; 1 is the model's own distribution.
    top_k: draw among the k likeliest tokens only; 0 draws among all.
    samples: K, drawn independently.

  Returns:
    Hypotheses ordered and scored by the model's own log-probability, that at
    temperature 1.
  """
  place_BK1 = id_B[:, None, None].astype(jnp.uint32)
  sample_BK1 = jnp.arange(samples, dtype=jnp.uint32)[None, :, None]

  def choose(log_probs_BKV, index):
    V = log_probs_BKV.shape[-1]
    logits_BKV = log_probs_BKV / temperature
    if top_k:
      kept_BKC = jax.lax.top_k(logits_BKV, min(top_k, V))[0]
      logits_BKV = jnp.where(
        logits_BKV < kept_BKC[..., -1:], IMPOSSIBLE, logits_BKV
      )
    bits_BKV = randomness.coordinate_bits(
      randomness.at(key, index),
      place_BK1,
      sample_BK1,
      jnp.arange(V, dtype=jnp.uint32)[None, None],
    )
    # The largest of logits plus Gumbel noise falls as softmax(logits) says.
    # 23 bits: one more would round to 1, whose noise is infinite.
    uniform_BKV = ((bits_BKV >> 9).astype(jnp.float32) + 0.5) / (1 << 23)
    return jnp.argmax(logits_BKV - jnp.log(-jnp.log(uniform_BKV)), axis=-1)

  return _walk(
    stepper,
    params,
    source_BS,
    limit_B,
    length=length,
    width=samples,
    choose=choose,
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
  log_probs_BK: Array, log_probs_BKV: Array, beam_size: int
) -> _Candidates:
  """The 2 * beam_size likeliest, which are enough.

  Each live hypothesis has one way to end, so that among twice as many there
  are always beam_size that go on. One that ends counts if it is likelier
  than the last of these; then a beam of one is greedy search.
  """
  B, K, V = log_probs_BKV.shape
  total_BKV = log_probs_BK[..., None] + log_probs_BKV
  top_BC, flat_BC = jax.lax.top_k(total_BKV.reshape(B, K * V), 2 * beam_size)
  token_BC = flat_BC % V
  ends_BC = token_BC == EOS
  going_before_BC = jnp.cumsum(~ends_BC, axis=1)
  return _Candidates(
    top_BC, flat_BC // V, token_BC, ends_BC & (going_before_BC < beam_size)
  )


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
    tokens_BKT=_pick(join(found.tokens_BKT, tokens_BCT), order_BK),
    log_probs_BK=_pick(join(found.log_probs_BK, log_probs_BC), order_BK),
    scores_BK=scores_BK,
    lengths_BK=_pick(join(found.lengths_BK, lengths_BC), order_BK),
  )


def _busy_B(beam: _Beam, most_B: Array, enough: Array | int) -> Array:
  """Where a live hypothesis may still enter what is kept, if one is wanted.

  Log-probabilities only fall, and are negative: at best the likeliest one goes
  on for nothing to where the penalty divides it by the most, most_B.
  """
  bound_B = jnp.max(beam.log_probs_BK, axis=1) / most_B
  return (bound_B > beam.found.scores_BK[:, -1]) & (beam.ended_B < enough)


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
  that ends, and is likelier than the last of these, is kept if its
  log-probability over its penalty is among the n_best so far. A sentence
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
      longest may be a word said again and again.
    n_best: K of the result.
  """
  B, most_B = limit_B.shape[0], penalty(limit_B, alpha)

  def body(beam: _Beam) -> _Beam:
    busy_B = _busy_B(beam, most_B, enough)
    log_probs_BKV, cache = stepper.step(
      params, beam.cache, beam.token_BK, beam.index
    )
    log_probs_BKV = _restrict(log_probs_BKV, beam.index, limit_B)
    candidates = _candidates(beam.log_probs_BK, log_probs_BKV, beam_size)
    # A sentence that is done keeps what it has while the others go on.
    there_BC = jnp.isfinite(candidates.log_probs_BC) & busy_B[:, None]
    candidates = candidates._replace(ends_BC=candidates.ends_BC & there_BC)
    tokens_BCT = _pick(beam.tokens_BKT, candidates.parent_BC)
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
    log_probs_BK, place_BK = jax.lax.top_k(going_BC, beam_size)
    parent_BK = _pick(candidates.parent_BC, place_BK)
    return _Beam(
      beam.index + 1,
      _pick(candidates.token_BC, place_BK),
      _pick(tokens_BCT, place_BK),
      log_probs_BK,
      found._replace(steps_B=found.steps_B + busy_B),
      beam.ended_B + candidates.ends_BC.sum(axis=1),
      stepper.reorder(cache, parent_BK),
    )

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
