"""The whole model against the oracle, and the properties it must have."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.choices import decoded_TBV
from tests.nn import oracle
from transformer_jax.config import Config, ModelConfig
from transformer_jax.data.cache import Batch
from transformer_jax.nn import randomness
from transformer_jax.nn.module import Dropout
from transformer_jax.nn.transformer import (
  Transformer,
  initial_params,
  shift_right,
)
from transformer_jax.training.state import loss_function, numbers

V = 20
TINY = ModelConfig(layers=2, d_model=16, d_ff=24, heads=2, d_k=6, d_v=10)
VARIANTS = {
  'paper': {},
  'pre': dict(norm_order='pre'),
  'untied': dict(tie='none'),
  'decoder-tied': dict(tie='decoder'),
  'learned': dict(position='learned', max_positions=32),
  'no-positions': dict(position='none'),
  'unrolled': dict(layer_loop='unroll'),
  'remat': dict(remat='layer'),
  'gelu': dict(activation='gelu'),
  'unscaled-embedding': dict(embedding_scale='none'),
  'fairseq': dict(initialization='fairseq'),
  'additive': dict(score='additive', scale='none'),
  'general': dict(score='general'),
  'cosine': dict(score='cosine', scale='none'),
  'uniform': dict(score='uniform'),
  'unscaled': dict(scale='none'),
  'inverse': dict(scale='inverse_d_k'),
  'concat': dict(position_join='concat_project'),
  'concat-random': dict(position_join='concat_random'),
  'add-mapped': dict(position_join='add_mapped'),
}
QUICK = ('paper', 'pre', 'additive', 'unscaled', 'concat')
NAMES = [
  pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
  for name in VARIANTS
]
SOURCE_BS = np.array([[5, 6, 7, 2, 0, 0], [5, 9, 11, 12, 13, 2]], np.int32)
TARGET_BT = jnp.array([[7, 8, 9, 10, 2], [5, 19, 2, 0, 0]], jnp.int32)


def variant(name):
  return dataclasses.replace(TINY, **VARIANTS[name])


@functools.cache
def init(config):
  start = initial_params(config, source_vocabulary=V, target_vocabulary=V)
  return jax.jit(start)(randomness.seed_key(0))


@functools.cache
def compiled(config, method):
  """(params, *arrays) -> what the model's method gives."""
  model = Transformer(config, V, V)
  return jax.jit(
    lambda params, *arrays: model.apply(
      {'params': params}, *arrays, method=method
    )
  )


def forward(config, params, source_BS, target_BT, dropout=None):
  logits = compiled(config, '__call__')
  return logits(params, source_BS, target_BT, dropout)


@pytest.mark.parametrize('initialization', ['tensor2tensor', 'fairseq'])
def test_model_is_the_papers_formula(initialization):
  config = dataclasses.replace(TINY, initialization=initialization)
  params = init(config)
  exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  found = forward(config, params, SOURCE_BS, TARGET_BT)
  for row in range(2):
    source = SOURCE_BS[row][SOURCE_BS[row] != 0]
    target = TARGET_BT[row][TARGET_BT[row] != 0]
    wanted = oracle.logits(exact, source, target)
    np.testing.assert_allclose(
      found[row, : len(target)], wanted, rtol=1e-5, atol=1e-5
    )


def oracle_loss(params):
  """Smoothed cross entropy of the two pairs, summed; float64."""
  total = 0.0
  for source, target in zip(SOURCE_BS, np.asarray(TARGET_BT), strict=True):
    source, target = source[source != 0], target[target != 0]
    logits = oracle.logits(params, source, target)
    total += sum(
      oracle.smoothed_cross_entropy(row, token, 0.1)
      for row, token in zip(logits, target, strict=True)
    )
  return total


