"""Every named choice: it has its function, it matters, and it is whole."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.choices import (
  BATCH,
  V,
  baseline,
  decoded_TBV,
  each,
  golden,
  neutral,
  trained,
)
from transformer_jax.fields import FIELDS
from transformer_jax.inference.translate import STRATEGIES
from transformer_jax.nn import (
  attention,
  embeddings,
  implementations,
  initializers,
  layers,
  module,
  norms,
  positions,
  projections,
  stack,
)
from transformer_jax.nn.transformer import Transformer, shift_right, variables
from transformer_jax.training import optim
from transformer_jax.training.checkpoint import Checkpoints

SCALES = (attention.SCALES,)
TABLES = {
  'model.score': (attention.SCORES,),
  'model.scale': SCALES,
  'model.scale_encoder_self': SCALES,
  'model.scale_decoder_self': SCALES,
  'model.scale_cross': SCALES,
  'model.query_key_init': (initializers.QUERY_KEY_INITS,),
  'model.head_init': (initializers.HEAD_INITS,),
  'model.projections': (projections.PROJECTIONS,),
  'model.output_projection': (projections.OUTPUT_PROJECTIONS,),
  'model.causal_mask': (attention.CAUSAL_MASKS,),
  'model.norm': (norms.NORMS,),
  'model.residual': (layers.RESIDUALS,),
  'model.position_join': (positions.JOINS,),
  'model.norm_order': (layers.NORM_ORDERS,),
  'model.activation': (layers.ACTIVATIONS,),
  'model.position': (embeddings.POSITIONS,),
  'model.position_decoder': (embeddings.POSITIONS,),
  'model.tie': (embeddings.TIES,),
  'model.embedding_scale': (embeddings.EMBEDDING_SCALES,),
  'model.initialization': (initializers.INITIALIZATIONS,),
  'model.compute_dtype': (module.DTYPES,),
  'model.attention_implementation': (implementations.IMPLEMENTATIONS,),
  'model.layer_loop': (stack.LAYER_LOOPS,),
  'optim.schedule': (optim.SCHEDULES,),
  'decode.strategy': (STRATEGIES,),
}
GOLDENS = pathlib.Path(__file__).parent / 'goldens' / 'choices.json'
CHOICES = each('model.', 'optim.')


@pytest.mark.parametrize('path', TABLES)
def test_a_table_has_exactly_the_choices(path):
  for table in TABLES[path]:
    assert set(table) == set(FIELDS[path].choices or ()) - {'same'}


def test_each_choice_has_a_golden_and_no_golden_is_left_over():
  names = [f'{path}={choice}' for path, choice in (c.values for c in CHOICES)]
  assert sorted(json.loads(GOLDENS.read_text())) == sorted(names)


@pytest.mark.parametrize('path, choice', CHOICES)
def test_a_choice_trains_differs_decodes_and_is_restored(
  path, choice, tmp_path
):
  case = trained(path, choice)
  against = baseline(path, choice)
  before = jax.tree.leaves(against.end.params)
  after = jax.tree.leaves(case.end.params)
  assert all(np.all(np.isfinite(leaf)) for leaf in after)
  same = len(before) == len(after) and all(
    a.shape == b.shape and jnp.allclose(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(before, after, strict=True)
  )
  assert same == neutral(path, choice)
  # `make goldens` rewrites them; the diff then shows what changed.
  wanted = json.loads(GOLDENS.read_text())[f'{path}={choice}']
  assert golden(path, choice) == wanted
  keeps_the_initial_values_of_the_rest(case, against, path)
  decodes_with_a_cache_as_without(case)
  survives_checkpoint_and_restore(case, tmp_path)


def leaves(tree):
  found, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def keeps_the_initial_values_of_the_rest(case, against, path):
  """What a choice does not speak of starts bitwise as in the baseline."""
  # These are about initial values, of the parameters named.
  speaks_of = {
    'model.initialization': ('attention', 'feed_forward'),
    'model.query_key_init': ('w_q', 'w_k'),
    'model.head_init': ('w_q', 'w_k', 'w_v'),
    'model.scale': ('w_q',),
  }
  own = next((w for p, w in speaks_of.items() if path.startswith(p)), ())
  before, after = leaves(against.start.params), leaves(case.start.params)
  shared = {
    name
    for name in before.keys() & after.keys()
    if before[name].shape == after[name].shape
    and not any(word in name for word in own)
  }
  assert shared
  for name in shared:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def decodes_with_a_cache_as_without(case):
  # What is decoded step by step cannot see what is not there yet.
  whole = dataclasses.replace(case.config.model, causal_mask='present')
  own = variables(case.weights)
  full_BTV = jax.jit(Transformer(whole, V, V).apply)(own, *BATCH)

  decode = jax.jit(functools.partial(decoded_TBV, case.model))
  read_BT = shift_right(jnp.asarray(BATCH.target_BT))
  found_TBV = decode(own, BATCH.source_BS, read_BT)
  close = 1e-5 if case.config.model.compute_dtype == 'float32' else 0.05
  real_BT = BATCH.target_BT != 0
  np.testing.assert_allclose(
    jnp.swapaxes(found_TBV, 0, 1)[real_BT],
    full_BTV[real_BT],
    rtol=close,
    atol=close,
  )


def survives_checkpoint_and_restore(case, folder):
  kept = Checkpoints(folder)
  state = jax.device_put(case.end, jax.local_devices()[0])
  kept.save(3, state, metric=None)
  kept.wait()
  found = kept.restore(jax.eval_shape(lambda: state))
  assert jax.tree.structure(found) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def rewrite_goldens() -> None:
  found = {
    f'{path}={choice}': golden(path, choice)
    for path, choice in (case.values for case in CHOICES)
  }
  GOLDENS.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  rewrite_goldens()
