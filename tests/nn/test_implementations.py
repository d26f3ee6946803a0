"""Every implementation is attention, where it says that it serves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.test_blockwise import LONG, arrays, masked, value_and_gradients
from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import override
from transformer_jax.nn import (
  attention,
  blockwise,
  implementations,
  kernel,
  randomness,
)
from transformer_jax.nn.attention import SCORES, Drop, How
from transformer_jax.rules import validate

IN_PROGRAM = dict(
  implementations.FUNCTIONS,
  blockwise=functools.partial(blockwise.attention, blocks=(8, 4)),
  kernel=functools.partial(kernel.attention, tiles=(8, 4), interpret=True),
)
KEY = randomness.seed_key(3)
EACH = [
  ('fused', 'dot', 'each', None, 'bias'),
  ('fused', 'dot', 'padding', None, 'no bias'),
  ('kernel', 'additive', 'each', 0.3, 'no bias'),
  ('kernel', 'additive', 'padding', None, 'no bias'),
  ('blockwise', 'additive', 'all', 0.3, 'bias'),
]


@pytest.mark.parametrize(('name', 'score', 'mask', 'rate', 'bias'), EACH)
def test_all_agree_with_the_formula(name, score, mask, rate, bias):
  """So any two of them agree with each other."""
  inputs, cotangent = arrays(score, LONG)
  if bias == 'no bias':
    inputs = (*inputs[:5], None)
  drop = None if rate is None else Drop(KEY, rate)
  sees = attention.not_later if mask == 'each' else None
  given = score, inputs, cotangent, masked(LONG, mask), drop, sees
  wanted = value_and_gradients(attention.attention, *given)
  found = value_and_gradients(IN_PROGRAM[name], *given)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    found,
    wanted,
  )


def test_fused_gives_even_weights_where_nothing_may_be_seen():
  (q, k, v, *_), _ = arrays('dot', LONG)
  nothing_BTS = jnp.zeros((1, 1, 1), bool)
  attend = jax.jit(functools.partial(implementations.fused, how=How(1.0)))
  found = attend(q, k, v, nothing_BTS)
  mean = jnp.broadcast_to(jnp.mean(v, axis=1, keepdims=True), found.shape)
  np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_kernel_can_be_written_for_a_gpu(dtype):
  """Triton's language takes it, forward and backward; nothing is run."""

  def step(q, k, v, w, mask_BTS, key):
    mixed, back = jax.vjp(
      lambda q, k, v, w: kernel.attention(
        q,
        k,
        v,
        mask_BTS,
        How(
          0.5,
          attention.additive_scores,
          w,
          drop=Drop(key, 0.1),
          sees=attention.not_later,
        ),
      ),
      q,
      k,
      v,
      w,
    )
    return back(mixed)

  shape = jax.ShapeDtypeStruct
  given = [shape((2, 100, 4, 24), dtype)] * 3 + [shape((4, 24), dtype)]
  given += [shape((2, 1, 100), bool), shape((2,), jnp.uint32)]
  traced = jax.jit(step).trace(*given)
  text = traced.lower(lowering_platforms=('cuda',)).as_text()
  for program in ('forward_kernel', 'query_kernel', 'key_kernel'):
    assert program in text


def chosen(**changes: str | float) -> Config:
  paths = {f'model.{name}': value for name, value in changes.items()}
  return override(Config(), paths)


def test_auto_is_a_rule_of_config_and_platform():
  def served(platform, **changes):
    return implementations.serve(chosen(**changes).model, platform=platform)

  for platform in ('cpu', 'gpu', 'tpu'):
    found = served(platform, score='additive')
    assert found.attend is implementations.by_shape
  half = served('gpu', compute_dtype='bfloat16')
  assert half.attend is implementations.fused_on_gpu and 'cuDNN' in half.why
  dropped = served('gpu', compute_dtype='bfloat16', attention_dropout=0.1)
  assert dropped.attend is implementations.by_shape
  assert 'no dropout' in dropped.why
  assert 'no float32' in served('gpu').why


@pytest.mark.parametrize(
  ('T', 'S', 'width', 'dtype', 'taken'),
  [
    (64, 32, 64, jnp.bfloat16, True),
    (64, 32, 64, jnp.float32, False),
    (64, 32, 12, jnp.bfloat16, False),
    (63, 32, 64, jnp.bfloat16, False),
    (64, 31, 64, jnp.bfloat16, False),
    (4096, 4095, 64, jnp.bfloat16, False),
  ],
)
def test_what_cudnn_refuses_goes_by_shape(
  T, S, width, dtype, taken, monkeypatch
):
  """As `check_is_flash_attention` of jax has it, with the mask as a bias."""
  backends = []

  def fused(q, *given, backend):
    backends.append(backend)
    return q

  monkeypatch.setattr(implementations, 'fused', fused)
  q, k = (jax.ShapeDtypeStruct((1, n, 8, width), dtype) for n in (T, S))
  see_all = jnp.ones((1, 1, 1), bool)

  def attend(q, k):
    return implementations.fused_on_gpu(q, k, k, see_all, How(1.0))

  program = str(jax.make_jaxpr(attend)(q, k))
  assert backends == ['cudnn'] * taken
  # Never the quadratic program where scores are large.
  assert ('custom_vjp' in program) == (not taken and T == 4096)


