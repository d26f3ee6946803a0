"""One step on eight virtual devices, however they are arranged."""

import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest

from experiments.presets import PRESETS
from transformer_jax.config import Config, ConfigError, MeshConfig
from transformer_jax.data.cache import Batch
from transformer_jax.data.tokens import SymbolVocabulary, Vocabularies
from transformer_jax.fields import override
from transformer_jax.inference.evaluate import score_pairs, scores_of_pairs
from transformer_jax.inference.translate import translate_sentences
from transformer_jax.nn import implementations, randomness
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import hlo, ring, setup, sharding
from transformer_jax.training.arrays import by_path
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.mesh import make_mesh, of_a_population
from transformer_jax.training.state import (
  initial_state,
  loss_function,
  numbers,
  train_step,
)

GOLDEN = pathlib.Path(__file__).parent.parent / 'goldens' / 'collectives.json'
STEPS, ROWS = 50, 18
# Every axis divides by eight; sequences of 8 and 6 tokens do not all.
FIELDS = {
  **PRESETS['test'].overrides,
  'model.heads': 8,
  'model.d_k': 2,
  'model.d_v': 2,
  'model.layers': 2,
  'model.attention_dropout': 0.1,
  # Smooth, because of what a ReLU does here on data8: at step 6 one input of
  # 1,920 of the decoder's second layer is -1.2e-7 on one device and 6.5e-9 on
  # eight. Of its unit alone the gradient differs by 0.3, of the others in that
  # layer by 6e-7, and from then on losses part by 1e-4. From one and the same
  # state no input differs in sign, and all gradients agree to 1e-6.
  'model.activation': 'gelu',
}
VOCABULARY = 16
# The programs are run fifty times each: most of the time goes by until they
# are compiled, less than half as long in this way.
COMPILER = {'xla_cpu_use_fusion_emitters': False}


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
# What these exchange is counted.
COUNTED = (
  'data8',
  'fsdp8',
  'data2-fsdp4',
  'data2-tensor4',
  'sequence8',
  'fsdp2-tensor2-sequence2',
)
# `tensor` is an axis of the last one too.
QUICK = tuple(name for name in COUNTED if name != 'data2-tensor4')
SLOW = pytest.mark.slow


def marked(names: Iterable[str]) -> list:
  """As parameters; those that are not quick are slow."""
  return [
    pytest.param(name, marks=() if name in QUICK else SLOW) for name in names
  ]


def batches(count: int) -> list[Batch]:
  """18 rows of unequal length: by 4 or 8 devices they do not divide.

  Nor has a parameter an axis of so many, or of the 24 they are padded to.
  """
  rng = np.random.default_rng(0)
  found = []
  for _ in range(count):
    sides = []
    for width in (8, 6):
      rows = rng.integers(4, VOCABULARY, (ROWS, width)).astype(np.int32)
      ends = rng.integers(2, width, (ROWS, 1))
      column = np.arange(width)[None]
      rows = np.where(column == ends, 2, np.where(column > ends, 0, rows))
      sides.append(rows.astype(np.int32))
    found.append(Batch(*sides))
  return found


@functools.cache
def initial(norm: str = 'layer'):
  """The state's first value as a function of the key, its shapes, a key."""
  config = override(config_of(data=1), {'model.norm': norm})
  model = Transformer(config.model, VOCABULARY, VOCABULARY)
  start, key = initial_state(config, model), randomness.seed_key(0)
  return start, jax.eval_shape(start, key), np.asarray(key)


