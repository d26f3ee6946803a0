"""Memory and roofline of a compiled step."""

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.config import ConfigError
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


def admit(*, peak=110.0, state=60, fsdp=1):
  fit.admit(peak, state=state, memory=100, kind='chip', fsdp=fsdp, devices=8)


def test_the_first_advice_for_a_large_state_is_to_cut_it():
  with pytest.raises(ConfigError, match='of a chip: --mesh.fsdp=8 cuts'):
    admit()
  with pytest.raises(ConfigError, match='of a chip: --optim.accumulate=8'):
    admit(state=10)
  with pytest.raises(ConfigError, match='of a chip: --optim.accumulate=8'):
    admit(fsdp=8)
  admit(peak=100.0)


@pytest.mark.parametrize('kind', fit.DEVICES)
def test_a_device_has_plausible_rates(kind):
  chip = fit.DEVICES[kind]
  # More products than bytes, more memory than network: else a typo.
  assert chip.flops > 50 * chip.memory_rate > 50 * chip.network_rate
  assert 10e9 < chip.memory < 200e9
