"""The formula of FLOPs against the program, and every figure of a cost."""

import dataclasses
from typing import Any

import jax
import pytest

from experiments.presets import PRESETS
from transformer_jax.ablation import cost
from transformer_jax.config import Config
from transformer_jax.fields import override
from transformer_jax.nn import attention, blockwise, randomness
from transformer_jax.training import products
from transformer_jax.training.state import initial_state, numbers, train_step

SHAPE = cost.Shape(8, 6, 10, 12, 12)
TEST = override(Config(), PRESETS['test'].overrides)
QUICK = (0, 2, 5)
VARIANTS = [
  {},
  {'model.layers': 3, 'model.d_k': 5, 'model.d_v': 7},
  *({'model.score': score} for score in attention.SCORES if score != 'dot'),
  {'model.projections': 'identity', 'model.d_k': 8, 'model.d_v': 8},
  {'model.projections': 'shared_key_value'},
  {'model.output_projection': 'none'},
  {'model.position_join': 'concat_project'},
  {'model.position_join': 'add_mapped', 'model.position': 'learned'},
  {'model.layer_loop': 'unroll', 'model.tie': 'none'},
]


def abstract_step(config):
  model = cost.new_model(config, SHAPE)
  key = randomness.seed_key(0)
  state = jax.eval_shape(initial_state(config, model), key)
  batch = cost.full_batch(SHAPE)
  arguments = cost.abstract((state, batch, key, numbers(config)))
  return train_step(config, model), arguments


NAMED = [
  pytest.param(
    changes,
    marks=() if number in QUICK else pytest.mark.slow,
    id=' '.join(map(str, changes.values())) or 'paper',
  )
  for number, changes in enumerate(VARIANTS)
]


@pytest.mark.parametrize('changes', NAMED)
def test_the_formula_counts_the_products_of_the_program(changes):
  config = override(TEST, changes)
  step, arguments = abstract_step(config)
  by_formula = cost.training_flops(config.model, SHAPE)
  assert by_formula == pytest.approx(products.flops(step, *arguments), rel=1e-9)


def test_a_score_says_its_products_in_its_entry(monkeypatch):
  """So one from outside is counted as well."""
  dear = attention.Score(attention.dot_scores, products=3)
  monkeypatch.setitem(attention.SCORES, 'dear', dear)
  model = TEST.model
  paid = dataclasses.replace(model, score='dear')
  pairs = SHAPE.source_length**2 + SHAPE.target_length**2
  pairs += SHAPE.target_length * SHAPE.source_length
  more = 2 * 6 * SHAPE.rows * model.layers * model.heads * model.d_k * pairs
  found = [cost.training_flops(each, SHAPE) for each in (model, paid)]
  assert found[1] - found[0] == more


def test_parameters_by_part():
  config = dataclasses.replace(Config().model, layers=6)
  model = cost.Transformer(config, 37_000, 37_000)
  state = jax.eval_shape(initial_state(Config(), model), randomness.seed_key(0))
  found = cost.parameters(state.params)
  assert found == {
    'norms': 30 * 2 * 512,
    'embeddings': 37_000 * 512,
    'positions': 0,
    'attention': 18 * 4 * 512 * 512,
    'feed_forward': 12 * (2 * 512 * 2048 + 2048 + 512),
  }


@pytest.mark.slow
def test_xla_counts_the_formula_also_where_blocks_serve(monkeypatch):
  """A tile's loop has its body counted once: eight tiles here."""
  monkeypatch.setattr(blockwise, 'TILE_NUMBERS', 1 << 10)
  shape, found = cost.Shape(2, 32, 32, 12, 12), {}
  for name in ('naive', 'blockwise'):
    config = override(TEST, {'model.attention_implementation': name})
    model = cost.new_model(config, shape)
    state = jax.eval_shape(initial_state(config, model), randomness.seed_key(0))
    batch = cost.full_batch(shape)
    arguments = state, batch, randomness.seed_key(0), numbers(config)
    step = jax.jit(train_step(config, model)).lower(*cost.abstract(arguments))
    compiled: Any = step.compile()
    found[name] = (
      cost.xla_flops(model, config, shape, compiled),
      compiled.cost_analysis()['flops'],
    )
  assert found['blockwise'][0] == found['naive'][0]
  assert found['blockwise'][1] < found['naive'][1]


@pytest.mark.slow
def test_cost_of_a_variant():
  found = cost.of(override(TEST, {'model.layers': 2}), SHAPE, rounds=2)
  # Beside the products XLA counts all else that is done: in a model of 16
  # numbers a token that is more than the products are.
  assert found.xla_flops_per_token > found.flops_per_token
  assert found.step_spread[0] <= found.step_seconds <= found.step_spread[1]
  # Parameters and Adam's two moments, at least.
  assert found.peak_memory > 3 * 4 * found.total_parameters
  assert found.compile_seconds > 0 and found.decode_tokens_per_second > 0