def test_every_gradient_is_that_of_the_oracle():
  """By central differences of float64, along two directions of each leaf.

  The gradient is of float32: a number of it is a sum of many terms of both
  signs, each off by some 1e-7 of itself. What cancels is lost for the number,
  not for the length of the leaf's gradient, so the error is measured by that.
  """
  config = Config(model=TINY)
  loss = loss_function(config, Transformer(TINY, V, V))
  params = init(TINY)
  batch = Batch(SOURCE_BS, np.asarray(TARGET_BT))

  def smoothed(params):
    return loss(params, batch, None, numbers(config)).smoothed

  gradient = jax.jit(jax.grad(smoothed))(params)
  exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  leaves, tree = jax.tree.flatten(exact)
  found = jax.tree.leaves_with_path(gradient)
  draw, step = np.random.default_rng(0), 1e-5
  for n, (path, own) in enumerate(found):
    own = np.asarray(own, np.float64)
    for _ in range(2):
      along = draw.normal(size=own.shape)
      along /= np.linalg.norm(along)
      ends = [
        oracle_loss(
          jax.tree.unflatten(
            tree, [*leaves[:n], leaves[n] + h * along, *leaves[n + 1 :]]
          )
        )
        for h in (step, -step)
      ]
      wanted = (ends[0] - ends[1]) / (2 * step)
      np.testing.assert_allclose(
        np.sum(own * along),
        wanted,
        rtol=0,
        atol=1e-6 * float(np.linalg.norm(own)),
        err_msg=jax.tree_util.keystr(path),
      )


@pytest.mark.parametrize('name', NAMES)
def test_cached_decoding_gives_the_same_logits(name):
  config = variant(name)
  params = init(config)
  full_BTV = forward(config, params, SOURCE_BS, TARGET_BT)
  read_BT = shift_right(TARGET_BT)
  model = Transformer(config, V, V)

  decode = jax.jit(functools.partial(decoded_TBV, model))
  found_TBV = decode({'params': params}, SOURCE_BS, read_BT)
  np.testing.assert_allclose(
    jnp.swapaxes(found_TBV, 0, 1), full_BTV, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('name', ['paper', 'pre'])
def test_no_target_token_sees_a_later_one(name):
  config = variant(name)
  model = Transformer(config, V, V)
  params = init(config)
  at = 2

  def logit(w_VD, source_BS, target_BT):
    changed = {**params, 'embedding': {'w_VD': w_VD}}
    h_BTD = model.apply(
      {'params': changed}, source_BS, target_BT, method='hidden'
    )
    return jnp.asarray(h_BTD)[0, at, 0]

  # Token t is read at position t + 1: output 2 reads BOS and tokens 0 and 1.
  target_BT = np.array([[7, 8, 15, 16, 2]], np.int32)
  gradient_VD = jax.jit(jax.grad(logit))(
    params['embedding']['w_VD'], SOURCE_BS[:1], target_BT
  )
  assert not np.any(gradient_VD[np.array([15, 16])])
  assert np.all(np.any(gradient_VD[np.array([1, 7, 8])], axis=1))


@pytest.mark.parametrize('name', NAMES)
def test_padding_and_batch_mates_change_nothing(name):
  config = variant(name)
  params = init(config)
  alone = forward(config, params, SOURCE_BS[:1, :4], TARGET_BT[:1])
  together = forward(config, params, SOURCE_BS, TARGET_BT)
  np.testing.assert_allclose(alone[0], together[0], rtol=1e-5, atol=1e-5)


def test_a_row_of_padding_gives_numbers():
  source_BS, target_BT = np.zeros((1, 4), np.int32), np.zeros((1, 3), np.int32)
  params = init(TINY)

  def loss(p):
    return jnp.sum(forward(TINY, p, source_BS, target_BT) ** 2)

  assert all(
    np.all(np.isfinite(g))
    for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params))
  )


def test_without_positions_the_encoder_permutes_with_its_input():
  order = np.array([3, 1, 0, 2])
  source_BS = np.array([[5, 6, 7, 8]], np.int32)
  for name, permutes in [('no-positions', True), ('paper', False)]:
    config = variant(name)
    encode = compiled(config, 'encode')
    straight = encode(init(config), source_BS)
    permuted = encode(init(config), source_BS[:, order])
    same = np.allclose(
      straight.memory_BSD[:, order], permuted.memory_BSD, atol=1e-5
    )
    assert same == permutes