class Program:
  """A step, laid out as the loop does it; compiled once."""

  def __init__(self, config: Config):
    self.config = config
    self.layout = sharding.layout(config.mesh)
    attend = ring.serve(config.model, self.layout, platform='cpu').attend
    self.model = Transformer(
      config.model, VOCABULARY, VOCABULARY, attend, self.layout.wrap_layer
    )
    start, self.shapes, self.key = initial(config.model.norm)
    places = self.layout.at_rest(self.shapes)
    start = jax.jit(start, out_shardings=places, compiler_options=COMPILER)
    self.state = start(self.key)

  @functools.cached_property
  def step(self):
    step = jax.jit(
      train_step(self.config, self.model, self.layout),
      compiler_options=COMPILER,
      **self.layout.outputs(self.shapes),
    )
    return step.lower(*self.arguments(batches(1)[0])).compile()

  def arguments(self, batch: Batch):
    own = self.layout.batch(batch, self.config.optim.accumulate)
    return self.state, own, self.key, numbers(self.config)

  def losses(self, steps: int = STEPS) -> np.ndarray:
    found = []
    for batch in batches(steps):
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
  return made.step.as_text() or ''


@pytest.mark.parametrize('name', marked(SHAPES))
def test_every_mesh_starts_and_trains_as_one_device(name):
  exchanged(name)


def summed(text: str) -> dict[str, dict[str, int]]:
  """{kind among so many devices: how often a step has it, and its bytes}."""
  found: dict[str, collections.Counter] = collections.defaultdict(
    collections.Counter
  )
  for one in hlo.collectives(text):
    kind = f'{one.kind} of {one.devices}'
    found[kind].update(times=one.times, bytes=one.bytes * one.times)
  return {kind: dict(found[kind]) for kind in sorted(found)}


@pytest.mark.parametrize('name', marked(COUNTED))
def test_what_a_step_exchanges(name):
  assert summed(exchanged(name)) == json.loads(GOLDEN.read_text())[name]


def stacked_and_table() -> tuple[dict[str, int], int]:
  """Bytes of the layers' parameters by their letters, and of the table."""
  sizes = {path: 4 * leaf.size for path, leaf in alone()[0].items()}
  table = sizes.pop('embedding.w_VD')
  letters = collections.Counter()
  for path, size in sizes.items():
    letters[path.rpartition('_')[2]] += size
  return letters, table


def test_data_parallel_exchanges_gradients_alone():
  """Each once, but the table's in three parts, one of each use of it."""
  stacked, table = stacked_and_table()
  found = summed(exchanged('data8'))
  assert list(found) == ['all-reduce of 8']
  gradients = sum(stacked.values()) + 3 * table
  scalars = found['all-reduce of 8']['bytes'] - gradients
  assert 0 <= scalars < 64


def test_fully_sharded_gathers_parameters_for_each_pass():
  """A layer's matrices are, before its forward and its backward pass.

  Its vectors are kept from the one to the other.
  """
  stacked, table = stacked_and_table()
  wide = {letters: n for letters, n in stacked.items() if 'D' in letters}
  found = summed(exchanged('fsdp8'))
  gathered = 2 * sum(wide.values()) - wide['D'] + table
  assert found['all-gather of 8']['bytes'] == gathered


def whole_shapes(layout: sharding.Layout) -> set[tuple[int, ...]]:
  """What one layer's parameters and the table are on a device, gathered."""
  found = set()
  for path, leaf in jax.tree.leaves_with_path(initial()[1].params):
    letters, shape = sharding.letters_of(path, leaf.ndim), leaf.shape
    if letters.startswith('N'):
      letters, shape = letters[1:], shape[1:]
    place = layout.place(letters, at_rest=False)
    found.add(place.shard_shape(shape))
  return found


@pytest.mark.parametrize('name', marked(COUNTED))
def test_nothing_gathers_a_batch_or_logits(name):
  """Only parameters are; and the mask of keys, for a ring of devices."""
  layout = sharding.layout(config_of(**SHAPES[name]).mesh)
  assert isinstance(layout, sharding.Layout)
  known = whole_shapes(layout)
  results = re.findall(r'= (.*?) all-gather(?:-start)?\(', exchanged(name))
  for dtype, sizes in re.findall(r'(\w+)\[([\d,]*)\]', ' '.join(results)):
    shape = tuple(int(size) for size in sizes.split(',') if size)
    own = shape[1:] if shape[:1] == (1,) else shape
    assert dtype == 'pred' or own in known, f'{dtype}{shape}'


