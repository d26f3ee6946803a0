"""The loss against loops of numpy, its gradient against plain autodiff."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn import oracle
from transformer_jax.training.loss import (
  LossSums,
  projected_cross_entropy,
  token_losses,
)

M, D, V = 12, 5, 9
TARGETS_M = np.array([3, 8, 0, 1, 2, 0, 0, 5, 4, 7, 2, 0], np.int32)


@pytest.fixture(autouse=True)
def strict_dtypes():
  with jax.numpy_dtype_promotion('strict'):
    yield


def inputs(seed=0, m=M):
  rng = np.random.default_rng(seed)
  h_MD = rng.normal(size=(m, D)).astype(np.float32)
  w_VD = rng.normal(size=(V, D)).astype(np.float32)
  # Two targets that are the likeliest token.
  h_MD[[0, 4]] = 3 * w_VD[TARGETS_M[[0, 4]]]
  return h_MD, w_VD


@partial(jax.jit, static_argnums=4)
def chunked(h_MD, w_VD, targets_M, smoothing, chunk) -> LossSums:
  return projected_cross_entropy(h_MD, w_VD, targets_M, smoothing, chunk)


@partial(jax.jit, static_argnums=4)
def chunked_gradient(h_MD, w_VD, targets_M, smoothing, chunk):
  """Of 3 x the smoothed loss: the incoming cotangent is not 1."""

  def loss(h_MD, w_VD):
    sums = chunked(h_MD, w_VD, targets_M, smoothing, chunk)
    return 3 * sums.smoothed

  return jax.grad(loss, (0, 1))(h_MD, w_VD)


@jax.jit
def plain_gradient(h_MD, w_VD, targets_M, smoothing):
  def loss(h_MD, w_VD):
    logits_MV = jnp.einsum('MD,VD->MV', h_MD, w_VD)
    losses = token_losses(logits_MV, targets_M, smoothing=smoothing)
    return 3 * losses.smoothed.sum()

  return jax.grad(loss, (0, 1))(h_MD, w_VD)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.6])
@pytest.mark.parametrize('chunk', [4, 5, 64])
def test_sums_are_those_of_the_oracle(smoothing, chunk):
  h_MD, w_VD = inputs()
  logits_MV = h_MD.astype(np.float64) @ w_VD.T.astype(np.float64)
  scored = [m for m in range(M) if TARGETS_M[m] != 0]
  smoothed, plain = (
    sum(
      oracle.smoothed_cross_entropy(logits_MV[m], TARGETS_M[m], epsilon)
      for m in scored
    )
    for epsilon in (smoothing, 0.0)
  )
  correct = sum(logits_MV[m].argmax() == TARGETS_M[m] for m in scored)
  found = chunked(h_MD, w_VD, TARGETS_M, smoothing, chunk)
  assert 0 < correct < len(scored)
  np.testing.assert_allclose(
    found, [smoothed, plain, correct, len(scored)], rtol=1e-6
  )


def test_by_hand():
  # Even logits: every class has probability 1/4, whatever the smoothing.
  found = token_losses(jnp.zeros((2, 4)), jnp.array([3, 0]), smoothing=0.3)
  np.testing.assert_allclose(found.smoothed, [np.log(4), 0], rtol=1e-6)
  np.testing.assert_allclose(found.plain, [np.log(4), 0], rtol=1e-6)
  np.testing.assert_array_equal(found.correct, [1, 0])


@pytest.mark.parametrize('chunk', [4, 5, 64])
def test_gradient_is_that_of_the_whole_logits(chunk):
  h_MD, w_VD = inputs()
  found = chunked_gradient(h_MD, w_VD, TARGETS_M, 0.1, chunk)
  expected = plain_gradient(h_MD, w_VD, TARGETS_M, 0.1)
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(found[0][TARGETS_M == 0], 0.0)


def test_padding_changes_neither_sums_nor_gradients():
  h_MD, w_VD = inputs()
  keep_M = TARGETS_M != 0
  longer_MD = np.concatenate([h_MD, 100 * inputs(1, 7)[0]])
  targets_M = np.concatenate([TARGETS_M, np.zeros(7, np.int32)])
  short = h_MD[keep_M], w_VD, TARGETS_M[keep_M], 0.1, 5
  for call in (chunked, chunked_gradient):
    expected = call(*short)
    found = call(longer_MD, w_VD, targets_M, 0.1, 5)
    if call is chunked_gradient:
      found = found[0][:M][keep_M], found[1]
    for x, y in zip(found, expected, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  nothing = chunked(h_MD, w_VD, np.zeros(M, np.int32), 0.1, 5)
  np.testing.assert_array_equal(nothing, np.zeros(4))
  for x in chunked_gradient(h_MD, w_VD, np.zeros(M, np.int32), 0.1, 5):
    np.testing.assert_array_equal(x, 0.0)


def test_large_logits_overflow_nothing():
  h_MD, w_VD = inputs()
  found = chunked(1e4 * h_MD, w_VD, TARGETS_M, 0.1, 4)
  assert np.isfinite(found).all() and found.plain > 1e4
  for x in chunked_gradient(1e4 * h_MD, w_VD, TARGETS_M, 0.1, 4):
    assert np.isfinite(x).all()


def test_bfloat16_is_summed_in_float32():
  h_MD, w_VD = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
  wide = [np.asarray(x, np.float32) for x in (h_MD, w_VD)]
  found = chunked(h_MD, w_VD, TARGETS_M, 0.1, 5)
  # The inputs are rounded the same, and products are kept in float32.
  np.testing.assert_allclose(
    found, chunked(*wide, TARGETS_M, 0.1, 5), rtol=1e-5
  )
  assert all(total.dtype == jnp.float32 for total in found)
  for x, y in zip(
    chunked_gradient(h_MD, w_VD, TARGETS_M, 0.1, 5),
    chunked_gradient(*wide, TARGETS_M, 0.1, 5),
    strict=True,
  ):
    assert x.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(x), y, rtol=0.05, atol=0.05)
