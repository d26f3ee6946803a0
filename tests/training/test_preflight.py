"""The step compiled beforehand: what it needs, and what is refused."""

import importlib.util
import os

import jax
import pytest

from experiments import preflight as program
from experiments.presets import PRESETS
from transformer_jax.config import Config, ConfigError, override
from transformer_jax.training import fit, preflight

SLICE = 'v5e:2x2'


def config(**changes):
  tiny = override(Config(), PRESETS['test'].overrides)
  return override(
    tiny, {key.replace('__', '.'): v for key, v in changes.items()}
  )


def test_parts_of_the_state_follow_from_the_mesh():
  alone = preflight.predict(
    config(), vocabulary=16, length=16, devices=jax.devices()[:1]
  )
  cut = preflight.predict(
    config(mesh__data=1, mesh__fsdp=8),
    vocabulary=16,
    length=16,
    devices=jax.devices(),
  )
  assert (alone.room.devices, cut.room.devices) == (1, 8)
  assert alone.tokens == cut.tokens == 256
  assert alone.estimate.optimizer >= 2 * alone.estimate.params
  # All that has an axis D is cut by eight; biases of F and counts are not.
  assert cut.estimate.params < alone.estimate.params / 6
  assert not alone.estimate.exchanges
  assert cut.estimate.sent > 0
  assert cut.estimate.flops == alone.estimate.flops / 8


def test_a_step_that_does_not_fit_is_refused(monkeypatch):
  monkeypatch.setattr(fit, 'device_memory', lambda device: 1000.0)
  options = program_options(length=16)
  with pytest.raises(ConfigError, match='a step needs .* --optim.accumulate'):
    program.main(config(mesh__data=8), options)


def program_options(**changes):
  import types

  return types.SimpleNamespace(
    **(dict(topology='', length=0, json=False) | changes)
  )


def test_a_length_that_no_batch_holds_is_refused():
  with pytest.raises(ConfigError, match='does not hold 8 sentences of 64'):
    preflight.batch_shape(config(), 64)


def test_parts_that_do_not_divide_a_batch_are_refused():
  with pytest.raises(ConfigError, match='accumulate=3 does not divide the 16'):
    preflight.predict(
      config(optim__accumulate=3),
      vocabulary=16,
      length=16,
      devices=jax.devices()[:1],
    )


def test_an_unknown_slice_names_the_mend():
  with pytest.raises(ConfigError, match=r'v6e:4x4; it needs pip install'):
    preflight.topology_devices('v9z:7')


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="needs pip install 'transformer_jax[tpu]'",
)
def test_a_program_for_a_tpu_is_not_that_of_this_machine():
  devices = preflight.topology_devices(SLICE)
  found = preflight.predict(
    config(mesh__data=-1, mesh__fsdp=2),
    vocabulary=16,
    length=16,
    devices=devices,
  )
  assert found.room.kind == 'TPU v5 lite'
  assert found.room.devices == 4
  assert 'TPU' not in jax.devices()[0].device_kind
  assert found.estimate.sent > 0
  assert found.room.memory == fit.DEVICES['TPU v5 lite'].memory
  assert os.environ['TPU_SKIP_MDS_QUERY'] == '1'


def test_a_program_that_its_compiler_refuses_is_refused(monkeypatch):
  text = 'RESOURCE_EXHAUSTED: HLO temporaries (18.97G) exceeds available HBM'

  class Refused:
    def lower(self, *_):
      return self

    def compile(self):
      raise jax.errors.JaxRuntimeError(text)

  monkeypatch.setattr(jax, 'jit', lambda *_, **__: Refused())
  monkeypatch.setattr(fit, 'device_memory', lambda device: 16e9)
  with pytest.raises(ConfigError, match='needs 18.97 GiB of the 14.90'):
    preflight.predict(
      config(), vocabulary=16, length=16, devices=jax.devices()[:1]
    )
