"""Every pair of choices trains, or is refused with its reason."""

import functools

import jax
import numpy as np
import pytest

from tests.choices import BATCH, V, base
from tests.pairs import AXES, config_of, covering, pairs, refusal
from transformer_jax.fields import override
from transformer_jax.nn import implementations, randomness
from transformer_jax.nn.transformer import Transformer
from transformer_jax.refusals import REFUSALS
from transformer_jax.training.state import initial_state, numbers, train_step


def test_each_pair_is_valid_or_refused_with_its_reason():
  refused, reasons = 0, set()
  # A choice that is not valid with the base's others is refused in all pairs.
  alone = {
    (path, choice)
    for path, choices in AXES.items()
    for choice in choices
    if refusal(config_of({path: choice}))
  }
  for pair in pairs():
    config = config_of(pair)
    reason = refusal(config)
    rows = [row for row in REFUSALS if row.refused(config)]
    assert bool(reason) == bool(rows)
    if rows:
      refused += 1
      reasons.add(rows[0])
      assert '\n' not in reason
      # The row is about both choices, not about one of them alone.
      about = {path for path, _ in pair} <= set(rows[0].fields)
      assert about or alone & pair, (pair, reason)
  # Rows that two choices can meet; the others are about numbers.
  named = [row for row in REFUSALS if row in reasons]
  assert refused > 40 and len(named) >= 7


def test_the_pairs_that_are_known_to_be_refused():
  for pair in (
    {'model.position': 'rotary', 'model.score': 'additive'},
    {'model.position_join': 'concat_narrow', 'model.tie': 'all'},
    {'model.norm': 'none', 'model.norm_order': 'pre'},
    {'model.scale_cross': 'folded_init_rate', 'model.score': 'cosine'},
    {'model.projections': 'identity', 'model.query_key_init': 'fan_in'},
    {'model.projections': 'identity', 'model.head_init': 'alike'},
    {'model.score': 'uniform', 'model.position': 'rotary'},
    {'model.score': 'uniform', 'model.position_decoder': 'rotary'},
    {'model.score': 'uniform', 'model.scale': 'none'},
    {'model.score': 'uniform', 'model.scale_cross': 'learned'},
    {'model.score': 'uniform', 'model.query_key_init': 'fan_in'},
    {'model.score': 'uniform', 'model.projections': 'shared_query_key'},
    {'model.position': 'none', 'model.position_join': 'concat_project'},
    {'model.position': 'none', 'model.position_join': 'add_mapped'},
  ):
    assert refusal(config_of(pair))


@pytest.mark.parametrize(
  'values, word',
  [
    ({'model.position_join': 'concat_narrow', 'model.d_position': 16}, 'width'),
    ({'model.position_join': 'concat_narrow', 'model.d_position': 3}, 'even'),
    ({'model.position': 'rotary', 'model.d_k': 3}, 'model.d_k=3'),
    ({'model.projections': 'identity', 'model.d_k': 4}, 'model.d_model=16'),
    ({'model.projections': 'shared_key_value', 'model.d_v': 4}, 'model.d_v=4'),
    ({'model.output_projection': 'none', 'model.d_v': 4}, 'side by side'),
    ({'model.norm': 'batch', 'optim.accumulate': 2}, 'whole batch'),
    (
      {'model.position_decoder': 'learned', 'model.max_positions': 3},
      'model.max_positions=3',
    ),
  ],
)
def test_numbers_that_a_choice_cannot_have(values, word):
  assert word in refusal(override(base(), values))


@functools.cache
def cover() -> list[dict[str, str]]:
  return covering()


def start_and_step(chosen: dict[str, str]):
  """(initial state, one step) of a config, not compiled yet."""
  config = config_of(chosen)
  attend = implementations.choose(config.model, platform='cpu')
  model = Transformer(config.model, V, V, attend)
  step = train_step(config, model)

  def one(state):
    return step(state, BATCH, randomness.seed_key(0), numbers(config))

  return initial_state(config, model), one


@pytest.mark.slow
@pytest.mark.parametrize('shard', range(16))
def test_each_valid_pair_makes_a_step(shard):
  """Each valid pair, together with others: a config compiles for five seconds.

  The shards are for the workers of a test run.
  """
  for chosen in cover()[shard::16]:
    start, step = start_and_step(chosen)
    state = jax.jit(start)(randomness.seed_key(0))
    end, metrics = jax.jit(step)(state)
    assert jax.tree.map(np.shape, end) == jax.tree.map(np.shape, state)
    assert np.isfinite(metrics.losses.smoothed), chosen
    assert np.isfinite(metrics.gradient_norm), chosen
    for leaf in jax.tree.leaves(end):
      assert np.all(np.isfinite(leaf)), chosen
    pairs = zip(*map(jax.tree.leaves, (state.params, end.params)), strict=True)
    assert any(np.any(a != b) for a, b in pairs), chosen
