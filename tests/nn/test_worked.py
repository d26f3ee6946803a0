"""Claims about the maths of attention, each worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.nn import attention, norms, positions, randomness
from transformer_jax.nn.attention import How
from transformer_jax.nn.initializers import INITIALIZATIONS, QUERY_KEY_INITS

D = 512


def product_variance(init, d_k):
  """Of q . k over inputs of unit variance and weights of one head."""
  recipe = INITIALIZATIONS['tensor2tensor']
  draw = QUERY_KEY_INITS[init](recipe)
  found = []
  for seed in range(4):
    x_TD, y_SD, *keys = (
      randomness.at(randomness.seed_key(seed), part) for part in 'xyqk'
    )
    x_TD, y_SD = (randomness.normal(key, (64, D)) for key in (x_TD, y_SD))
    w_q_DK, w_k_DK = (draw(key, (D, d_k), D, d_k) for key in keys)
    found.append(jnp.square((x_TD @ w_q_DK) @ (y_SD @ w_k_DK).T).mean())
  return np.mean(found)


@pytest.mark.parametrize('d_k', [16, 64, 256, 1024])
def test_query_times_key_has_variance_d_k_under_fan_in_only(d_k):
  """Footnote 4, from the embeddings on; with fan_avg it needs H K = D."""
  assert abs(product_variance('fan_in', d_k) / d_k - 1) < 0.1
  closed_form = d_k * (2 * D / (D + d_k)) ** 2
  found = product_variance('fan_avg', d_k)
  assert abs(found / closed_form - 1) < 0.1
  assert abs(found / d_k - 1) > 0.5


def test_the_authors_recipe_is_fan_avg():
  key, shape = randomness.seed_key(0), (16, 2, 8)
  recipe = INITIALIZATIONS['tensor2tensor']
  own, fan_avg = (
    QUERY_KEY_INITS[name](recipe)(key, shape, 16, 16)
    for name in ('recipe', 'fan_avg')
  )
  np.testing.assert_array_equal(own, fan_avg)


def test_a_folded_scale_is_one_over_the_root():
  assert attention.SCALES['folded_init'].fold(64) == attention.Fold(0.125, 1.0)
  assert attention.SCALES['folded_rate'].fold(64) == attention.Fold(1.0, 0.125)
  assert attention.SCALES['folded_init_rate'].fold(64) == attention.Fold(
    0.125, 0.125
  )
  assert attention.SCALES['inverse_d_k'].factor(64) == 1 / 64


def test_a_scale_for_each_head_multiplies_the_scores_of_each_score():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.normal(size=(2, 3, 2, 4)), 'float32') for _ in 'qk')
  scale_H = jnp.array([0.5, 3.0])
  for name, score in attention.SCORES.items():
    w = None
    if score.parameter:
      shape = attention.parameter_shape(score, heads=2, d_k=4)
      w = jnp.asarray(rng.normal(size=shape), 'float32')
    found = score.scores(q, k, w, scale=scale_H)
    plain = score.scores(q, k, w, scale=1.0)
    wanted = plain * scale_H[None, :, None, None]
    np.testing.assert_allclose(
      found, wanted, rtol=1e-5, atol=1e-6, err_msg=name
    )


def test_a_bias_is_added_after_the_scale_and_before_the_mask():
  q = k = jnp.zeros((1, 3, 1, 2))
  v = jnp.array([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
  # Three times as much for each place that the key is farther on.
  bias_HA = jnp.log(jnp.array([[1.0, 3.0, 9.0, 27.0, 81.0]]))
  see_BTS = jnp.array([[[True, True, False]]])
  found = attention.attention(q, k, v, see_BTS, How(7.0, bias_HA=bias_HA))
  # Weights 1 : 3, of values 1 and 2.
  np.testing.assert_allclose(found[0, :, 0, 0], 7 / 4, rtol=1e-6)


def test_moments_are_of_real_tokens():
  x_BTD = jnp.array([[[1.0], [3.0], [99.0]], [[5.0], [77.0], [88.0]]])
  real_BT = jnp.array([[True, True, False], [True, False, False]])
  found = norms.moments(x_BTD, real_BT)
  np.testing.assert_allclose(found.mean_D, [3.0])
  np.testing.assert_allclose(found.variance_D, [8 / 3], rtol=1e-6)
  old = norms.Moments(jnp.array([1.0]), jnp.array([1.0]))
  after = norms.running(old, found, real_BT)
  np.testing.assert_allclose(after.mean_D, [1 + 0.1 * 2], rtol=1e-6)
  nothing = jnp.zeros_like(real_BT)
  still = norms.running(old, norms.moments(x_BTD, nothing), nothing)
  np.testing.assert_array_equal(still, old)


def test_batch_norm_gives_each_feature_mean_0_and_variance_1():
  x_BTD = 3 + 2 * randomness.normal(randomness.seed_key(0), (8, 5, 4))
  see_BT = jnp.ones((1, 1), bool)
  own = norms.moments(x_BTD, see_BT)
  found = norms.batch_norm(x_BTD, jnp.ones(4), jnp.zeros(4), own)
  np.testing.assert_allclose(found.mean((0, 1)), 0, atol=1e-5)
  np.testing.assert_allclose(found.var((0, 1)), 1, rtol=1e-4)


def test_buckets_of_distances_are_exact_when_near_and_one_when_far():
  length = 400
  both = positions.distance_buckets(length, both_ways=True)
  past = positions.distance_buckets(length, both_ways=False)
  middle = length - 1
  np.testing.assert_array_equal(
    both[middle - 7 : middle + 1], np.arange(8)[::-1]
  )
  np.testing.assert_array_equal(
    past[middle - 15 : middle], np.arange(1, 16)[::-1]
  )
  # As in T5, no key stands after the query at distance 0: bucket 16 is idle.
  assert set(both) == set(range(32)) - {16}
  assert set(past) == set(range(32))
  # From 128 on all distances share a bucket, and 127 is in another one.
  assert both[middle - 128] == both[0] == 15
  assert past[middle - 128] == past[0] == 31
  assert np.all(np.diff(past[: middle + 1]) <= 0)


def test_near_positions_have_similar_codes():
  table_TD = positions.sinusoid_TD(50, 64)
  products_T = table_TD @ table_TD[0]
  assert np.argmax(products_T) == 0
  assert np.all(np.diff(products_T[:5]) < 0)


def test_the_softmax_passes_nothing_on_when_one_weight_is_all():
  """Its Jacobian is diag(p) - p p^T: zero for a one-hot p."""
  norms_of = [
    jnp.linalg.norm(jax.jacobian(jax.nn.softmax)(scale * jnp.arange(4.0)))
    for scale in (1.0, 8.0, 64.0)
  ]
  assert norms_of[0] > norms_of[1] > norms_of[2]
  assert norms_of[2] < 1e-20
