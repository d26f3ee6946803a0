"""Every named choice of the config, as cases for tests: read off FIELDS."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.presets import PRESETS
from transformer_jax.config import Config
from transformer_jax.data.cache import Batch
from transformer_jax.fields import FIELDS, difference, override
from transformer_jax.nn import implementations, randomness
from transformer_jax.nn.transformer import (
  Transformer,
  initial_params,
  with_statistics,
)
from transformer_jax.training.state import (
  State,
  initial_state,
  numbers,
  train_step,
)

V = 16
# How it is computed, not what: these must change nothing.
NEUTRAL = {
  'model.remat',
  'model.layer_loop',
  'model.attention_implementation',
  # What the base has at all sites.
  'model.scale_encoder_self=rsqrt_d_k',
  'model.scale_decoder_self=rsqrt_d_k',
  'model.scale_cross=rsqrt_d_k',
  'model.position_decoder=sinusoid',
}
# A choice that would be another one in the base is compared in company. The
# authors' recipe is fan_avg, and where heads d_k = d_model fan_in as well.
COMPANY = {
  'model.query_key_init=fan_in': {'model.d_k': 4},
  'model.query_key_init=fan_avg': {
    'model.d_k': 4,
    'model.initialization': 'fairseq',
  },
}
# Runs on a GPU only; tests/nn/test_implementations.py interprets it.
ELSEWHERE = {'model.attention_implementation=kernel'}
# Axes that are numbers, each at another than the base's.
NUMBERS = {
  'model.heads': (4,),
  'model.d_k': (6,),
  'model.d_v': (10,),
  'model.d_ff': (24,),
  'model.dropout': (0.3,),
  'optim.label_smoothing': (0.2,),
}
# The three founding axes, and one choice of each further mechanism.
QUICK = {
  'model.score=additive',
  'model.scale=none',
  'model.scale=learned',
  'model.position_join=concat_project',
  'model.position=rotary',
  'model.position_decoder=relative',
  'model.projections=identity',
  'model.norm=batch',
}
BATCH = Batch(
  np.array([[5, 6, 7, 2, 0], [5, 9, 11, 6, 2]], np.int32),
  np.array([[7, 8, 9, 2], [5, 3, 2, 0]], np.int32),
)


def base() -> Config:
  """A config of which each choice alone is valid."""
  config = override(Config(), PRESETS['test'].overrides)
  changes = {
    'model.max_positions': 16,
    'model.d_position': 4,
    'model.tie': 'none',
    'optim.schedule': 'paper',
    'optim.learning_rate': 1.0,
    'optim.warmup_steps': 100,
  }
  return override(config, changes)


def beside(path: str, choice: str) -> Config:
  """What a choice is compared with: the base, in its company."""
  return override(base(), COMPANY.get(f'{path}={choice}', {}))


def each(*rooms: str) -> list:
  """(path, choice) of all choices but the base's, and of NUMBERS.

  Those that are not among the quick ones are marked slow.
  """
  values = vars(base())
  return [
    pytest.param(
      path, choice, marks=() if name in QUICK else pytest.mark.slow, id=name
    )
    for path, field in FIELDS.items()
    if path.startswith(rooms)
    for choice in field.choices or NUMBERS.get(path, ())
    for name in [f'{path}={choice}']
    if name not in ELSEWHERE
    and choice != vars(values[path.split('.')[0]])[path.split('.')[1]]
  ]


def quick() -> set[str]:
  return QUICK


def neutral(path: str, choice: str) -> bool:
  return path in NEUTRAL or f'{path}={choice}' in NEUTRAL


class Case(NamedTuple):
  """A config, its model, and its states before and after three steps."""

  config: Config
  model: Transformer
  start: State
  end: State

  @property
  def weights(self) -> dict:
    return with_statistics(self.end.params, self.end.statistics)


@functools.lru_cache(maxsize=4)
def trained(path: str = '', choice: str = '') -> Case:
  """Of the base with one choice; path '' is the base itself."""
  return _trained(
    override(beside(path, choice), {path: choice} if path else {})
  )


def _trained(config: Config) -> Case:
  attend = implementations.choose(config.model, platform='cpu')
  model = Transformer(config.model, V, V, attend)
  key = randomness.seed_key(0)
  step = jax.jit(train_step(config, model))
  state = start = jax.jit(initial_state(config, model))(key)
  for _ in range(3):
    state, _ = step(state, BATCH, key, numbers(config))
  return Case(config, model, start, state)


@functools.cache
def _baseline(config: Config) -> Case:
  return _trained(config)


def baseline(path: str = '', choice: str = '') -> Case:
  """What `trained` of a choice is compared with."""
  return _baseline(beside(path, choice))


@functools.cache
def parameter_shapes(config: Config) -> dict[str, list[int]]:
  """{path: shape} of what the model learns."""
  draw = initial_params(config.model, source_vocabulary=V, target_vocabulary=V)
  shapes = jax.eval_shape(draw, randomness.seed_key(0))
  found, _ = jax.tree_util.tree_flatten_with_path(shapes)
  return {
    '/'.join(str(entry.key) for entry in path): list(leaf.shape)
    for path, leaf in found
  }


def golden(path: str, choice: str) -> dict:
  """What a choice makes of the base: config fields, parameters."""
  start = beside(path, choice)
  config = override(start, {path: choice})
  before, after = parameter_shapes(start), parameter_shapes(config)
  return {
    'fields': {
      name: new for name, (_, new) in difference(start, config).items()
    },
    'without': sorted(before.keys() - after.keys()),
    'with': {
      name: shape
      for name, shape in sorted(after.items())
      if before.get(name) != shape
    },
  }


def decoded_TBV(model, variables, source_BS, read_BT):
  """Logits of one token after the other, by a cache of 8 places."""
  apply = functools.partial(model.apply, variables)
  memory = apply(source_BS, method='encode')
  cache = apply(memory, 8, method='start_cache')

  def step(cache, t):
    logits_BV, cache = apply(read_BT[:, t], t, cache, method='decode_step')
    return cache, logits_BV

  return jax.lax.scan(step, cache, jnp.arange(read_BT.shape[1]))[1]
