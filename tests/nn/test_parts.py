"""Positions, attention, dropout and initial values, each by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn import oracle
from transformer_jax.nn import attention, positions, randomness
from transformer_jax.nn.attention import How
from transformer_jax.nn.initializers import INITIALIZATIONS


def test_sinusoid_is_the_papers():
  np.testing.assert_allclose(
    positions.sinusoid_TD(50, 12), oracle.positional_encoding(50, 12), atol=1e-6
  )


def test_sinusoid_refuses_an_odd_width():
  with pytest.raises(ValueError, match='must be even'):
    positions.sinusoid_TD(4, 7)


def test_sinusoid_of_a_shift_is_a_rotation():
  """PE(p) . PE(p + k) depends on k only; PE(p + k) is linear in PE(p)."""
  table_TD = positions.sinusoid_TD(200, 32).astype(np.float64)
  k = 7
  products = np.sum(table_TD[:-k] * table_TD[k:], axis=1)
  np.testing.assert_allclose(products, products[0], atol=1e-4)
  for i in range(16):
    angle = k / 10000 ** (2 * i / 32)
    turn = np.array(
      [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    pair_T2 = table_TD[:, 2 * i : 2 * i + 2]
    np.testing.assert_allclose(pair_T2[:-k] @ turn, pair_T2[k:], atol=1e-5)


def qkv(seed=0, B=2, T=5, S=7, H=3, K=4, E=6):
  rng = np.random.default_rng(seed)
  shapes = (B, T, H, K), (B, S, H, K), (B, S, H, E)
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def test_attention_is_the_papers():
  q, k, v = qkv()
  mask_BTS = np.random.default_rng(1).random((2, 5, 7)) < 0.6
  mask_BTS[:, :, 0] = True
  found = attention.attention(q, k, v, jnp.asarray(mask_BTS), How(0.5))
  for b in range(2):
    for h in range(3):
      head = [np.asarray(x[b, :, h], np.float64) for x in (q, k, v)]
      wanted = oracle.attention(head[0], head[1], head[2], mask_BTS[b])
      np.testing.assert_allclose(found[b, :, h], wanted, rtol=1e-5, atol=1e-6)


def test_attention_and_its_gradient_are_those_of_jax():
  q, k, v = qkv(E=4)
  mask_BTS = jnp.asarray(np.random.default_rng(2).random((2, 5, 7)) < 0.7)
  mask_BTS = mask_BTS.at[:, :, 0].set(True)

  def ours(q, k, v):
    return jnp.sum(attention.attention(q, k, v, mask_BTS, How(0.5)) ** 2)

  def theirs(q, k, v):
    return jnp.sum(
      jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None], scale=0.5)
      ** 2
    )

  arguments = (0, 1, 2)
  for a, b in zip(
    jax.grad(ours, arguments)(q, k, v),
    jax.grad(theirs, arguments)(q, k, v),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_additive_and_general_scores_are_their_formulas():
  q, k, _ = qkv()
  rng = np.random.default_rng(3)
  w_HK, w_HKL = rng.normal(size=(3, 4)), rng.normal(size=(3, 4, 4))
  additive = attention.additive_scores(q, k, jnp.asarray(w_HK), scale=0.7)
  general = attention.general_scores(q, k, jnp.asarray(w_HKL), scale=0.7)
  for b, h, t, s in [(0, 0, 0, 0), (1, 2, 4, 6), (0, 1, 3, 2)]:
    q_K, k_K = np.float64(q[b, t, h]), np.float64(k[b, s, h])
    np.testing.assert_allclose(
      additive[b, h, t, s], 0.7 * w_HK[h] @ np.tanh(q_K + k_K), rtol=1e-5
    )
    np.testing.assert_allclose(
      general[b, h, t, s], 0.7 * q_K @ w_HKL[h] @ k_K, rtol=1e-5
    )


def test_cosine_scores_ignore_lengths_and_uniform_scores_everything():
  q, k, _ = qkv()
  cosine = attention.cosine_scores(q, k, scale=2.0)
  np.testing.assert_allclose(
    cosine, attention.cosine_scores(q * 9, k * 3, scale=2.0), rtol=1e-4
  )
  assert np.all(np.abs(cosine) <= 2.0)
  assert not np.any(attention.uniform_scores(q, k, scale=2.0))


@pytest.mark.parametrize('d_k', [16, 64, 256, 1024])
def test_dot_products_of_unit_variance_have_variance_d_k(d_k):
  """Footnote 4; the scale 1/sqrt(d_k) brings them back to one."""
  keys = [randomness.seed_key(seed) for seed in (0, 1)]
  q, k = (randomness.normal(key, (1, 200, 1, d_k)) for key in keys)
  for name, variance in [
    ('none', d_k),
    ('rsqrt_d_k', 1),
    ('inverse_d_k', 1 / d_k),
  ]:
    scores = attention.dot_scores(
      q, k, scale=attention.SCALES[name].factor(d_k)
    )
    np.testing.assert_allclose(np.var(scores), variance, rtol=0.1)


def test_softmax_passes_less_gradient_as_scores_grow():
  """Norm of the Jacobian of softmax over 64 keys, unscaled dot products."""
  norms = []
  for d_k in (4, 16, 64, 256, 1024):
    keys = [randomness.seed_key(seed) for seed in (2, 3)]
    q = randomness.normal(keys[0], (1, 32, 1, d_k))
    k = randomness.normal(keys[1], (1, 64, 1, d_k))
    scores_TS = attention.dot_scores(q, k, scale=1.0)[0, 0]
    jacobian_TSS = jax.vmap(jax.jacobian(jax.nn.softmax))(scores_TS)
    norms.append(float(jnp.mean(jnp.sqrt(jnp.sum(jacobian_TSS**2, (1, 2))))))
  # It rises while weights leave evenness, then falls as they saturate.
  assert norms[-1] < norms[-2] < norms[-3]
  assert norms[-1] < max(norms) / 2


def test_dropout_rate_and_expectation():
  key = randomness.seed_key(3)
  x = jnp.ones((64, 32, 128))
  for rate in (0.1, 0.3, 0.9):
    dropped = np.asarray(randomness.dropout(x, key, rate))
    assert abs(np.mean(dropped == 0) - rate) < 0.004
    np.testing.assert_allclose(dropped.max(), 1 / (1 - rate), rtol=1e-6)
    # Every row, column and plane is dropped at that rate, too.
    for axes in [(0, 1), (0, 2), (1, 2)]:
      share = np.mean(dropped == 0, axis=axes)
      count = dropped.size / share.size
      bound = 5.5 * (rate * (1 - rate) / count) ** 0.5
      assert np.all(np.abs(share - rate) < bound)
  np.testing.assert_array_equal(randomness.dropout(x, key, 0.0), x)


def test_dropout_bits_are_uniform_and_uncorrelated():
  def bits(key):
    return np.asarray(
      randomness.coordinate_bits(key, *randomness.grid((256, 512)))
    )

  # Neighbouring seeds, and two places under one seed.
  keys = [randomness.seed_key(seed) for seed in (0, 1)]
  keys += [randomness.at(keys[0], place) for place in ('a', 1)]
  fields = [bits(key) / 2.0**32 - 0.5 for key in keys]
  deviation = 12**-0.5
  for field in fields:
    histogram, _ = np.histogram(field, 64)
    chi_squared = np.sum((histogram - 2048) ** 2 / 2048)
    assert 25 < chi_squared < 115  # 63 degrees of freedom, +- 4.6 sd
  noise = 5 / (256 * 512) ** 0.5
  pairs = [(fields[0], other) for other in fields[1:]]
  pairs += [(fields[0][:, 1:], fields[0][:, :-1])]
  pairs += [(fields[0][1:], fields[0][:-1]), (fields[0][2:], fields[0][:-2])]
  for a, b in pairs:
    assert abs(np.mean(a * b) / deviation**2) < noise


def test_bits_of_a_place_do_not_depend_on_the_rest():
  key = randomness.seed_key(5)
  whole = randomness.coordinate_bits(key, *randomness.grid((4, 6, 8)))
  part = randomness.coordinate_bits(key, *randomness.grid((4, 3, 5)))
  np.testing.assert_array_equal(whole[:, :3, :5], part)


def test_initial_values_have_the_variance_of_their_fans():
  key, D, H, K = randomness.seed_key(0), 64, 4, 32

  def draw(table, role, *shape_fans):
    return np.var(INITIALIZATIONS[table][role](key, *shape_fans))

  qkv_fans = (D, H, K), D, H * K
  np.testing.assert_allclose(
    draw('tensor2tensor', 'attention_input', *qkv_fans),
    2 / (D + H * K),
    rtol=0.05,
  )
  np.testing.assert_allclose(
    draw('fairseq', 'attention_input', *qkv_fans), 1 / (D + H * K), rtol=0.05
  )
  np.testing.assert_allclose(
    draw('fairseq', 'feed_forward', (D, 256), D, 256), 1 / (3 * D), rtol=0.05
  )
  np.testing.assert_allclose(
    draw('tensor2tensor', 'embedding', (500, D), 500, D), 1 / D, rtol=0.05
  )