def test_auto_takes_blocks_where_scores_are_large():
  def runs_in_blocks(score, T):
    q = jax.ShapeDtypeStruct((1, T, 8, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((8, 64), jnp.float32)
    see_all = jnp.ones((1, 1, 1), bool)
    one = SCORES[score]

    def attend(q, w):
      how = How(1.0, one.scores, w if one.parameter else None)
      return implementations.by_shape(q, q, q, see_all, how)

    program = jax.make_jaxpr(attend)(q, w)
    return 'custom_vjp' in str(program)

  assert not runs_in_blocks('dot', 256)
  assert runs_in_blocks('dot', 4096)
  assert runs_in_blocks('additive', 256)
  assert not runs_in_blocks('additive', 16)


def test_what_is_compared_is_computed_in_one_way_at_each_shape():
  dot, additive, wide = (
    chosen(**changes).model
    for changes in ({}, dict(score='additive'), dict(d_k=128))
  )

  def shared(*models, platform='cpu'):
    return implementations.shared_pairs(models, platform=platform)

  # A product holds one number a pair, whatever its width.
  assert shared(dot, wide) == 0
  most = implementations.NAIVE_NUMBERS_WIDE // (8 * 64)
  assert shared(dot, additive) == shared(additive, dot) == most
  # On a GPU one of these would be cuDNN's.
  halves = [
    dataclasses.replace(one, compute_dtype='bfloat16')
    for one in (dot, additive)
  ]
  assert shared(*halves[:1] * 2, platform='gpu') == 0
  assert shared(*halves, platform='gpu') == most
  # Or of a width, or with a bias, that it does not take.
  half = halves[0]
  for change in (
    dict(d_k=256),
    dict(position='relative'),
    dict(d_k=20, d_v=20),
  ):
    both = half, dataclasses.replace(half, **change)
    assert shared(*both, platform='gpu') == implementations.NAIVE_NUMBERS // 8
    assert shared(*both) == shared(both[1], both[1], platform='gpu') == 0
    fused = [
      dataclasses.replace(one, attention_implementation='fused') for one in both
    ]
    assert shared(*fused) == shared(fused[1], fused[1], platform='gpu') == 0
    with pytest.raises(ConfigError, match='cuDNN for some'):
      shared(*fused, platform='gpu')
  named = dataclasses.replace(dot, attention_implementation='naive')
  assert shared(named, additive) == 0

  q = jax.ShapeDtypeStruct((1, 64, 8, 64), jnp.float32)
  see_all = jnp.ones((1, 1, 1), bool)

  def attend(q, pairs):
    return implementations.by_shape(q, q, q, see_all, How(1.0), pairs=pairs)

  for pairs, blocks in ((0, False), (64 * 64, False), (64 * 64 - 1, True)):
    program = jax.make_jaxpr(functools.partial(attend, pairs=pairs))(q)
    assert ('custom_vjp' in str(program)) == blocks


def test_which_program_runs_at_a_shape_can_be_said():
  def at(rows, length, platform='cpu', **changes):
    model = chosen(**changes).model
    served = implementations.serve(model, platform=platform)
    return implementations.at(served, model, rows, length, length)

  assert at(1, 256) == 'the formula'
  assert at(1, 4096) == at(1, 256, score='additive') == 'blocks'
  half = dict(platform='gpu', compute_dtype='bfloat16')
  assert at(1, 4096, **half) == 'cuDNN'
  assert at(1, 4095, **half) == 'blocks'
  assert at(1, 4096, **half, position='relative') == 'blocks'
  assert at(1, 4096, attention_implementation='naive') == ''


def test_what_cannot_be_is_refused():
  with pytest.raises(ConfigError, match='is for a GPU'):
    implementations.choose(
      chosen(attention_implementation='kernel', score='additive').model,
      platform='cpu',
    )
  for changes in (
    dict(attention_implementation='fused', score='additive'),
    dict(attention_implementation='fused', attention_dropout=0.1),
    dict(attention_implementation='kernel'),
    dict(
      attention_implementation='kernel', score='additive', position='relative'
    ),
  ):
    with pytest.raises(ConfigError, match='take blockwise'):
      validate(chosen(**changes))
  (q, k, v, w, *_), _ = arrays('additive', LONG)
  see_all = jnp.ones((1, 1, 1), bool)
  with pytest.raises(ValueError, match='dot score'):
    how = How(1.0, attention.additive_scores, w)
    implementations.fused(q, k, v, see_all, how)
  with pytest.raises(ValueError, match='additive score'):
    kernel.attention(q, k, v, see_all, How(1.0))
