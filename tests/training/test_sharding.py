"""One step on eight virtual devices, however they are arranged."""

import collections
import functools
import itertools
import json
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from experiments.presets import PRESETS
from transformer_jax.config import Config, ConfigError, MeshConfig, override
from transformer_jax.data.batches import Batch
from transformer_jax.nn import randomness
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import program, ring, sharding
from transformer_jax.training.checkpoint import by_path
from transformer_jax.training.state import (
  initial_state,
  loss_function,
  numbers,
  train_step,
)

GOLDEN = pathlib.Path(__file__).parent.parent / 'goldens' / 'collectives.json'
STEPS = 50
# Every axis divides by eight; sequences of 8 and 6 tokens do not all.
FIELDS = {
  **PRESETS['test'].overrides,
  'model.heads': 8,
  'model.d_k': 2,
  'model.d_v': 2,
  'model.layers': 2,
  'model.attention_dropout': 0.1,
  # Smooth: the gradient of a ReLU is another one a rounding from zero.
  'model.activation': 'gelu',
}
VOCABULARY = 16


def config_of(**sizes: int) -> Config:
  fields = {f'mesh.{axis}': size for axis, size in sizes.items()}
  return override(Config(), {**FIELDS, 'mesh.data': -1, **fields})


def shapes() -> list[dict[str, int]]:
  """Every way to write 8 as a product over the axes of a lone run."""
  axes = ('data', 'fsdp', 'tensor', 'sequence')
  found = itertools.product((1, 2, 4, 8), repeat=len(axes))
  return [
    dict(zip(axes, sizes, strict=True))
    for sizes in found
    if math.prod(sizes) == 8
  ]


def name_of(shape: dict[str, int]) -> str:
  """`data2-fsdp4`."""
  return '-'.join(f'{axis}{n}' for axis, n in shape.items() if n > 1)


SHAPES = {name_of(shape): shape for shape in shapes()}
QUICK = (
  'data8',
  'fsdp8',
  'data2-fsdp4',
  'data2-tensor4',
  'sequence8',
  'fsdp2-tensor2-sequence2',
)
ALL = [
  pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
  for name in SHAPES
]


def batches(count: int) -> list[Batch]:
  """Ten rows of unequal length: they divide by no number of devices here."""
  rng = np.random.default_rng(0)
  found = []
  for _ in range(count):
    sides = []
    for width in (8, 6):
      rows = rng.integers(4, VOCABULARY, (10, width)).astype(np.int32)
      ends = rng.integers(2, width, (10, 1))
      column = np.arange(width)[None]
      rows = np.where(column == ends, 2, np.where(column > ends, 0, rows))
      sides.append(rows.astype(np.int32))
    found.append(Batch(*sides))
  return found


class Program:
  """A step, laid out as the loop does it; compiled once."""

  def __init__(self, config: Config):
    self.config = config
    self.layout = sharding.layout(config.mesh)
    attend = ring.serve(config.model, self.layout, platform='cpu').attend
    self.model = Transformer(
      config.model, VOCABULARY, VOCABULARY, attend, self.layout.around
    )
    self.key = np.asarray(randomness.seed_key(0))
    initial = initial_state(config, self.model)
    abstract = jax.eval_shape(initial, self.key)
    places = self.layout.at_rest(abstract)
    self.state = jax.jit(initial, out_shardings=places)(self.key)
    step = jax.jit(
      train_step(config, self.model, self.layout),
      **self.layout.outputs(abstract),
    )
    self.step = step.lower(*self.arguments(batches(1)[0])).compile()

  @property
  def text(self) -> str:
    return self.step.as_text() or ''

  def arguments(self, batch: Batch):
    own = self.layout.batch(batch)
    return self.state, own, self.key, numbers(self.config)

  def losses(self) -> np.ndarray:
    found = []
    for batch in batches(STEPS):
      self.state, metrics = self.step(*self.arguments(batch))
      found.append(float(metrics.losses.smoothed / metrics.losses.tokens))
    return np.array(found)


@functools.cache
def alone() -> tuple[dict, np.ndarray]:
  """Initial values by path, and losses, on one device."""
  made = Program(config_of(data=1))
  assert made.layout is sharding.ALONE
  values = jax.tree.map(np.asarray, by_path(made.state.params))
  return values, made.losses()


@functools.cache
def exchanged(name: str) -> str:
  """The text of the program of a mesh; checks what it starts and ends with."""
  made = Program(config_of(**SHAPES[name]))
  values, losses = alone()
  for path, leaf in by_path(made.state.params).items():
    assert np.asarray(leaf).tobytes() == values[path].tobytes(), path
  found = made.losses()
  np.testing.assert_allclose(found, losses, rtol=1e-5)
  assert found[-1] < found[0]
  return made.text


