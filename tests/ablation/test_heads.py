"""Distances of heads, heads knocked out, heads that begin alike."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import jensenshannon

from tests.ablation.test_probes import BATCH, initial_params, run, wider
from transformer_jax.ablation import heads
from transformer_jax.config import SITES
from transformer_jax.fields import override
from transformer_jax.training.state import loss_function, numbers


def test_distance_is_that_of_scipy():
  draw = np.random.default_rng(0)
  weights_BHTS = draw.dirichlet(np.full(5, 0.3), size=(2, 3, 4))
  weights_BHTS = weights_BHTS.astype(np.float32)
  see_BTS = np.ones((2, 4, 5), bool)
  see_BTS[1, 2:] = False  # Two queries of padding.
  see_BTS[0, 0, 1:] = False  # And one that has no choice.
  found_HH = heads.distances(jnp.array(weights_BHTS), jnp.array(see_BTS))
  rows = [(b, t) for b in range(2) for t in range(4) if see_BTS[b, t].sum() > 1]
  assert len(rows) == 5
  for one in range(3):
    for other in range(3):
      wanted = np.mean(
        [
          jensenshannon(*weights_BHTS[b, (one, other), t], base=2)
          for b, t in rows
        ]
      )
      np.testing.assert_allclose(found_HH[one, other], wanted, atol=1e-3)


def test_heads_that_begin_alike_are_at_no_distance():
  config, model, params = run()
  same = initial_params(override(config, {'model.head_init': 'alike'}))
  before, after = (
    tree['decoder']['layers']['cross_attention'] for tree in (params, same)
  )
  for name in ('w_q_DHK', 'w_k_DHK', 'w_v_DHE'):
    for head in range(2):
      np.testing.assert_array_equal(
        after[name][:, :, head], before[name][:, :, 0]
      )
  # Training can tell them apart.
  np.testing.assert_array_equal(after['w_o_HED'], before['w_o_HED'])
  arguments = wider(BATCH, 2), numbers(config)
  found = {
    name: heads.head_distances(config, model, weights, *arguments)
    for name, weights in (('alike', same), ('drawn', params))
  }
  for site in SITES:
    assert found['alike'][site].shape == (2, 2, 2)
    # The square root of a rounding error.
    assert np.all(found['alike'][site] < 2e-3)
    apart_N = found['drawn'][site][:, 0, 1]
    assert np.all(apart_N > 0.02) and np.all(apart_N < 1)


def test_a_head_knocked_out_is_a_head_without_output_weights():
  config, model, params = run()
  found = heads.knock_out(config, model, params, BATCH, numbers(config))
  assert {site: rise.shape for site, rise in found.items()} == dict.fromkeys(
    SITES, (2, 2)
  )
  loss = jax.jit(loss_function(config, model))

  def plain(weights):
    sums = loss(weights, BATCH, None, numbers(config))
    return sums.plain / sums.tokens

  cut = jax.tree.map(lambda x: x, params)
  attention = cut['encoder']['layers']['self_attention']
  attention['w_o_HED'] = attention['w_o_HED'].at[1, 0].set(0)
  np.testing.assert_allclose(
    found['encoder_self'][1, 0], plain(cut) - plain(params), atol=1e-5
  )
