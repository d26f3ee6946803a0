"""The schedule by hand and Adam against its algorithm in loops."""

import dataclasses

import jax
import numpy as np
import pytest

from transformer_jax.config import OptimConfig
from transformer_jax.fields import FIELDS
from transformer_jax.training import optim


@pytest.mark.parametrize(
  ('step', 'rate'),
  # 64^-0.5 = 1/8; 4^-1.5 = 1/8.
  [(1, 1 / 64), (2, 2 / 64), (4, 1 / 16), (16, 1 / 32), (64, 1 / 64)],
)
def test_the_papers_schedule(step, rate):
  found = optim.paper_schedule(step, d_model=64, warmup_steps=4)
  np.testing.assert_allclose(found, rate, rtol=1e-6)


def test_inverse_sqrt_is_highest_after_warmup_and_is_one_there():
  steps = range(1, 50)
  rates = np.array(
    [optim.inverse_sqrt_schedule(step, warmup_steps=9) for step in steps]
  )
  assert rates.argmax() == 8
  np.testing.assert_allclose(rates[8], 1.0)
  np.testing.assert_allclose(rates[2], 1 / 3, rtol=1e-6)
  np.testing.assert_allclose(rates[35], 1 / 2, rtol=1e-6)
  paper = [
    optim.paper_schedule(step, d_model=64, warmup_steps=9) for step in steps
  ]
  np.testing.assert_allclose(rates, paper / np.max(paper), rtol=1e-5)


def test_every_choice_has_a_schedule_and_all_differ():
  assert set(optim.SCHEDULES) == set(FIELDS['optim.schedule'].choices or ())
  found = {
    float(schedule(9, d_model=16, warmup_steps=4))
    for schedule in optim.SCHEDULES.values()
  }
  assert len(found) == len(optim.SCHEDULES)


def oracle_adam(grads, config):
  """Kingma and Ba, algorithm 1: the directions of all steps."""
  m, v, directions = 0.0, 0.0, []
  for t, g in enumerate(grads, 1):
    m = config.beta1 * m + (1 - config.beta1) * g
    v = config.beta2 * v + (1 - config.beta2) * g**2
    m_hat = m / (1 - config.beta1**t)
    v_hat = v / (1 - config.beta2**t)
    directions.append(m_hat / (np.sqrt(v_hat) + config.epsilon))
  return directions


def directions(grads, config):
  adam = optim.adam(config)
  update = jax.jit(adam.update)
  state = adam.init({'w': np.float32(grads[0])})
  found = []
  for g in grads:
    direction, state = update({'w': np.float32(g)}, state)
    found.append(np.asarray(direction['w']))
  return found


def test_adam_is_the_papers():
  config = OptimConfig()
  assert (config.beta1, config.beta2, config.epsilon) == (0.9, 0.98, 1e-9)
  grads = np.random.default_rng(0).normal(size=(6, 3))
  # Small enough for epsilon to show.
  grads[:, 2] *= 1e-9
  np.testing.assert_allclose(
    directions(grads, config), oracle_adam(grads, config), rtol=1e-4
  )


def test_clipping_is_to_the_norm_of_all_and_before_adam():
  config = dataclasses.replace(OptimConfig(), clip_norm=1.0)
  # Norms 5, 0.5 and 10: the second is left as it is.
  grads = [np.array([3.0, 4.0]), np.array([0.3, 0.4]), np.array([-6.0, 8.0])]
  clipped = [grads[0] / 5, grads[1], grads[2] / 10]
  expected = oracle_adam(clipped, config)
  np.testing.assert_allclose(directions(grads, config), expected, rtol=1e-5)
  unclipped = oracle_adam(grads, config)
  assert not np.allclose(expected[2], unclipped[2], rtol=1e-2)