@pytest.mark.parametrize('name', ALL)
def test_every_mesh_starts_and_trains_as_one_device(name):
  exchanged(name)


def summed(text: str) -> dict[str, dict[str, int]]:
  """{kind among so many devices: how often a step has it, and its bytes}."""
  found: dict[str, collections.Counter] = collections.defaultdict(
    collections.Counter
  )
  for one in program.collectives(text):
    kind = f'{one.kind} of {one.devices}'
    found[kind].update(times=one.times, bytes=one.bytes * one.times)
  return {kind: dict(found[kind]) for kind in sorted(found)}


@pytest.mark.parametrize('name', QUICK)
def test_what_a_step_exchanges(name):
  assert summed(exchanged(name)) == json.loads(GOLDEN.read_text())[name]


def stacked_and_table() -> tuple[int, int, int]:
  """Bytes of the layers' parameters, those with a D, and of the table."""
  sizes = {path: 4 * leaf.size for path, leaf in alone()[0].items()}
  table = sizes.pop('embedding.w_VD')
  wide = [path for path in sizes if 'D' in path.rpartition('_')[2]]
  return sum(sizes.values()), sum(sizes[path] for path in wide), table


def test_data_parallel_reduces_each_gradient_once():
  """The table is used in three places, each with a gradient of its own."""
  stacked, _, table = stacked_and_table()
  found = summed(exchanged('data8'))
  assert list(found) == ['all-reduce of 8']
  scalars = found['all-reduce of 8']['bytes'] - stacked - 3 * table
  assert 0 <= scalars < 64


def test_fully_sharded_gathers_parameters_for_each_pass():
  """A layer's are gathered before its forward and its backward pass."""
  _, wide, table = stacked_and_table()
  found = summed(exchanged('fsdp8'))
  assert found['all-gather of 8']['bytes'] == 2 * wide + table


@pytest.mark.parametrize('name', QUICK)
def test_nothing_gathers_a_batch_or_logits(name):
  rows = 10 if name == 'tensor4' else 16  # Padded to the devices.
  gathered = re.findall(r'= (.*?) all-gather(?:-start)?\(', exchanged(name))
  assert not re.search(rf'\[(1,)?{rows},[68],', ' '.join(gathered)), name
  assert not re.search(rf',{VOCABULARY}\]', ''.join(gathered)) or all(
    size <= 2 * 2 * 16 * 32 for size in program.shape_bytes(' '.join(gathered))
  )


def test_evaluation_is_that_of_one_device():
  batch = batches(1)[0]

  def sums(config):
    made = Program(config)
    losses = jax.jit(loss_function(config, made.model, made.layout))
    params, own = made.state.params, made.layout.batch(batch)
    return losses(params, own, None, numbers(config))

  np.testing.assert_allclose(
    sums(config_of(fsdp=2, tensor=2, sequence=2)),
    sums(config_of(data=1)),
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  ('sizes', 'told'),
  [
    (dict(data=3), 'do not multiply to the 8 devices'),
    (dict(fsdp=3), 'do not multiply to the 8 devices'),
    (dict(data=-1, tensor=-1), 'only one of them'),
    (dict(data=8, tensor=0), 'at least 1'),
  ],
)
def test_sizes_that_do_not_fit_are_one_line(sizes, told):
  with pytest.raises(ConfigError, match=told) as refused:
    sharding.make_mesh(MeshConfig(**sizes))
  assert '\n' not in str(refused.value)


def test_an_axis_that_does_not_divide_is_named():
  layout = sharding.Layout(sharding.make_mesh(MeshConfig(tensor=8)))
  leaf = jax.ShapeDtypeStruct((2, 16, 4, 2), np.float32)
  with pytest.raises(ConfigError, match=r'--mesh.tensor=8 .* H = 4 of .*w_q'):
    layout.at_rest({'layers': {'w_q_DHK': leaf}})


def test_one_mesh_axis_for_two_axes_is_refused():
  layout = sharding.Layout(sharding.make_mesh(MeshConfig(fsdp=2)))
  leaf = jax.ShapeDtypeStruct((16, 16), np.float32)
  with pytest.raises(ConfigError, match='take --mesh.fsdp=1'):
    layout.at_rest({'w_token_DD': leaf})
  layout = sharding.Layout(sharding.make_mesh(MeshConfig(tensor=2)))
  assert layout.at_rest({'w_token_DD': leaf})


def test_a_name_without_letters_is_refused():
  layout = sharding.Layout(sharding.make_mesh(MeshConfig()))
  with pytest.raises(ValueError, match='must end in the letters of 1'):
    layout.at_rest({'gain': jax.ShapeDtypeStruct((4,), np.float32)})


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 8)
  jax.config.update('jax_disable_most_optimizations', True)
  goldens = {name: summed(exchanged(name)) for name in QUICK}
  GOLDEN.write_text(json.dumps(goldens, indent=2) + '\n')