def test_evaluation_is_that_of_one_device():
  batch = batches(1)[0]

  def sums(config):
    made = Program(config)
    losses = jax.jit(
      loss_function(config, made.model, made.layout), compiler_options=COMPILER
    )
    params, own = made.state.params, made.layout.batch(batch)
    return losses(params, own, None, numbers(config))

  np.testing.assert_allclose(
    sums(config_of(fsdp=2, tensor=2, sequence=2)),
    sums(config_of(data=1)),
    rtol=1e-6,
  )


@functools.cache
def decoded(name: str):
  """Of twelve sentences the translations by a beam, and what they score.

  The mesh takes up parameters that lie as in training. Six sentences go to it
  at a time: 4 or 8 devices do not divide them.
  """
  config = config_of(**SHAPES.get(name, dict(data=1)))
  config = override(config, {'decode.extra_length': 4})
  words = SymbolVocabulary(f's{n}' for n in range(VOCABULARY - 4))
  rng = np.random.default_rng(0)
  rows = [rng.integers(4, VOCABULARY, rng.integers(2, 8)) for _ in range(12)]
  sentences = words.decode([row.tolist() for row in rows])
  weights = np.random.default_rng(0)
  layout, abstract = sharding.layout(config.mesh), initial()[1].params

  def drawn(path, x):
    if path[-1].key[0] in 'gb':  # Others would have one word said all along.
      return np.full(x.shape, path[-1].key[0] == 'g', np.float32)
    return np.float32(weights.normal(size=x.shape))

  params = jax.tree.map_with_path(drawn, abstract)
  params = jax.tree.map(jax.device_put, params, layout.at_rest(abstract))
  attend = implementations.choose(config.model, platform='cpu')
  arguments: dict[str, Any] = dict(
    model=Transformer(config.model, VOCABULARY, VOCABULARY, attend),
    params=layout.to_decode(params),
    vocabularies=Vocabularies(words, words),
    layout=layout,
  )
  options = dataclasses.replace(config.decode, beam_size=4, max_tokens=192)
  found = translate_sentences(sentences=sentences, options=options, **arguments)
  pairs = list(zip(sentences, sentences[::-1], strict=True))
  return found, score_pairs(pairs=pairs, max_tokens=48, **arguments)


DECODED_QUICK = 'fsdp2-tensor2-sequence2'


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name == DECODED_QUICK else SLOW)
    for name in SHAPES
  ],
)
def test_every_mesh_translates_and_evaluates_as_one_device(name):
  wanted, wanted_pairs = decoded('alone')
  found, pairs = decoded(name)
  assert len(set(wanted.texts)) > 6
  assert found.texts == wanted.texts
  for one, other in zip(found.hypotheses, wanted.hypotheses, strict=True):
    np.testing.assert_allclose(one[0].score, other[0].score, rtol=1e-5)
  assert [x[1:] for x in pairs] == [x[1:] for x in wanted_pairs]
  np.testing.assert_allclose(
    scores_of_pairs(pairs), scores_of_pairs(wanted_pairs), rtol=1e-6
  )


def in_parts(**sizes) -> Program:
  """Of each batch's 18 rows two parts of 9: 8 devices divide neither."""
  return Program(override(config_of(**sizes), {'optim.accumulate': 2}))


@functools.cache
def parts_alone() -> np.ndarray:
  return in_parts(data=1).losses(8)


@pytest.mark.parametrize(
  'name',
  ['data2-fsdp4', pytest.param('fsdp2-tensor2-sequence2', marks=SLOW)],
)
def test_parts_of_a_batch_are_those_of_one_device(name):
  made = in_parts(**SHAPES[name])
  np.testing.assert_allclose(made.losses(8), parts_alone(), rtol=1e-5)
  # No row goes to another device for them.
  text = made.step.as_text() or ''
  assert not re.findall(r'= s32\[[\d,]+\]\S* all-', text)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['data2-fsdp4', 'fsdp2-tensor2-sequence2'])
