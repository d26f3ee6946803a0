"""Greedy decoding and sampling; what every strategy promises of a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.inference.toy import (
  Toy,
  follow,
  log_prob,
  root,
  run_beam,
  sources,
  table,
  tokens_of,
)
from transformer_jax.data.tokens import BOS, EOS, PAD
from transformer_jax.inference import decode
from transformer_jax.inference.beam import beam
from transformer_jax.nn import randomness


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
    one = run_beam(
      table_PV, source_BS, limit_B, length=16, beam_size=1, alpha=0.0
    )
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
    'beam': lambda: beam(
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
