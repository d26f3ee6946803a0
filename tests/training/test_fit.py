"""Memory and roofline of a compiled step."""

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.training import fit


def need(**changes):
  return fit.Estimate(0, 0, 0, 0, 0.0, 0.0, {})._replace(**changes)


def test_the_slowest_resource_is_the_bound():
  chip = fit.Device(
    'chip', memory=1e9, flops=100.0, memory_rate=10.0, network_rate=1.0
  )
  found = fit.roofline(
    need(flops=200.0, moved=50.0, exchanges={'all-gather': (2, 3.0)}), chip
  )
  assert found == (2.0, 5.0, 3.0)
  assert (found.bound, found.seconds) == ('memory', 5.0)


def test_an_estimate_is_of_the_program():
  w = jax.ShapeDtypeStruct((256, 256), jnp.float32)
  compiled = (
    jax.jit(lambda w, x: (w - (x @ w), x), donate_argnums=0)
    .lower(w, w)
    .compile()
  )
  found = fit.estimate(compiled, params=w, optimizer=(), flops=1.0)
  assert found.params == 256 * 256 * 4
  # w is given away: two arrays at least, four at most with the product.
  assert 2 * found.params <= found.peak <= 4.1 * found.params
  assert found.activations == found.peak - found.params
  assert found.exchanges == {}


def test_the_first_advice_for_a_large_state_is_to_cut_it():
  large = need(params=60, optimizer=120, peak=200)
  assert fit.mends(large, fsdp=1, devices=8).startswith('--mesh.fsdp=8')
  small = need(params=1, optimizer=2, peak=200)
  assert 'fsdp' not in fit.mends(small, fsdp=1, devices=8)


@pytest.mark.parametrize('kind', fit.DEVICES)
def test_a_device_has_plausible_rates(kind):
  chip = fit.DEVICES[kind]
  # More products than bytes, more memory than network: else a typo.
  assert chip.flops > 50 * chip.memory_rate > 50 * chip.network_rate
  assert 10e9 < chip.memory < 200e9
