"""A real model, decoded with its cache and without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.presets import PRESETS
from tests.inference.conftest import drawn
from transformer_jax.config import Config
from transformer_jax.data.tokens import BOS, EOS, PAD
from transformer_jax.fields import override
from transformer_jax.inference import decode
from transformer_jax.inference.beam import beam
from transformer_jax.inference.stepper import ModelStepper
from transformer_jax.nn.transformer import Transformer, initial_params

VOCABULARY = 11


def build(**changes):
  """A tiny model with sharp, random predictions, and its parameters."""
  own = {f'model.{name}': value for name, value in changes.items()}
  values = {**PRESETS['test'].overrides, **own}
  config = override(Config(), values).model
  initial = initial_params(
    config, source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY
  )
  return Transformer(config, VOCABULARY, VOCABULARY), drawn(initial)


@pytest.fixture(scope='module')
def tiny():
  return build()


SOURCE_BS = np.array(
  [[5, 6, 7, 8, EOS, PAD], [9, EOS, PAD, PAD, PAD, PAD], [4, 4, 9, 7, 6, EOS]],
  np.int32,
)


@functools.partial(jax.jit, static_argnums=0)
def uncached_log_probs(model, params, source_BS, target_BT):
  logits_BTV = model.apply({'params': params}, source_BS, target_BT)
  return jax.nn.log_softmax(logits_BTV)


def test_cached_steps_are_the_full_forward():
  """Three hypotheses of each sentence, which swap places half way.

  The other tests here do the same for the other order of norms and positions.
  """
  model, params = build(norm_order='pre', position='learned')
  stepper = ModelStepper(model)
  target_KBT = np.random.default_rng(0).integers(3, VOCABULARY, (3, 3, 6))
  target_KBT = target_KBT.astype(np.int32)
  order = np.array([[2, 0, 1], [1, 1, 0], [0, 2, 2]])
  start = jax.jit(stepper.start, static_argnames=('length', 'width'))
  cache = start(params, SOURCE_BS, length=6, width=3)
  token_BK = np.full((3, 3), BOS, np.int32)
  step, reorder = jax.jit(stepper.step), jax.jit(stepper.reorder)
  found = []
  for index in range(6):
    log_probs_BKV, cache = step(params, cache, token_BK, np.int32(index))
    found.append(np.asarray(log_probs_BKV))
    if index == 2:
      cache = reorder(cache, order)
      rows = np.arange(3)[:, None]
      target_KBT[:, :, :3] = target_KBT[order.T, rows.T, :3]
      found = [x_BKV[rows, order] for x_BKV in found]
    token_BK = target_KBT[:, :, index].T.copy()
  for k in range(3):
    expected_BTV = uncached_log_probs(model, params, SOURCE_BS, target_KBT[k])
    cached_BTV = np.stack([x_BKV[:, k] for x_BKV in found], axis=1)
    np.testing.assert_allclose(cached_BTV, expected_BTV, rtol=0, atol=1e-5)


def test_greedy_makes_the_choices_of_the_full_forward(tiny):
  model, params = tiny
  limit_B = jnp.array([9, 5, 7])
  result = decode.greedy(
    ModelStepper(model), params, SOURCE_BS, limit_B, length=9
  )
  target_BT = np.zeros((3, 9), np.int32)
  total_B = np.zeros(3)
  for index in range(9):
    # A copy: the full forward of one step must not see the next choice.
    log_probs_BTV = uncached_log_probs(
      model, params, SOURCE_BS, target_BT.copy()
    )
    scores_BV = np.array(log_probs_BTV[:, index])
    scores_BV[:, [PAD, BOS]] = -np.inf
    for row in range(3):
      if EOS in target_BT[row, :index]:
        continue
      last = index + 1 == limit_B[row]
      token = EOS if last else int(np.argmax(scores_BV[row]))
      total_B[row] += scores_BV[row, token]
      target_BT[row, index] = token
  np.testing.assert_array_equal(result.tokens_BKT[:, 0], target_BT)
  np.testing.assert_allclose(
    result.log_probs_BK[:, 0], total_B, rtol=0, atol=1e-5
  )


def test_beam_scores_are_those_of_teacher_forcing(tiny):
  model, params = tiny
  limit_B = jnp.array([9, 5, 7])
  result = beam(
    ModelStepper(model),
    params,
    SOURCE_BS,
    limit_B,
    length=9,
    beam_size=3,
    alpha=0.6,
    n_best=3,
  )
  for k in range(3):
    target_BT = np.asarray(result.tokens_BKT[:, k])
    log_probs_BTV = np.asarray(
      uncached_log_probs(model, params, SOURCE_BS, target_BT)
    )
    given_BT1 = np.take_along_axis(log_probs_BTV, target_BT[..., None], 2)
    total_B = np.sum(given_BT1[..., 0] * (target_BT != PAD), axis=1)
    np.testing.assert_allclose(result.log_probs_BK[:, k], total_B, atol=1e-5)
