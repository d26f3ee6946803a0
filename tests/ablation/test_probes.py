"""Probes against closed forms, by hand, and against a direct gradient."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.presets import PRESETS
from tests.ablation.small import changed
from transformer_jax.ablation import probes
from transformer_jax.ablation.probing import Probing
from transformer_jax.ablation.study import PROBES
from transformer_jax.config import SITES, Config
from transformer_jax.data.cache import Batch
from transformer_jax.fields import override
from transformer_jax.nn import attention, randomness, watch
from transformer_jax.nn.transformer import Transformer, with_statistics
from transformer_jax.training.population import Member
from transformer_jax.training.state import initial_state, numbers

V = 12
BATCH = Batch(
  np.array([[5, 6, 7, 4, 8, 2], [9, 11, 10, 2, 0, 0]], np.int32),
  np.array([[8, 4, 7, 6, 2], [10, 11, 2, 0, 0]], np.int32),
)


def wider(batch: Batch, by: int) -> Batch:
  """With more padding, and a row of nothing else."""
  return Batch(*(np.pad(side, ((0, 1), (0, by))) for side in batch))


@functools.cache
def initial_params(config: Config):
  model = Transformer(config.model, V, V)
  return jax.jit(initial_state(config, model))(randomness.seed_key(0)).params


@functools.cache
def run(score='dot', **changes):
  values = {
    **PRESETS['test'].overrides,
    'model.layers': 2,
    'model.score': score,
  }
  base = override(Config(), values)
  changed = {f'model.{name}': value for name, value in changes.items()}
  config = override(base, changed)
  return config, Transformer(config.model, V, V), initial_params(base)


@functools.cache
def probed(batch_width=0, **changes):
  config, model, params = run(**changes)
  batch = wider(BATCH, batch_width) if batch_width else BATCH
  return probes.probe(config, model, params, batch, numbers(config))


def test_every_site_layer_and_head_has_every_probe():
  found = probed()
  assert list(found) == list(SITES)
  for site in found.values():
    assert set(site) == set(PROBES)
    for name, value in site.items():
      wanted = (2,) if name == 'input_variance' else (2, 2)
      assert np.shape(value) == wanted, name
      assert np.all(np.isfinite(value))


@pytest.mark.parametrize(
  'score',
  [{}, pytest.param({'score': 'additive'}, marks=pytest.mark.slow)],
)
def test_padding_changes_no_probe(score):
  narrow, wide = (probed(*width, **score) for width in ((), (3,)))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6),
    narrow,
    wide,
  )


def test_scores_of_a_wide_key_are_as_spread_as_the_key_is_wide():
  """Fan-in projections of unit inputs: q . k has variance d_k (3.2.1)."""
  draw = np.random.default_rng(0)
  x_BTD = draw.normal(size=(8, 64, 96)).astype(np.float32)
  see_BTS = jnp.ones((8, 64, 64), bool)
  for d_k in (16, 256):
    w_q_DHK, w_k_DHK = draw.normal(size=(2, 96, 4, d_k)) / np.sqrt(96)
    q, k = (
      jnp.einsum('BTD,DHK->BTHK', x_BTD, jnp.float32(w))
      for w in (w_q_DHK, w_k_DHK)
    )
    variance = {}
    for scale in (1.0, d_k**-0.5):
      scores_BHTS = attention.dot_scores(q, k, scale=scale)
      weights_BHTS = attention.attention_weights(scores_BHTS, see_BTS)
      found = probes.spread(scores_BHTS, weights_BHTS, see_BTS)
      variance[scale] = np.mean(found.score_variance)
      # 64 keys of even weight have log 64 nats; a normal spread of unit
      # variance takes about half a nat from that.
      if scale < 1:
        assert abs(np.mean(found.entropy) - (np.log(64) - 0.5)) < 0.1
        assert not np.any(found.saturated)
      if scale == 1 and d_k == 256:
        assert np.mean(found.saturated) > 0.4
    np.testing.assert_allclose(variance[1.0], d_k, rtol=0.1)
    np.testing.assert_allclose(variance[d_k**-0.5], 1, rtol=0.1)


def test_spread_by_hand():
  """Two queries, three keys; the second query is padding, key three too."""
  scores_BHTS = jnp.array([0.0, 2.0, 50.0, 7.0, 8.0, 9.0]).reshape(1, 1, 2, 3)
  mask_BTS = jnp.array([[[True, True, False]]])
  batch = Batch(np.array([[4, 2, 0]]), np.array([[2, 0]]))
  see_BTS = probes.seen_pairs('cross', mask_BTS, batch)
  weights_BHTS = attention.attention_weights(scores_BHTS, mask_BTS)
  found = probes.spread(scores_BHTS, weights_BHTS, see_BTS)
  p = 1 / (1 + np.exp(-2))
  entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
  np.testing.assert_allclose(
    np.stack(found)[:, 0], [1.0, 2.0, entropy, 0.0], rtol=1e-5
  )


def test_without_the_scale_scores_spread_d_k_times_as_much():
  """Layer 0 of the encoder reads the same in both: d_k is 8 here."""
  scaled, unscaled = (
    probed(**scale)['encoder_self'] for scale in ({}, {'scale': 'none'})
  )
  np.testing.assert_allclose(
    unscaled['score_variance'][0],
    np.multiply(scaled['score_variance'][0], 8),
    rtol=1e-4,
  )
  assert np.all(np.less(unscaled['entropy'][0], scaled['entropy'][0]))
  # After the first norm the input is of unit variance, before it is not.
  assert abs(scaled['input_variance'][1] - 1) < 1e-3
  assert abs(scaled['input_variance'][0] - 1) > 0.1


def test_gradients_are_those_of_a_perturbation():
  """dL/dscores and dL/dweights again, by adding zeros of their full size."""
  config, model, params = run()
  found = probed()
  sizes = {'encoder_self': (6, 6), 'decoder_self': (5, 5), 'cross': (5, 6)}

  def loss(params, zeros):
    def look(place, q, k, v, mask, how):
      scores_BHTS = attention.all_scores(q, k, how) + place.inputs['scores']
      mask = attention.allowed_BTS(mask, how, *scores_BHTS.shape[2:])
      weights_BHTS = attention.attention_weights(scores_BHTS, mask)
      weights_BHTS += place.inputs['weights']
      return jnp.einsum('BHTS,BSHE->BTHE', weights_BHTS, v), ()

    sums, _ = probes.watch(
      model,
      lambda watched: probes.loss_function(config, watched)(
        params, BATCH, None, numbers(config)
      ),
      look,
      zeros,
    )
    return sums.smoothed / sums.tokens

  zeros = {
    site: {n: jnp.zeros((2, 2, 2, *sizes[site])) for n in ('scores', 'weights')}
    for site in SITES
  }
  of_params, of_zeros = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, zeros)
  for site in SITES:
    # The first target token sees one key: none of its gradient counts.
    source_BS, target_BT = (side > 0 for side in BATCH)
    queries = source_BS if site == 'encoder_self' else target_BT
    keys = target_BT if site == 'decoder_self' else source_BS
    counts_BHTS = (queries[:, :, None] & keys[:, None])[:, None]
    if site == 'decoder_self':
      counts_BHTS = counts_BHTS & np.tri(5, dtype=bool)
      counts_BHTS[:, :, 0] = False
    norms = {
      name: np.sqrt(np.sum(np.square(value) * counts_BHTS, axis=(1, 3, 4)))
      for name, value in of_zeros[site].items()
    }
    np.testing.assert_allclose(
      found[site]['softmax_gradient'], norms['scores'], rtol=1e-4
    )
    share = norms['scores'] / norms['weights']
    np.testing.assert_allclose(found[site]['softmax_share'], share, rtol=1e-4)
  w_q_NDHK = of_params['decoder']['layers']['cross_attention']['w_q_DHK']
  np.testing.assert_allclose(
    found['cross']['query_gradient'],
    np.sqrt(np.sum(np.square(w_q_NDHK), axis=(1, 3))),
    rtol=1e-4,
  )


def test_the_softmax_lets_less_through_as_its_scores_grow():
  scores_BHTS = jax.random.normal(jax.random.key(0), (4, 2, 16, 16))
  arriving_BHTS = jax.random.normal(jax.random.key(1), (4, 2, 16, 16))
  mask_BTS = jnp.ones((1, 1, 16), bool)

  def passed(growth):
    def value(zero_H):
      see_BTS = jnp.ones((4, 16, 16), bool)
      gauged = probes.gauge(growth * scores_BHTS, zero_H, see_BTS)
      weights = attention.attention_weights(gauged, mask_BTS)
      return jnp.sum(weights * arriving_BHTS)

    return jax.grad(value)(jnp.zeros(2))

  squares = np.stack([passed(growth) for growth in (1.0, 16.0, 256.0)])
  assert np.all(np.diff(squares, axis=0) < 0)
  assert np.all(squares[2] < squares[0] / 20)


def wide_additive(rows: int, length: int):
  """Config, model, parameters and a batch of one wide additive head."""
  values = {
    **PRESETS['test'].overrides,
    'model.layers': 1,
    'model.heads': 1,
    'model.d_k': 256,
    'model.score': 'additive',
  }
  config = override(Config(), values)
  model = Transformer(config.model, V, V)
  batch = Batch(*(np.full((rows, length), 5, np.int32) for _ in range(2)))
  start = initial_state(config, model)
  params = jax.eval_shape(start, randomness.seed_key(0)).params
  return config, model, params, batch


def test_probes_of_an_additive_score_hold_one_number_a_pair():
  """Not its hidden layer, which is 256 times that: here two sites' 1 GB."""
  config, model, params, batch = wide_additive(rows=16, length=128)
  run = jax.jit(probes.measure(config, model))
  program = run.lower(params, batch, numbers(config)).compile()
  pairs = 16 * 128**2 * 4
  need = program.memory_analysis()
  assert need is not None and need.temp_size_in_bytes < 40 * pairs


