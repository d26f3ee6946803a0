"""The step compiled beforehand: what it needs, and what is refused."""

import functools
import importlib.util
import json
import os
import types

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from experiments import preflight as program
from experiments.presets import PRESETS
from transformer_jax.config import Config, ConfigError
from transformer_jax.data.batches import Shape
from transformer_jax.fields import override
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import compiled, fit, preflight
from transformer_jax.training.state import initial_state, numbers, train_steps

SLICE = 'v5e:2x2'
TILES = ':T(8,128)'


@pytest.fixture(autouse=True)
def flags_of_this_machine(monkeypatch):
  """A topology takes them from the environment; later tests have them."""
  monkeypatch.setenv('XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))


def config(**changes):
  tiny = override(Config(), PRESETS['test'].overrides)
  return override(
    tiny, {key.replace('__', '.'): v for key, v in changes.items()}
  )


@functools.cache
def on_one() -> preflight.Prediction:
  """Of the step on one device."""
  return preflight.predict(
    config(), vocabulary=16, length=16, devices=jax.devices()[:1]
  )


def test_parts_of_the_state_follow_from_the_mesh():
  alone = on_one()
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


def test_the_step_needs_what_the_loop_of_training_needs():
  """One step is compiled here, several in a loop where it is trained."""
  own = config(mesh__data=1)
  model = Transformer(own.model, 16, 16)
  key = jax.ShapeDtypeStruct((2,), np.uint32)
  start = jax.eval_shape(initial_state(own, model), key)
  shape = Shape(*preflight.batch_shape(own, 16), 16)
  batches = compiled.largest_batches(own, [shape])
  assert batches.target_BT.shape[0] > 1
  loop = jax.jit(train_steps(own, model), donate_argnums=0)
  trained = loop.lower(start, batches, np.int32(1), key, numbers(own))
  peak = fit.peak(trained.compile())
  assert on_one().estimate.peak == pytest.approx(peak, rel=0.05)


def test_a_step_that_does_not_fit_is_refused(monkeypatch):
  monkeypatch.setattr(fit, 'device_memory', lambda device: 1000.0)
  options = program_options(length=16)
  with pytest.raises(ConfigError, match='a step needs .* --optim.accumulate'):
    program.main(config(mesh__data=1), options)


def program_options(**changes):
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


def test_the_compiler_of_a_slice_is_not_given_flags_of_this_one(
  monkeypatch, capsys
):
  """libtpu reads XLA_FLAGS as well, and dies of one that it does not know."""
  given = []

  def describe(**_):
    given.append(os.environ.get('XLA_FLAGS'))
    return types.SimpleNamespace(devices=[7])

  monkeypatch.setattr(topologies, 'get_topology_desc', describe)
  for flags in ('--xla_cpu_use_fusion_emitters=false', ''):
    monkeypatch.setenv('XLA_FLAGS', flags)
    assert preflight.topology_devices(SLICE) == [7]
    told = capsys.readouterr().err
    assert (told.count('\n'), 'LIBTPU_INIT_ARGS' in told) == (
      (1, True) if flags else (0, False)
    )
  assert given == [None, None]


def seen(monkeypatch) -> list:
  """Fills with the programs that are compiled from here on."""
  found, estimate = [], fit.estimate

  def keep(compiled, **rest):
    found.append(compiled)
    return estimate(compiled, **rest)

  monkeypatch.setattr(fit, 'estimate', keep)
  return found


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="needs pip install 'transformer_jax[tpu]'",
)
def test_a_program_for_a_tpu_is_not_that_of_this_machine(monkeypatch):
  assert 'TPU' not in jax.devices()[0].device_kind
  devices = preflight.topology_devices(SLICE)
  programs = seen(monkeypatch)
  found = preflight.predict(
    config(mesh__data=-1, mesh__fsdp=2),
    vocabulary=16,
    length=16,
    devices=devices,
  )
  assert found.room.kind == 'TPU v5 lite'
  assert found.room.devices == 4
  assert found.estimate.sent > 0
  assert found.room.memory == fit.DEVICES['TPU v5 lite'].memory
  assert os.environ['TPU_SKIP_MDS_QUERY'] == '1'
  here = config(mesh__data=1)
  preflight.predict(here, vocabulary=16, length=16, devices=jax.devices()[:1])
  tpu, cpu = (one.as_text() for one in programs)
  # Arrays lie in tiles of a TPU's vector registers.
  assert TILES in tpu and TILES not in cpu


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


def prediction():
  """Of a step on eight v5e that is bound by its memory."""
  estimate = fit.Estimate(
    params=fit.GIB // 4,
    optimizer=fit.GIB // 2,
    activations=fit.GIB,
    peak=7 * fit.GIB // 4,
    flops=19.7e12,
    moved=163.8e9,
    exchanges={'all-reduce': (3, 5e9), 'all-gather': (1, 1e6)},
  )
  kind = 'TPU v5 lite'
  room = fit.Room(7 * fit.GIB, kind, 0.0, {'data': 4, 'fsdp': 2}, Config())
  return preflight.Prediction(estimate, 50_000, fit.DEVICES[kind], room)


ROWS = {
  'devices': '8 x TPU v5 lite',
  'batch': '50,000 tokens of each side',
  'parameters': '0.250 GiB',
  'optimizer': '0.500 GiB',
  'activations': '1.000 GiB',
  'peak memory': '1.750 GiB of 7.0 (25%)',
  'products': '19.700 TFLOP',
  'memory traffic': '152.55 GiB',
  'all-gather': '1 x, 1.0 MB sent',
  'all-reduce': '3 x, 5,000.0 MB sent',
  # 19.7 of 197 TFLOP/s, 163.8 of 819 GB/s, 5.001 of 100 GB/s.
  'roofline': '200.00 ms a step, bound by memory (compute 100.00, memory '
  '200.00, network 50.01)',
  'at most': '250,000 target tokens/s',
  'MFU at most': '50%',
  # 9,000 steps of 0.2 s on eight chips.
  'at least': '4.0 chip-hours for 9,000 steps',
}


def test_what_is_printed_of_a_prediction():
  own = config(train__steps=9000)
  assert program.rows(own, prediction()) == list(ROWS.items())
  unknown = prediction()._replace(device=None)
  *before, last = program.rows(own, unknown)
  assert dict(before) == dict(list(ROWS.items())[:10])
  assert last == ('roofline', 'no published rates of TPU v5 lite')


@pytest.mark.parametrize('json_too', [False, True])
def test_a_prediction_is_a_table_or_a_line(json_too, monkeypatch, capsys):
  asked = {}

  def predict(config, **sizes):
    asked.update(sizes)
    return prediction()

  monkeypatch.setattr(preflight, 'predict', predict)
  own = config(train__steps=9000)
  assert program.main(own, program_options(json=json_too)) == 0
  # Of the task's symbols, not of the subwords that it has no use for.
  assert asked['vocabulary'] == 4 + own.data.task_symbols
  told = capsys.readouterr().out
  if json_too:
    assert told.count('\n') == 1 and json.loads(told) == ROWS
  else:
    shown = [f'{name:<14}  {value}\n' for name, value in ROWS.items()]
    assert told == ''.join(shown)
