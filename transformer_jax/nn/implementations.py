"""Which program computes attention: one rule from config and platform.

All of them compute `attention.attention`, with its signature; they differ in
memory and time. The platform is that of the device the program is for, an
argument: a program may be compiled for another machine than this one.

naive      the formula; holds B*H*T*S numbers, K times that for additive
blockwise  tiles of it: memory linear in the length, any score, any platform
fused      `jax.nn.dot_product_attention`: dot only, no dropout of weights; on
           GPU it is cuDNN's where that takes the shapes
kernel     Pallas, GPU: additive only, no bias

`auto` looks at the shapes, which a program knows when it is traced.
`refusals.py` refuses what an implementation cannot compute; this file refuses a
platform on which it cannot run.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.config import SIDES, ConfigError, ModelConfig
from transformer_jax.fields import OWN_CHOICES
from transformer_jax.nn import attention, blockwise, kernel
from transformer_jax.nn.attention import (
  How,
  allowed_BTS,
  dot_scores,
  spread_HTS,
)
from transformer_jax.nn.score_memory import held_by

Attend = Callable[..., Array]

# Numbers up to which `auto` takes the formula: beyond, blocks were faster on
# two cores (`python -m experiments.bench --suite=attention`), and what the
# formula keeps for the backward pass of each layer is several times that. A
# score that holds many numbers a pair loses earlier.
NAIVE_NUMBERS = 1 << 24
NAIVE_NUMBERS_WIDE = 1 << 20
FORMULA = 'the formula'  # what `at` calls it


class Served(NamedTuple):
  """What computes attention, and why it does."""

  attend: Attend
  why: str


def by_shape(
  q_BTHK: Array,
  k_BSHK: Array,
  v_BSHE: Array,
  mask_BTS: Array,
  how: How,
  *,
  devices: int = 1,
  pairs: int = 0,
) -> Array:
  """`attention.attention`: the formula where it is small, else in blocks.

  The arguments are those of `attention.attention`, and

  Args:
    devices: that share out rows and heads, each with its part of the scores.
    pairs: of query and key, B*T*S, up to which it is small; 0: by the numbers
      that this score holds.
  """
  small = is_small(q_BTHK, k_BSHK, how, devices=devices, pairs=pairs)
  attend = attention.attention if small else blockwise.attention
  return attend(q_BTHK, k_BSHK, v_BSHE, mask_BTS, how)


def is_small(
  q_BTHK: Array, k_BSHK: Array, how: How, *, devices: int = 1, pairs: int = 0
) -> bool:
  """Whether `by_shape` takes the formula; arguments as there, or shapes."""
  B, T, H, _ = q_BTHK.shape
  most = pairs or most_pairs(held_by(how, q_BTHK, k_BSHK), H)
  return B * T * k_BSHK.shape[1] <= most * devices


def most_pairs(held: int, heads: int) -> int:
  """B*T*S up to which the formula is taken, of a score that holds so much."""
  most = NAIVE_NUMBERS if held == 1 else NAIVE_NUMBERS_WIDE
  return most // (heads * held)


def cudnn_takes(q_BTHK: Array, v_BSHE: Array, bias_HA: Array | None) -> bool:
  """cuDNN's attention takes half precision and widths of 8, 16, ... 128.

  And lengths that are even: what we mask is a bias there, and to train with
  one it takes no others.
  """
  width = max(q_BTHK.shape[-1], v_BSHE.shape[-1])
  half = q_BTHK.dtype in (jnp.bfloat16, jnp.float16)
  even = q_BTHK.shape[1] % 2 == 0 and v_BSHE.shape[1] % 2 == 0
  wide = width % 8 == 0 and width <= 128
  return half and even and wide and bias_HA is None


def fused(
  q_BTHK: Array,
  k_BSHK: Array,
  v_BSHE: Array,
  mask_BTS: Array,
  how: How,
  *,
  backend: str = 'xla',
) -> Array:
  """`attention.attention` of the dot score, by `jax.nn`.

  The arguments are those of `attention.attention`, and

  Args:
    backend: xla or cudnn.

  Raises:
    ValueError: another score, or dropout of weights, which it does not have.
  """
  if how.scores is not dot_scores or how.drop is not None:
    raise ValueError('fused attention takes the dot score without dropout')
  q_BTHK = q_BTHK * jnp.asarray(how.scale, q_BTHK.dtype).reshape(1, 1, -1, 1)
  T, S = q_BTHK.shape[1], k_BSHK.shape[1]
  K, E = q_BTHK.shape[-1], v_BSHE.shape[-1]
  # One width for all three: zeros change no product.
  q, k, v = (
    jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, max(K, E) - x.shape[-1])))
    for x in (q_BTHK, k_BSHK, v_BSHE)
  )
  mask_BTS = allowed_BTS(mask_BTS, how, T, S)
  mask_BTS = jnp.broadcast_to(mask_BTS, (mask_BTS.shape[0], T, S))
  # A row that may see nothing is undefined there. It is let see everything, and
  # its result is replaced by that of even weights.
  sees_BT = jnp.any(mask_BTS, axis=-1)
  mixed_BTHE = jax.nn.dot_product_attention(
    q,
    k,
    v,
    None if how.bias_HA is None else spread_HTS(how.bias_HA, T)[None],
    (mask_BTS | ~sees_BT[..., None])[:, None],
    scale=1.0,
    implementation='cudnn' if backend == 'cudnn' else 'xla',
  )[..., :E]
  even_BTHE = jnp.mean(v_BSHE, axis=1, keepdims=True)
  return jnp.where(sees_BT[..., None, None], mixed_BTHE, even_BTHE)


def fused_on_gpu(
  q_BTHK: Array,
  k_BSHK: Array,
  v_BSHE: Array,
  mask_BTS: Array,
  how: How,
  *,
  devices: int = 1,
) -> Array:
  """`fused` by cuDNN where it takes the shapes, else `by_shape`."""
  given = q_BTHK, k_BSHK, v_BSHE, mask_BTS, how
  if cudnn_takes(q_BTHK, v_BSHE, how.bias_HA):
    return fused(*given, backend='cudnn')
  return by_shape(*given, devices=devices)


def fused_as_asked(
  q_BTHK: Array, k_BSHK: Array, v_BSHE: Array, mask_BTS: Array, how: How
) -> Array:
  """`fused` by cuDNN where it takes the shapes, else by XLA."""
  takes = cudnn_takes(q_BTHK, v_BSHE, how.bias_HA)
  backend = 'cudnn' if takes else 'xla'
  return fused(q_BTHK, k_BSHK, v_BSHE, mask_BTS, how, backend=backend)


# Those of `auto`, which look at the part of the scores that a device has.
BY_SHAPE = (by_shape, fused_on_gpu)
FUNCTIONS: dict[str, Attend] = {
  'naive': attention.attention,
  'blockwise': blockwise.attention,
  'fused': fused,
  'kernel': kernel.attention,
}
BLOCKED = (
  f'the formula up to {NAIVE_NUMBERS * 4 >> 20} MiB of scores '
  f'({NAIVE_NUMBERS_WIDE * 4 >> 20} where a score holds more than one number '
  'a pair), blocks beyond'
)


def automatic(config: ModelConfig, platform: str) -> Served:
  """The one that serves the config best on this platform."""
  if platform == 'gpu' and config.score == 'dot':
    if config.attention_dropout:
      return Served(by_shape, f'{BLOCKED}: fused attention has no dropout')
    if config.compute_dtype == 'bfloat16':
      return Served(
        fused_on_gpu, f'cuDNN where it takes the shapes, else {BLOCKED}'
      )
    return Served(by_shape, f'{BLOCKED}: cuDNN takes no float32')
  return Served(by_shape, BLOCKED)


def named_fused(config: ModelConfig, platform: str) -> Served:
  """Fused because it was asked for."""
  if platform == 'gpu':
    return Served(fused_as_asked, 'fused, as asked: cuDNN where it takes it')
  return Served(fused, 'fused, as asked: by XLA')


def named_kernel(config: ModelConfig, platform: str) -> Served:
  """The kernel because it was asked for.

  Raises:
    ConfigError: there is no GPU there.
  """
  if platform != 'gpu':
    raise ConfigError(
      'model.attention_implementation=kernel is for a GPU, and this program '
      f'is for a {platform}: take blockwise'
    )
  return Served(kernel.attention, 'kernel, as asked')


# attention_implementation: (config, platform) -> what serves, or ConfigError.
IMPLEMENTATIONS: dict[str, Callable[[ModelConfig, str], Served]] = {
  'auto': automatic,
  'naive': lambda config, platform: Served(
    attention.attention, 'the formula, as asked'
  ),
  'blockwise': lambda config, platform: Served(
    blockwise.attention, 'blocks, as asked'
  ),
  'fused': named_fused,
  'kernel': named_kernel,
}


def score_shape(
  name: str, score: attention.Score, *, heads: int, d_k: int
) -> tuple[int, ...]:
  """`attention.parameter_shape` of a score that may come from outside.

  Raises:
    ConfigError: its letters are not known.
  """
  try:
    return attention.parameter_shape(score, heads=heads, d_k=d_k)
  except ValueError as error:
    raise ConfigError(f'model.score={name}: {error}') from None


@functools.cache
def admit_score(
  name: str, score: attention.Score, *, heads: int, d_k: int
) -> None:
  """Refuse a score from outside that looks at more than a pair.

  By example: of the first query and key alone it is what it is among others.

  Raises:
    ConfigError: it is another number, or its parameter has other letters.
  """
  if name in OWN_CHOICES['model.score']:
    return
  draw = np.random.default_rng(0)
  q_BTHK, k_BSHK = (
    draw.normal(size=(2, length, heads, d_k)).astype(np.float32)
    for length in (3, 4)
  )
  w = None
  if score.parameter:
    shape = score_shape(name, score, heads=heads, d_k=d_k)
    w = draw.normal(size=shape).astype(np.float32)
  scores = jax.jit(functools.partial(score.scores, scale=1.0))
  among_BHTS = scores(q_BTHK, k_BSHK, w)[:, :, :1, :1]
  alone_BHTS = scores(q_BTHK[:, :1], k_BSHK[:, :1], w)
  # Wide enough for the products of a GPU.
  if not np.allclose(among_BHTS, alone_BHTS, 1e-2, 1e-2, equal_nan=True):
    raise ConfigError(
      f'model.score={name} gives a query and a key another score among others '
      'than alone, and attention in blocks shows it some at a time: let each '
      'score be of one query and one key'
    )


def serve(config: ModelConfig, *, platform: str) -> Served:
  """The attention function of a model, and one line that says why.

  Args:
    config: of the model.
    platform: cpu, gpu or tpu, where the program will run.

  Raises:
    ConfigError: the implementation that was named does not run there, or a
      score from outside cannot be computed by any.
  """
  score = attention.SCORES[config.score]
  admit_score(config.score, score, heads=config.heads, d_k=config.d_k)
  return IMPLEMENTATIONS[config.attention_implementation](config, platform)


def choose(config: ModelConfig, *, platform: str, pairs: int = 0) -> Attend:
  """The attention function of a model; see `serve`.

  Args:
    config: of the model.
    platform: as in `serve`.
    pairs: `shared_pairs` of all models that it is compared with.
  """
  found = serve(config, platform=platform)
  return _up_to(pairs) if pairs else found.attend


@functools.cache
def _up_to(pairs: int) -> Attend:
  """One function for equal pairs: models that have it are equal."""
  return functools.partial(by_shape, pairs=pairs)


def _shapes(config: ModelConfig, rows: int, T: int, S: int) -> tuple[Any, ...]:
  """Queries and keys of a model, and how it attends, as shapes."""
  H, K, dtype = config.heads, config.d_k, jnp.dtype(config.compute_dtype)
  score = attention.SCORES[config.score]
  w: Any = None
  if score.parameter:
    own = attention.parameter_shape(score, heads=H, d_k=K)
    w = jax.ShapeDtypeStruct(own, dtype)
  q, k = (jax.ShapeDtypeStruct((rows, n, H, K), dtype) for n in (T, S))
  how = How(1.0, score.scores, w)
  return q, k, how


def at(served: Served, config: ModelConfig, rows: int, T: int, S: int) -> str:
  """What runs at one shape where that is `auto`; '' where it was named."""
  attend, given = served.attend, {}
  if isinstance(attend, functools.partial):
    attend, given = attend.func, attend.keywords
  if attend not in BY_SHAPE:
    return ''
  if attend is fused_on_gpu and all(_cudnn_sites(config, rows, T, S)):
    return 'cuDNN'
  q, k, how = _shapes(config, rows, T, S)
  return FORMULA if is_small(q, k, how, **given) else 'blocks'


def _cudnn_sites(
  config: ModelConfig, rows: int, T: int, S: int
) -> tuple[bool, ...]:
  """Whether cuDNN takes attention in the encoder, the decoder, between them."""
  q, k, _ = _shapes(config, rows, T, S)
  v: Any = jax.ShapeDtypeStruct((*k.shape[:3], config.d_v), k.dtype)
  sides = [config.at('position', side) for side in SIDES]
  biases = [q if side == 'relative' else None for side in sides]
  return tuple(cudnn_takes(q, v, bias) for bias in (*biases, None))


def shared_pairs(configs: Sequence[ModelConfig], *, platform: str) -> int:
  """Pairs of query and key up to which all these models take the formula.

  Models that are compared are computed in one way at each shape. Otherwise a
  difference of time or of the last bits could come from two programs.

  Returns:
    `pairs` of `by_shape`: what the score that holds most allows; 0 where they
    are served alike as it is, or where one of them names its program.

  Raises:
    ConfigError: all name `fused`, which is cuDNN's for some and XLA's for
      others.
  """
  named = {one.attention_implementation for one in configs}
  by_cudnn = set()
  for one in configs:
    asks = serve(one, platform=platform).attend in (
      fused_on_gpu,
      fused_as_asked,
    )
    # At even lengths; at others it takes none of them.
    by_cudnn.add(tuple(asks and s for s in _cudnn_sites(one, 1, 2, 2)))
  if named == {'fused'} and len(by_cudnn) > 1:
    raise ConfigError(
      'model.attention_implementation=fused is cuDNN for some of these models '
      'and XLA for others, by the widths and biases that cuDNN takes: take '
      'auto, which computes all of them in one way'
    )
  if named != {'auto'}:
    return 0
  limits = {
    most_pairs(held_by(how, q, k), one.heads)
    for one in configs
    for q, k, how in [_shapes(one, 1, 1, 1)]
  }
  return min(limits) if len(by_cudnn) > 1 or len(limits) > 1 else 0