def test_moments_of_a_batch_are_those_of_one_device(name):
  """Over its tokens on all devices, without the rows that were added."""

  def trained(**sizes) -> Program:
    return Program(override(config_of(**sizes), {'model.norm': 'batch'}))

  made, alone = trained(**SHAPES[name]), trained(data=1)
  np.testing.assert_allclose(made.losses(8), alone.losses(8), rtol=1e-5)
  wanted = by_path(alone.state.statistics)
  found = by_path(made.state.statistics)
  assert found.keys() == wanted.keys() and wanted
  for path, leaf in found.items():
    np.testing.assert_allclose(leaf, wanted[path], rtol=1e-4, atol=1e-6)


def test_a_checkpoint_is_the_same_bytes_on_every_mesh(tmp_path):
  shapes = initial()[1]

  def places(**sizes):
    return sharding.layout(config_of(**sizes).mesh).at_rest(shapes)

  # Every number another one.
  values = jax.tree.map(
    lambda x: np.arange(math.prod(x.shape)).reshape(x.shape).astype(x.dtype),
    shapes,
  )
  checkpoints = Checkpoints(tmp_path)
  sizes = dict(fsdp=2, tensor=2, sequence=2)
  checkpoints.save(
    7, jax.tree.map(jax.device_put, values, places(**sizes)), metric=None
  )
  checkpoints.wait()
  for sizes in (dict(data=1), dict(data=8), dict(fsdp=4, tensor=2)):
    own = places(**sizes)
    found = checkpoints.restore(sharding.placed(shapes, own), 7)
    for path, leaf in by_path(found).items():
      assert leaf.sharding == by_path(own)[path], path
      assert np.asarray(leaf).tobytes() == by_path(values)[path].tobytes(), path


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
    make_mesh(MeshConfig(**sizes))
  assert '\n' not in str(refused.value)


def test_what_a_run_goes_over_is_said():
  for sizes, said in (
    (dict(data=-1, fsdp=2), '8 x cpu, data 4 x fsdp 2'),
    (dict(data=1), '1 of 8 x cpu'),
  ):
    assert setup.of_devices(sharding.layout(MeshConfig(**sizes))) == said


def test_one_run_has_no_use_for_replicas():
  with pytest.raises(ConfigError, match='take --mesh.replica=1'):
    sharding.layout(MeshConfig(replica=2))


def test_a_population_takes_all_devices_and_cuts_no_member():
  devices = of_a_population(make_mesh(MeshConfig()))
  assert devices == jax.devices()
  one = of_a_population(make_mesh(MeshConfig(data=1)))
  assert one == jax.devices()[:1]
  with pytest.raises(ConfigError, match='take --mesh.tensor=1'):
    of_a_population(make_mesh(MeshConfig(tensor=2)))


def test_an_axis_that_does_not_divide_is_named():
  layout = sharding.Layout(make_mesh(MeshConfig(tensor=8)))
  leaf = jax.ShapeDtypeStruct((2, 16, 4, 2), np.float32)
  with pytest.raises(ConfigError, match=r'--mesh.tensor=8 .* H = 4 of .*w_q'):
    layout.at_rest({'layers': {'w_q_DHK': leaf}})


def test_one_mesh_axis_for_two_axes_is_refused():
  layout = sharding.Layout(make_mesh(MeshConfig(fsdp=2)))
  leaf = jax.ShapeDtypeStruct((16, 16), np.float32)
  with pytest.raises(ConfigError, match='take --mesh.fsdp=1'):
    layout.at_rest({'w_token_DD': leaf})
  layout = sharding.Layout(make_mesh(MeshConfig(tensor=2)))
  assert layout.at_rest({'w_token_DD': leaf})


def test_a_name_without_letters_is_refused():
  layout = sharding.Layout(make_mesh(MeshConfig()))
  with pytest.raises(ValueError, match='must end in the letters of 1'):
    layout.at_rest({'gain': jax.ShapeDtypeStruct((4,), np.float32)})


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 8)
  jax.config.update('jax_disable_most_optimizations', True)
  goldens = {name: summed(exchanged(name)) for name in COUNTED}
  GOLDEN.write_text(json.dumps(goldens, indent=2) + '\n')
