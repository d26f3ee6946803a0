"""From the next token to whole sentences: greedy decoding and sampling.

A `Stepper` says how likely each next token is; the functions here, and in
`beam`, say which one is taken, and know nothing of attention. They are jitted
with the stepper and the sizes static: one program for each shape of the source.

Axis B counts sentences, K the hypotheses of a sentence (here not the width of
a key), T target positions, C the candidates to go on with. What a sentence
becomes depends on its own row only, neither on other rows nor on padding.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.data.tokens import BOS, EOS, PAD
from transformer_jax.inference.stepper import Cache, Params, Stepper
from transformer_jax.nn import randomness

IMPOSSIBLE = -jnp.inf  # log-probability of what must not be, or is not there


class Hypotheses(NamedTuple):
  """What was found, best first; a place without a hypothesis scores -inf."""

  tokens_BKT: Array  # int32, EOS included, then padding
  log_probs_BK: Array  # float32, of all tokens, EOS included, in nats
  scores_BK: Array  # float32, what they are ordered by
  lengths_BK: Array  # int32 tokens, EOS included
  steps_B: Array  # int32 steps that the sentence needed; the loop ran the most
  done_B: Array  # bool, false where `length` steps did not end the search


def restrict(log_probs_BKV: Array, index: Array, limit_B: Array) -> Array:
  """Leaves neither PAD nor BOS, and at the last position EOS alone."""
  token_V = jnp.arange(log_probs_BKV.shape[-1])
  inner_V = (token_V != PAD) & (token_V != BOS)
  last_B = index + 1 >= limit_B
  allowed_BV = jnp.where(last_B[:, None], (token_V == EOS)[None], inner_V[None])
  return jnp.where(allowed_BV[:, None], log_probs_BKV, IMPOSSIBLE)


def pick(x_BK: Array, index_BC: Array) -> Array:
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
    log_probs_BKV = restrict(log_probs_BKV, walk.index, limit_B)
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
    tokens_BKT=pick(walk.tokens_BKT, order_BK),
    log_probs_BK=log_probs_BK,
    scores_BK=log_probs_BK,
    lengths_BK=pick(walk.lengths_BK, order_BK),
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
    gumbel_BKV = -jnp.log(-jnp.log(randomness.uniform_of(bits_BKV)))
    return jnp.argmax(logits_BKV + gumbel_BKV, axis=-1)

  return _walk(
    stepper,
    params,
    source_BS,
    limit_B,
    length=length,
    width=samples,
    choose=choose,
  )
