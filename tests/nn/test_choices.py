"""What every choice of the model keeps, and which choices break what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.choices import BATCH, V, base, each, quick
from transformer_jax.fields import override
from transformer_jax.nn import implementations, randomness
from transformer_jax.nn.transformer import (
  STATISTICS,
  Transformer,
  initial_weights,
  variables,
  with_statistics,
)

AT = 2  # reads BOS and target tokens 0 and 1
# Tokens that stand in one place: PAD, the row's later ones, those of its mate.
PAD, READ, LATER, MATE = [0], [1, 7, 8], [10, 13], [5, 3]
SOURCE_BS = np.array([[4, 6, 7, 2, 0, 0], [5, 9, 11, 12, 3, 2]], np.int32)
TARGET_BT = np.array([[7, 8, 10, 13, 2], [5, 3, 2, 0, 0]], np.int32)


def model_of(**changes):
  config = override(base(), changes).model
  attend = implementations.choose(config, platform='cpu')
  model = Transformer(config, V, V, attend)
  draw = initial_weights(config, source_vocabulary=V, target_vocabulary=V)
  weights = with_statistics(*jax.jit(draw)(randomness.seed_key(0)))
  return model, weights


def seen(model, weights, mutable=False):
  """Which tokens' embeddings move output AT of row 0: of source, of target."""

  def output(tables, weights):
    changed = weights | {
      name: {'w_VD': table_VD} for name, table_VD in tables.items()
    }
    found = model.apply(
      variables(changed),
      SOURCE_BS,
      TARGET_BT,
      method='hidden',
      mutable=[STATISTICS] if mutable else False,
    )
    h_BTD = found[0] if mutable else found
    # A random direction: a norm leaves the sum of its outputs as it is.
    along_D = randomness.normal(randomness.seed_key(1), h_BTD.shape[-1:])
    return jnp.sum(h_BTD[0, AT] * along_D)

  if 'embedding' in weights:
    # One table for both sides: seen apart as the two that another model has.
    config = dataclasses.replace(model.config, tie='decoder')
    model = model.clone(config=config)
    both = weights['embedding']
    weights = {**weights, 'source_embedding': both, 'target_embedding': both}
    del weights['embedding']
  tables = {
    name: weights[name]['w_VD']
    for name in ('source_embedding', 'target_embedding')
  }
  gradients = jax.jit(jax.grad(output))(tables, weights)
  return [np.any(np.abs(g_VD) > 1e-12, axis=1) for g_VD in gradients.values()]


@pytest.mark.parametrize('path, choice', each('model.'))
def test_later_tokens_padding_and_batch_mates_are_not_seen(path, choice):
  model, weights = model_of(**{path: choice})
  source_V, target_V = seen(model, weights)
  assert np.all(target_V[READ]) and np.any(source_V[[4, 6, 7]])
  assert not np.any(target_V[PAD + MATE])
  assert not np.any(source_V[[*PAD, 5, 9, 11, 12]])
  assert np.any(target_V[LATER]) == (model.config.causal_mask == 'absent')

  forward = jax.jit(model.apply)
  alone = forward(variables(weights), SOURCE_BS[:1, :4], TARGET_BT[:1])
  together = forward(variables(weights), SOURCE_BS, TARGET_BT)
  close = 1e-5 if model.config.compute_dtype == 'float32' else 0.05
  np.testing.assert_allclose(alone[0], together[0], rtol=close, atol=close)


def test_batch_norm_in_training_sees_batch_mates_and_the_future():
  model, weights = model_of(**{'model.norm': 'batch'})
  source_V, target_V = seen(model, weights, mutable=True)
  assert np.any(target_V[LATER]) and np.any(target_V[MATE])
  assert np.any(source_V[[5, 9, 11, 12]])
  # Its moments are of real tokens only: padding stays unseen.
  assert not target_V[0] and not source_V[0]


def test_batch_norm_is_its_running_moments_once_they_have_come():
  """A study's steps on one batch: evaluation gives what training gave."""
  model, weights = model_of(**{'model.norm': 'batch'})

  @jax.jit
  def pass_on(weights):
    found, changed = model.apply(
      variables(weights), *BATCH, mutable=[STATISTICS]
    )
    return found, {**weights, **changed}

  for _ in range(100):
    found, weights = pass_on(weights)
  evaluated = model.apply(variables(weights), *BATCH)
  real_BT = BATCH.target_BT != 0
  np.testing.assert_allclose(
    found[real_BT], evaluated[real_BT], rtol=1e-3, atol=1e-3
  )


# Of each kind of dropout: of sums, of weights of attention, inside the
# feed-forward.
RATES = (0.3, 0.2, 0.1)


def dropped(path='', choice='', rates=RATES):
  """Output of a model with dropout, where all else is as in the baseline."""
  from transformer_jax.nn.module import Dropout

  inside = dict(
    zip(('attention_dropout', 'feed_forward_dropout'), rates[1:], strict=True)
  )
  changes = {f'model.{name}': rate for name, rate in inside.items()}
  model, weights = model_of(**({path: choice} if path else {}), **changes)
  key = randomness.seed_key(7)
  return jax.jit(model.apply)(variables(weights), *BATCH, Dropout(key, *rates))


@pytest.mark.parametrize('kind', [0, 1, 2])
def test_every_kind_of_dropout_drops(kind):
  alone = [rate if n == kind else 0.0 for n, rate in enumerate(RATES)]
  none = dropped(rates=(0.0, 0.0, 0.0))
  assert np.abs(dropped(rates=alone) - none).max() > 0.01


@pytest.mark.parametrize(
  'path, choice',
  [
    # Equal to the baseline at the start, with more parameters.
    ('model.score', 'general'),
    pytest.param(
      'model.position_join', 'concat_project', marks=pytest.mark.slow
    ),
    pytest.param('model.position_join', 'add_mapped', marks=pytest.mark.slow),
    ('model.scale', 'learned'),
  ],
)
def test_dropout_bits_are_those_of_the_baseline(path, choice):
  np.testing.assert_allclose(
    dropped(path, choice), dropped(), rtol=1e-5, atol=1e-5
  )


def test_the_quick_ones_are_choices():
  assert quick() == {
    name.id for name in each('model.', 'optim.') if not name.marks
  }
