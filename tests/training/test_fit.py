"""Memory and roofline of a compiled step."""

import math
import socket
import types

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import override
from transformer_jax.training import fit, hosts
from transformer_jax.training import place as place_lib


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


def test_a_compiler_that_does_not_say_is_believed():
  silent = types.SimpleNamespace(memory_analysis=lambda: None)
  assert fit.peak(silent) == 0
  fit.admit(fit.peak(silent), room())


def test_a_program_of_another_version_is_refused_in_one_line():
  class Newer:
    def as_text(self):
      raise jax.errors.JaxRuntimeError('INTERNAL: RET_CHECK\nand its stack')

  with pytest.raises(ConfigError) as told:
    fit.estimate(Newer(), params=(), optimizer=(), flops=1.0)
  assert 'program (INTERNAL: RET_CHECK): take the libtpu' in str(told.value)
  assert '\n' not in str(told.value)


def room(**changes):
  """Of eight chips, the rows of a batch shared out."""
  made = fit.Room(100 * fit.GIB, 'chip', 60 * fit.GIB, {'data': 8}, Config())
  return made._replace(**changes)


def refused(room, *, peak=110.0):
  with pytest.raises(ConfigError) as told:
    fit.admit(peak * fit.GIB, room)
  return str(told.value)


def of(**values):
  return override(
    Config(), {name.replace('__', '.'): x for name, x in values.items()}
  )


def test_the_first_advice_for_a_large_state_is_to_cut_it():
  assert 'needs 110.00 GiB of the 100.00 of a chip: --mesh.fsdp=8 cuts' in (
    refused(room())
  )
  small = 10 * fit.GIB
  assert 'of a chip: --optim.accumulate=8' in refused(room(state=small))
  cut = room(mesh={'data': 1, 'fsdp': 8})
  assert 'of a chip: --optim.accumulate=8' in refused(cut)
  fit.admit(100 * fit.GIB, room())


def test_advice_leaves_the_other_axes_their_devices():
  mesh = {'data': 4, 'fsdp': 1, 'tensor': 2, 'sequence': 1}
  assert '--mesh.fsdp=4 cuts' in refused(room(mesh=mesh))
  own = of(mesh__data=4, mesh__tensor=2)
  assert 'chip: --mesh.data=1 --mesh.fsdp=4 cuts' in (
    refused(room(mesh=mesh, config=own))
  )
  # A width that six devices do not divide: two of them cut it.
  six = {'data': 6, 'fsdp': 1}
  assert '--mesh.fsdp=2 cuts' in refused(room(mesh=six))


@pytest.mark.parametrize(
  ('fields', 'left_out'),
  [
    ({'optim__accumulate': 8}, 'accumulate'),
    ({'model__remat': 'layer'}, 'remat'),
    ({'model__norm': 'batch'}, 'accumulate'),
  ],
)
def test_advice_is_what_can_be_done_still(fields, left_out):
  told = refused(room(config=of(**fields)))
  assert left_out not in told
  assert told.endswith('a smaller --data.max_tokens')


@pytest.mark.parametrize(
  ('text', 'told'),
  [
    (
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory '
      'in memory space hbm. Used 118.97G of 100.00G hbm.',
      'a step needs 118.97 GiB of the 100.00 of a chip: --mesh.fsdp',
    ),
    (
      'HLO temporaries (58.97G) exceeds available HBM (40.00G)',
      'a step needs 118.97 GiB of the 100.00 of a chip: --mesh.fsdp',
    ),
    (
      'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 bytes.',
      'a step does not fit into the memory of a chip: --optim.accumulate',
    ),
  ],
)
def test_a_compiler_that_is_short_of_memory_is_a_refusal(text, told):
  with pytest.raises(ConfigError, match=told):
    fit.refuse_memory(jax.errors.JaxRuntimeError(text), room())


def test_another_error_of_a_compiler_is_not():
  fit.refuse_memory(jax.errors.JaxRuntimeError('INTERNAL: no'), room())


class Chip:
  """A device at hand, or of a topology."""

  platform = 'gpu'

  def __init__(self, kind, stats, *, at_hand=True):
    self.device_kind, self.client = kind, self
    self.memory_stats = lambda: stats
    self.local_devices = lambda: [self] if at_hand else []


def test_the_memory_of_a_device_is_its_own_word_else_the_table():
  other = 'NVIDIA A100-SXM4-40GB'
  assert fit.device_memory(Chip(other, {'bytes_limit': 30})) == 30
  assert fit.device_memory(Chip('NVIDIA H200', {'bytes_limit': 30})) == 30
  assert fit.device_memory(Chip('NVIDIA H200', None)) == 141e9
  assert fit.device_memory(Chip(other, None)) == math.inf
  with pytest.raises(ConfigError, match='of a TPU v9 is not known.*TPU v5 lit'):
    fit.device_memory(Chip('TPU v9', None, at_hand=False))


def test_the_memory_of_a_cpu_is_that_of_its_container(tmp_path, monkeypatch):
  limit = tmp_path / 'memory.max'
  monkeypatch.setattr(fit, 'CONTAINER', limit)
  cpu = jax.devices()[0]
  whole = fit.device_memory(cpu)
  limit.write_text('max\n')
  assert fit.device_memory(cpu) == whole
  limit.write_text(f'{fit.GIB}\n')
  assert fit.device_memory(cpu) == fit.GIB / jax.local_device_count() < whole
  assert place_lib.free_memory(place_lib.on(jax.devices()[:1])) <= fit.GIB


def test_processes_on_one_machine_share_its_memory(monkeypatch):
  cpu = jax.devices()[0]
  whole = fit.device_memory(cpu)
  names = {f'host of {n}': socket.gethostname() for n in (0, 2)}
  names['host of 1'] = 'another'
  monkeypatch.setattr(hosts, 'several', lambda: True)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(hosts, 'published', names.__getitem__)
  hosts.on_this_host.cache_clear()
  try:
    assert fit.device_memory(cpu) == whole / 2
  finally:
    hosts.on_this_host.cache_clear()


@pytest.mark.parametrize('kind', fit.DEVICES)
def test_a_device_has_plausible_rates(kind):
  chip = fit.DEVICES[kind]
  # More products than bytes, more memory than network: else a typo.
  assert chip.flops > 50 * chip.memory_rate > 50 * chip.network_rate
  assert 10e9 < chip.memory < 200e9
