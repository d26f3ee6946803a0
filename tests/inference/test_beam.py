"""Beam search against exhaustive search and beams written out in numpy."""

import itertools

import numpy as np
import pytest

from tests.inference.toy import (
  follow,
  log_prob,
  penalty,
  root,
  run_beam,
  sources,
  table,
  tokens_of,
)
from transformer_jax.data.tokens import BOS, EOS, PAD
from transformer_jax.inference import beam


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
  """The beam of `beam.beam` in loops: on to the limit, or `enough`."""
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
    for rank, candidate in enumerate(candidates):
      if len(live) == beam_size:
        break
      if candidate[1][-1] == EOS and rank < enough:
        found.append((candidate[0] / divisor(length, alpha), candidate[1]))
      elif candidate[1][-1] != EOS:
        live.append(candidate)
    if len(found) >= enough:
      break
  return sorted(found, reverse=True)


def assert_found(result, row, expected):
  """The hypotheses of a row are the first of `expected`."""
  for k, (score, tokens) in enumerate(expected):
    assert tokens_of(result, row, k) == tokens
    np.testing.assert_allclose(result.scores_BK[row, k], score, rtol=1e-5)
    assert not result.tokens_BKT[row, k, len(tokens) :].any()


def test_penalty_by_hand():
  assert beam.length_penalty(1, 0.6) == 1.0
  np.testing.assert_allclose(beam.length_penalty(13, 0.5), 3**0.5, rtol=1e-6)
  assert beam.length_penalty(13, 0.0) == 1.0


@pytest.mark.parametrize('alpha', [0.0, 0.6])
def test_wide_beam_is_exhaustive(alpha):
  # Three words, up to 4 tokens: at most 27 live prefixes.
  limit = 4
  for seed in range(4):
    table_PV = table(seed, 6, ending=seed - 2)
    source_BS = sources(seed, 3, 4, 6)
    result = run_beam(
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
    result = run_beam(
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


@pytest.mark.parametrize('enough', [1, 4, beam.ALL])
def test_a_search_ends_when_enough_have_ended(enough):
  """A sentence keeps what it had then, while others of its batch go on."""
  early = 0
  for seed in range(8):
    table_PV = table(seed, 12, ending=seed % 4)
    source_BS = sources(seed, 5, 6, 12)
    limit_B = np.random.default_rng(seed).integers(1, 16, 5)
    result, whole = (
      run_beam(
        table_PV,
        source_BS,
        limit_B,
        length=16,
        beam_size=4,
        alpha=1.5,
        penalty=beam.plain_penalty,
        enough=count,
        n_best=4,
      )
      for count in (enough, beam.ALL)
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
  assert (early > 0) == (enough != beam.ALL)