@pytest.mark.slow
def test_scores_of_one_query_after_the_other_are_the_same(monkeypatch):
  config, model, params = run(score='additive')
  seen = []
  for most in (watch.MOST_NUMBERS, 0):
    monkeypatch.setattr(watch, 'MOST_NUMBERS', most)
    measured = jax.jit(probes.measure(config, model))
    seen.append(measured(params, BATCH, numbers(config)))
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5),
    *seen,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes, kept',
  [
    ({'projections': 'shared_query_key'}, 3),
    ({'projections': 'identity'}, 0),
    ({'projections': 'identity', 'output_projection': 'none'}, 0),
    ({'norm': 'batch', 'tie': 'none'}, 3),
    ({'remat': 'layer', 'position': 'relative'}, 3),
    ({'causal_mask': 'absent', 'scale': 'learned'}, 3),
  ],
)
def test_other_models_are_probed_too(changes, kept):
  values = {**PRESETS['test'].overrides}
  values |= {f'model.{name}': value for name, value in changes.items()}
  config = override(Config(), values)
  model = Transformer(config.model, V, V)
  state = jax.jit(initial_state(config, model))(randomness.seed_key(0))
  weights = with_statistics(state.params, state.statistics)
  found = probes.probe(config, model, weights, BATCH, numbers(config))
  for site in found.values():
    assert len(set(probes.PROJECTIONS) & set(site)) == kept
    assert all(np.all(np.isfinite(value)) for value in site.values())


def test_what_was_seen_is_cut_back_and_what_is_lost_is_said(tmp_path):
  corpus: Any = None
  probing = Probing(changed(probes=()), [Member(Config(), tmp_path)], corpus)
  path = tmp_path / 'probes.jsonl'
  path.write_text('as of another study')
  assert probing.cut_back(0, [0, 4]) == '' and path.read_text() != ''
  probing.names = ('entropy',)
  rows = [json.dumps(dict(step=step, sites={})) for step in (0, 4, 8)]
  # After a kill a step stands twice, or in part.
  path.write_text('\n'.join([*rows, rows[2], '3', rows[2][:9]]))
  assert probing.cut_back(0, [0, 4]) == ''
  assert path.read_text().splitlines() == rows[:2]
  path.write_bytes(b'\xff' + path.read_bytes())
  assert probing.cut_back(0, [0, 4]) == 'probes.jsonl'
  path.unlink()
  assert probing.cut_back(0, [0]) == 'probes.jsonl'
  assert probing.cut_back(0, []) == '' and path.read_text() == ''
