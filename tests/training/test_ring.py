"""Attention around a ring of devices is attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import ConfigError, MeshConfig, ModelConfig
from transformer_jax.nn import attention, implementations, randomness
from transformer_jax.nn.attention import How
from transformer_jax.training import ring, sharding, state
from transformer_jax.training.mesh import make_mesh

B, T, H, K = 4, 16, 4, 6


def inputs(score, *, causal):
  """q, k, v, w, bias and scale a head, from fixed numbers; mask; order."""
  rng = np.random.default_rng(0)
  S = T if causal else 24
  q, k, v = (
    np.float32(rng.normal(size=(B, length, H, K))) for length in (T, S, S)
  )
  own = attention.SCORES[score]
  shape = (
    attention.parameter_shape(own, heads=H, d_k=K) if own.parameter else ()
  )
  w = np.float32(rng.normal(size=shape))
  bias = np.float32(rng.normal(size=(H, T + S - 1)))
  scale = np.float32(rng.normal(size=(H,)))
  if causal:
    see_all = np.ones((1, 1, 1), bool)
    return (q, k, v, w, bias, scale), see_all, attention.not_later
  mask = np.ones((B, 1, S), bool)
  mask[1, :, 5:] = False
  mask[2] = False  # a row of padding
  return (q, k, v, w, bias, scale), mask, None


@pytest.mark.parametrize(
  ('sizes', 'score', 'causal'),
  [
    (dict(sequence=8), 'dot', True),
    (dict(sequence=2, tensor=2, data=2), 'additive', True),
    (dict(sequence=4), 'additive', False),
    pytest.param(
      dict(sequence=2, fsdp=2), 'general', False, marks=pytest.mark.slow
    ),
  ],
)
def test_values_and_gradients_are_those_of_the_formula(sizes, score, causal):
  around = ring.Ring(make_mesh(MeshConfig(**sizes)))
  arrays, mask, sees = inputs(score, causal=causal)
  key = randomness.seed_key(3)
  weigh = np.float32(np.random.default_rng(1).normal(size=(B, T, H, K)))

  def of(attend):
    def value(q, k, v, w, bias, scale):
      how = How(
        scale,
        attention.SCORES[score].scores,
        w if w.ndim else None,
        bias,
        attention.Drop(key, 0.3),
        sees,
      )
      mixed = attend(q, k, v, mask, how)
      return jnp.sum(mixed * weigh), mixed

    both = jax.value_and_grad(value, argnums=tuple(range(6)), has_aux=True)
    return jax.jit(both)(*arrays)

  for found, wanted in zip(
    jax.tree.leaves(of(around)),
    jax.tree.leaves(of(attention.attention)),
    strict=True,
  ):
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-4)


def test_the_ring_serves_meshes_that_cut_sequences_only():
  naive = ModelConfig(attention_implementation='naive')
  cut = sharding.Layout(make_mesh(MeshConfig(sequence=8)))
  whole = sharding.Layout(make_mesh(MeshConfig()))
  found = ring.serve(ModelConfig(), cut, platform='cpu').attend
  assert isinstance(found, ring.Ring)
  blocks = ModelConfig(attention_implementation='blockwise')
  found = ring.serve(blocks, cut, platform='cpu').attend
  assert isinstance(found, ring.Ring)
  found = ring.serve(naive, whole, platform='cpu').attend
  assert found is attention.attention
  with pytest.raises(ConfigError, match='auto; one that began with naive'):
    ring.serve(naive, cut, platform='cpu')


def test_padding_to_the_devices_finds_learned_positions():
  cut = sharding.Layout(make_mesh(MeshConfig(sequence=8)))

  def served(**fields):
    config = ModelConfig(position='learned', **fields)
    return ring.serve(config, cut, platform='cpu').attend

  assert isinstance(served(max_positions=24), ring.Ring)
  with pytest.raises(ConfigError, match='does not divide model.max_positions'):
    served(max_positions=20)


def test_the_formula_serves_what_is_small_on_each_device(monkeypatch):
  monkeypatch.setattr(implementations, 'NAIVE_NUMBERS', 4 * 1 * 2 * 2)
  served = []

  def seen(name):
    return lambda *given, **more: served.append(name)

  monkeypatch.setattr(implementations.attention, 'attention', seen('formula'))
  monkeypatch.setattr(implementations.blockwise, 'attention', seen('blocks'))
  mesh = make_mesh(MeshConfig(data=4), jax.devices()[:4])
  q_BTHK = jnp.zeros((16, 2, 1, 8))
  for layout in (sharding.Layout(mesh), state.ALONE):
    attend = ring.serve(ModelConfig(), layout, platform='cpu').attend
    attend(q_BTHK, q_BTHK, q_BTHK, jnp.ones((16, 2, 2), bool), How(1.0))
  assert served == ['formula', 'blocks']
