"""Every named choice of the model: it has its function, and it matters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.presets import PRESETS
from transformer_jax.config import FIELDS, Config, override
from transformer_jax.data.batches import Batch
from transformer_jax.inference.translate import STRATEGIES
from transformer_jax.nn import (
  attention,
  implementations,
  initializers,
  layers,
  positions,
  randomness,
  transformer,
)
from transformer_jax.training import optim
from transformer_jax.training.state import (
  State,
  initial_state,
  numbers,
  train_step,
)

TABLES = {
  'model.score': (attention.SCORES,),
  'model.scale': (attention.SCALES,),
  'model.position_join': (positions.JOINS,),
  'model.norm_order': (layers.ENTER, layers.LEAVE),
  'model.activation': (layers.ACTIVATIONS,),
  'model.position': (transformer.POSITIONS,),
  'model.embedding_scale': (transformer.EMBEDDING_SCALES,),
  'model.initialization': (initializers.INITIALIZATIONS,),
  'model.compute_dtype': (layers.DTYPES,),
  'model.attention_implementation': (implementations.IMPLEMENTATIONS,),
  'model.layer_loop': (transformer.LAYER_LOOPS,),
  'optim.schedule': (optim.SCHEDULES,),
  'decode.strategy': (STRATEGIES,),
}
# How it is computed, not what: these must change nothing.
NEUTRAL = {
  'model.remat',
  'model.layer_loop',
  'model.attention_implementation',
}
QUICK = {'model.score', 'model.scale', 'model.position_join'}
CHOICES = [
  pytest.param(path, choice, marks=() if path in QUICK else pytest.mark.slow)
  for path, field in FIELDS.items()
  if path.startswith(('model.', 'optim.'))
  for choice in (field.choices or ())[1:]
]
BATCH = Batch(
  np.array([[5, 6, 7, 2, 0], [5, 9, 11, 6, 2]], np.int32),
  np.array([[7, 8, 9, 2], [5, 3, 2, 0]], np.int32),
)


@pytest.mark.parametrize('path', TABLES)
def test_a_table_has_exactly_the_choices(path):
  for table in TABLES[path]:
    assert set(table) == set(FIELDS[path].choices or ())


def base() -> Config:
  config = override(Config(), PRESETS['test'].overrides)
  changes = {
    'model.max_positions': 16,
    'optim.schedule': 'paper',
    'optim.learning_rate': 1.0,
    'optim.warmup_steps': 100,
  }
  return override(config, changes)


@functools.cache
def after_two_steps(path: str, choice: str) -> State:
  config = override(base(), {path: choice} if path else {})
  model = transformer.Transformer(config.model, 16, 16)
  key = randomness.seed_key(0)
  step = jax.jit(train_step(config, model))
  state = jax.jit(initial_state(config, model))(key)
  for _ in range(2):
    state, _ = step(state, BATCH, key, numbers(config))
  return state


@pytest.mark.parametrize('path, choice', CHOICES)
def test_each_choice_trains_and_differs_unless_it_is_neutral(path, choice):
  before = jax.tree.leaves(after_two_steps('', '').params)
  after = jax.tree.leaves(after_two_steps(path, choice).params)
  assert all(np.all(np.isfinite(leaf)) for leaf in after)
  same = len(before) == len(after) and all(
    a.shape == b.shape and jnp.allclose(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(before, after, strict=True)
  )
  assert same == (path in NEUTRAL)