def test_the_layer_loop_is_not_seen_in_the_values():
  params = init(TINY)
  scanned = forward(TINY, params, SOURCE_BS, TARGET_BT)
  for name in ('unrolled', 'remat'):
    found = forward(variant(name), params, SOURCE_BS, TARGET_BT)
    np.testing.assert_allclose(scanned, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_a_variant_keeps_the_initial_values_of_the_others(name):
  before = leaves(init(TINY))
  after = leaves(init(variant(name)))
  shared = before.keys() & after.keys()
  assert shared
  for path in shared:
    if name == 'fairseq' and 'norm' not in path and 'embedding' not in path:
      continue
    np.testing.assert_array_equal(before[path], after[path], err_msg=path)


def test_a_deeper_model_begins_with_the_same_layers():
  deeper = init(dataclasses.replace(TINY, layers=3))
  for path, leaf in leaves(init(TINY)).items():
    np.testing.assert_array_equal(leaf, leaves(deeper)[path][: len(leaf)])


def leaves(tree):
  found, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def test_bfloat16_computes_what_float32_does():
  params = init(TINY)
  exact = forward(TINY, params, SOURCE_BS, TARGET_BT)
  config = dataclasses.replace(TINY, compute_dtype='bfloat16')
  found = forward(config, params, SOURCE_BS, TARGET_BT)
  assert found.dtype == jnp.float32
  assert not np.array_equal(exact, found)
  np.testing.assert_allclose(exact, found, atol=0.15)
  for leaf in jax.tree.leaves(init(config)):
    assert leaf.dtype == jnp.float32


def test_dropout_depends_on_key_and_site_alone():
  params = init(TINY)

  def run(key, rate):
    return forward(
      TINY,
      params,
      SOURCE_BS,
      TARGET_BT,
      Dropout(randomness.seed_key(key), rate, 0.0, 0.0),
    )

  np.testing.assert_array_equal(run(0, 0.3), run(0, 0.3))
  assert not np.array_equal(run(0, 0.3), run(1, 0.3))
  np.testing.assert_allclose(
    run(0, 0.0),
    forward(TINY, params, SOURCE_BS, TARGET_BT),
    rtol=1e-6,
    atol=1e-6,
  )


# Table 3: the rows that print a parameter count, in millions.
TABLE_3 = [
  (65, {}),
  (58, dict(d_k=16)),
  (60, dict(d_k=32)),
  (36, dict(layers=2)),
  (50, dict(layers=4)),
  (80, dict(layers=8)),
  (28, dict(d_model=256, d_k=32, d_v=32)),
  (168, dict(d_model=1024, d_k=128, d_v=128)),
  (53, dict(d_ff=1024)),
  (90, dict(d_ff=4096)),
]
BIG = dict(d_model=1024, d_ff=4096, heads=16)


def parameters(vocabulary, **changes):
  config = dataclasses.replace(ModelConfig(), **changes)
  start = initial_params(
    config, source_vocabulary=vocabulary, target_vocabulary=vocabulary
  )
  shapes = jax.eval_shape(start, randomness.seed_key(0))
  return sum(np.prod(x.shape) for x in jax.tree.leaves(shapes)) / 1e6


@pytest.mark.parametrize('millions, changes', TABLE_3)
def test_parameter_counts_are_those_of_table_3(millions, changes):
  assert round(parameters(41_100, **changes)) == millions


def test_big_has_the_published_count_with_a_smaller_vocabulary_only():
  assert round(parameters(41_100, **BIG)) == 218
  assert round(parameters(35_800, **BIG)) == 213


def test_a_neutral_start_is_the_papers_model():
  """[I; I] concatenates to the sum; a bilinear score with W = I is dot."""
  wanted = forward(TINY, init(TINY), SOURCE_BS, TARGET_BT)
  for name in ('concat', 'add-mapped', 'general'):
    config = variant(name)
    found = forward(config, init(config), SOURCE_BS, TARGET_BT)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  config = variant('concat-random')
  found = forward(config, init(config), SOURCE_BS, TARGET_BT)
  assert not np.allclose(found, wanted, atol=1e-2)
