"""Decoding against exhaustive search and beams written out in numpy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.data.tokens import BOS, EOS, PAD
from transformer_jax.inference import decode
from transformer_jax.nn import randomness

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


def exhaustive(table_PV, source_S, limit, alpha):
  """(score, tokens) of every target up to `limit` tokens, best first."""
  inner = [v for v in range(table_PV.shape[1]) if v not in (PAD, BOS, EOS)]
  found = []
  for length in range(limit):
    for words in itertools.product(inner, repeat=length):
      tokens = (*words, EOS)
      score = log_prob(table_PV, source_S, tokens) / penalty(length + 1, alpha)
      found.append((score, tokens))
  return sorted(found, reverse=True)


def numpy_beam(
  table_PV, source_S, limit, alpha, beam_size, divisor=penalty, enough=10**9
):
  """The beam of `decode.beam` in loops: on to the limit, or `enough`."""
  live = [(0.0, (), root(source_S))]
  found = []
  for length in range(1, limit + 1):
    candidates = []
    for total, tokens, state in live:
      state = follow(state, tokens[-1] if tokens else BOS)
      for v in range(table_PV.shape[1]):
        if v in (PAD, BOS) or (length == limit and v != EOS):
          continue
        total_v = total + float(table_PV[state, v])
        candidates.append((total_v, (*tokens, v), state))
    candidates.sort(key=lambda candidate: -candidate[0])
    live = []
    for candidate in candidates:
      if len(live) == beam_size:
        break
      if candidate[1][-1] == EOS:
        found.append((candidate[0] / divisor(length, alpha), candidate[1]))
      else:
        live.append(candidate)
    if len(found) >= enough:
      break
  return sorted(found, reverse=True)


def beam(table_PV, source_BS, limit_B, **kwargs):
  kwargs = {'length': int(max(limit_B)), 'n_best': 1} | kwargs
  result = decode.beam(
    Toy(),
    jnp.asarray(table_PV),
    jnp.asarray(source_BS),
    jnp.asarray(limit_B, jnp.int32),
    **kwargs,
  )
  return jax.device_get(result)


def tokens_of(result, row, k=0):
  return tuple(result.tokens_BKT[row, k, : result.lengths_BK[row, k]].tolist())


def assert_found(result, row, expected):
  """The hypotheses of a row are the first of `expected`."""
  for k, (score, tokens) in enumerate(expected):
    assert tokens_of(result, row, k) == tokens
    np.testing.assert_allclose(result.scores_BK[row, k], score, rtol=1e-5)
    assert not result.tokens_BKT[row, k, len(tokens) :].any()


def test_penalty_by_hand():
  assert decode.length_penalty(1, 0.6) == 1.0
  np.testing.assert_allclose(decode.length_penalty(13, 0.5), 3**0.5, rtol=1e-6)
  assert decode.length_penalty(13, 0.0) == 1.0


@pytest.mark.parametrize('alpha', [0.0, 0.6])
def test_wide_beam_is_exhaustive(alpha):
  # Three words, up to 4 tokens: at most 27 live prefixes.
  limit = 4
  for seed in range(4):
    table_PV = table(seed, 6, ending=seed - 2)
    source_BS = sources(seed, 3, 4, 6)
    result = beam(
      table_PV, source_BS, [limit] * 3, beam_size=28, alpha=alpha, n_best=5
    )
    for row in range(3):
      every = exhaustive(table_PV, source_BS[row], limit, alpha)
      assert_found(result, row, every[:5])
      best = tokens_of(result, row)
      np.testing.assert_allclose(
        result.log_probs_BK[row, 0],
        log_prob(table_PV, source_BS[row], best),
        rtol=1e-5,
      )


@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0])
@pytest.mark.parametrize('n_best', [1, 4])
def test_beam_of_four_is_that_of_numpy(alpha, n_best):
  """Also shows that stopping early changes nothing: numpy never does."""
  early = 0
  for seed in range(8):
    table_PV = table(seed, 12, ending=seed % 4)
    source_BS = sources(seed, 5, 6, 12)
    limit_B = np.random.default_rng(seed).integers(1, 16, 5)
    result = beam(
      table_PV,
      source_BS,
      limit_B,
      length=16,
      beam_size=4,
      alpha=alpha,
      n_best=n_best,
    )
    assert result.done_B.all()
    early += int((result.steps_B < limit_B).sum())
    for row in range(5):
      expected = numpy_beam(
        table_PV, source_BS[row], limit_B[row], alpha, beam_size=4
      )
      assert_found(result, row, expected[:n_best])
      missing = result.scores_BK[row, len(expected) :]
      assert (missing == -np.inf).all()
  assert early > 0


@pytest.mark.parametrize('enough', [1, 4, decode.ALL])
def test_a_search_ends_when_enough_have_ended(enough):
  """A sentence keeps what it had then, while others of its batch go on."""
  early = 0
  for seed in range(8):
    table_PV = table(seed, 12, ending=seed % 4)
    source_BS = sources(seed, 5, 6, 12)
    limit_B = np.random.default_rng(seed).integers(1, 16, 5)
    result, whole = (
      beam(
        table_PV,
        source_BS,
        limit_B,
        length=16,
        beam_size=4,
        alpha=1.5,
        penalty=decode.plain_penalty,
        enough=count,
        n_best=4,
      )
      for count in (enough, decode.ALL)
    )
    assert result.done_B.all()
    early += int((result.steps_B < whole.steps_B).sum())
    for row in range(5):
      expected = numpy_beam(
        table_PV,
        source_BS[row],
        limit_B[row],
        1.5,
        beam_size=4,
        divisor=lambda length, alpha: length**alpha,
        enough=enough,
      )
      assert_found(result, row, expected[:4])
      assert (result.scores_BK[row, len(expected) :] == -np.inf).all()
  assert (early > 0) == (enough != decode.ALL)


def run_greedy(table_PV, source_BS, limit_B, length=16):
  result = decode.greedy(
    Toy(),
    jnp.asarray(table_PV),
    jnp.asarray(source_BS),
    jnp.asarray(limit_B, jnp.int32),
    length=length,
  )
  return jax.device_get(result)


def test_greedy_takes_the_likeliest_and_is_a_beam_of_one():
  for seed in range(8):
    table_PV = table(seed, 12, ending=seed % 4)
    source_BS = sources(seed, 6, 6, 12)
    limit_B = np.random.default_rng(seed).integers(1, 16, 6)
    result = run_greedy(table_PV, source_BS, limit_B)
    one = beam(table_PV, source_BS, limit_B, length=16, beam_size=1, alpha=0.0)
    np.testing.assert_array_equal(result.tokens_BKT, one.tokens_BKT)
    np.testing.assert_allclose(result.log_probs_BK, one.log_probs_BK, rtol=1e-6)
    for row in range(6):
      tokens, state = [BOS], root(source_BS[row])
      while tokens[-1] != EOS:
        state = follow(state, tokens[-1])
        scores_V = table_PV[state].copy()
        scores_V[[PAD, BOS]] = -np.inf
        last = len(tokens) == limit_B[row]
        tokens.append(EOS if last else int(np.argmax(scores_V)))
      assert tokens_of(result, row) == tuple(tokens[1:])


def run(strategy, table_PV, source_BS, limit_B, id_B, length):
  arguments = (
    Toy(),
    jnp.asarray(table_PV),
    jnp.asarray(source_BS),
    jnp.asarray(limit_B, jnp.int32),
  )
  calls = {
    'greedy': lambda: decode.greedy(*arguments, length=length),
    'beam': lambda: decode.beam(
      *arguments, length=length, beam_size=3, alpha=0.6, n_best=3
    ),
    'sample': lambda: decode.sample(
      *arguments,
      length=length,
      id_B=jnp.asarray(id_B),
      key=randomness.seed_key(3),
      temperature=1.5,
      top_k=6,
      samples=3,
    ),
  }
  return jax.device_get(calls[strategy]())


@pytest.mark.parametrize('strategy', ['greedy', 'beam', 'sample'])
def test_a_row_depends_on_itself_alone(strategy):
  table_PV = table(1, 12, ending=0.5)
  source_BS = sources(5, 6, 6, 12)
  limit_B = np.count_nonzero(source_BS, axis=1) + 4
  whole = run(strategy, table_PV, source_BS, limit_B, np.arange(6), 10)
  for row in (0, 3, 5):
    # Alone but for a row of padding, wider, with a longer cache.
    wide_BS = np.zeros((2, 9), np.int32)
    wide_BS[1, :6] = source_BS[row]
    alone = run(strategy, table_PV, wide_BS, [0, limit_B[row]], [9, row], 14)
    for name in ('log_probs_BK', 'scores_BK', 'lengths_BK', 'steps_B'):
      np.testing.assert_array_equal(
        getattr(alone, name)[1], getattr(whole, name)[row], err_msg=name
      )
    np.testing.assert_array_equal(
      alone.tokens_BKT[1, :, :10], whole.tokens_BKT[row]
    )
    # The row of padding finds nothing, and at once.
    assert alone.steps_B[0] == 0 and alone.done_B[0]
    assert not alone.tokens_BKT[0].any()
    assert (alone.scores_BK[0] == -np.inf).all()


@pytest.mark.parametrize('strategy', ['greedy', 'beam'])
def test_every_hypothesis_ends_within_its_limit(strategy):
  table_PV = table(2, 12, ending=-4.0)
  source_BS = sources(6, 6, 6, 12)
  limit_B = np.arange(1, 7)
  result = run(strategy, table_PV, source_BS, limit_B, np.arange(6), 6)
  for row in range(6):
    for k in range(result.scores_BK.shape[1]):
      tokens = tokens_of(result, row, k)
      if result.scores_BK[row, k] == -np.inf:
        assert strategy == 'beam' and not tokens
        continue
      assert len(tokens) <= limit_B[row]
      assert tokens.index(EOS) == len(tokens) - 1
      assert not {PAD, BOS} & set(tokens)


@pytest.mark.parametrize('strategy', ['greedy', 'beam'])
def test_what_needs_more_steps_is_not_done(strategy):
  table_PV = table(2, 12, ending=1.0)
  source_BS = sources(6, 8, 6, 12)
  limit_B, id_B = [16] * 8, np.arange(8)
  whole = run(strategy, table_PV, source_BS, limit_B, id_B, 16)
  length = int(np.median(whole.steps_B))
  short = run(strategy, table_PV, source_BS, limit_B, id_B, length)
  np.testing.assert_array_equal(short.done_B, whole.steps_B <= length)
  assert short.done_B.any() and not short.done_B.all()
  for row in np.flatnonzero(short.done_B):
    assert tokens_of(short, row) == tokens_of(whole, row)


def run_sample(table_PV, rows, **kwargs):
  kwargs = {'temperature': 1.0, 'top_k': 0, 'samples': 1} | kwargs
  result = decode.sample(
    Toy(),
    jnp.asarray(table_PV),
    jnp.full((rows, 1), 4, jnp.int32),
    jnp.full(rows, 6, jnp.int32),
    length=6,
    id_B=jnp.arange(rows),
    key=randomness.seed_key(0),
    **kwargs,
  )
  return jax.device_get(result)


def test_sampling_among_one_is_greedy():
  table_PV = table(0, 12)
  result = run_sample(table_PV, 3, top_k=1, temperature=3.0, samples=2)
  expected = run_greedy(table_PV, np.full((3, 1), 4), [6] * 3, length=6)
  for k in range(2):
    np.testing.assert_array_equal(
      result.tokens_BKT[:, k], expected.tokens_BKT[:, 0]
    )


@pytest.mark.parametrize(('temperature', 'top_k'), [(1.0, 0), (0.5, 3)])
def test_samples_follow_the_distribution(temperature, top_k):
  table_PV = table(0, 8, ending=0.0)
  rows, samples = 500, 4
  result = run_sample(
    table_PV, rows, temperature=temperature, top_k=top_k, samples=samples
  )
  logits_V = table_PV[follow(root([4]), BOS)] / temperature
  logits_V[[PAD, BOS]] = -np.inf
  if top_k:
    logits_V[logits_V < np.sort(logits_V)[-top_k]] = -np.inf
  expected_V = np.exp(logits_V) / np.exp(logits_V).sum()
  # Samples of one sentence are as independent as those of two.
  counts_V = np.bincount(result.tokens_BKT[:, :, 0].ravel(), minlength=8)
  total = rows * samples
  deviation_V = np.sqrt(total * expected_V * (1 - expected_V))
  assert (np.abs(counts_V - total * expected_V) <= 4 * deviation_V).all()
  # They are ordered by what the model itself thinks of them.
  assert (np.diff(result.log_probs_BK, axis=1) <= 0).all()
  assert len({tokens_of(result, 0, k) for k in range(samples)}) > 1
  for k in range(samples):
    tokens = tokens_of(result, 1, k)
    np.testing.assert_allclose(
      result.log_probs_BK[1, k], log_prob(table_PV, [4], tokens), rtol=1e-5
    )
