"""The matrix products of a training step, counted by formula and timed alone.

A product of [a, b] by [b, c] is 2abc floating-point operations. A linear layer
has three of them: forward, the gradient of its input and that of its matrix.
"""

import math
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.bench.measure import Contestant
from transformer_jax.config import ModelConfig
from transformer_jax.nn.module import DTYPES

# Squares for the peak of the machine: what a product reaches at its best.
SQUARES = (512, 1024, 2048)
# Long enough to be timed: FLOP of one turn.
TURN_FLOP = 4e9


class Product(NamedTuple):
  """One einsum at its shapes; `part` is attention, layers or loss."""

  part: str
  einsum: str
  left: tuple[int, ...]
  right: tuple[int, ...]

  @property
  def name(self) -> str:
    shapes = 'x'.join(map(str, self.left)), 'x'.join(map(str, self.right))
    return f'{self.einsum} {shapes[0]} by {shapes[1]}'

  @property
  def flop(self) -> int:
    letters = self.einsum.split('->')[0].replace(',', '')
    sizes = dict(zip(letters, self.left + self.right, strict=True))
    return 2 * math.prod(sizes.values())


class Shape(NamedTuple):
  """Of one training batch."""

  rows: int
  source_length: int
  target_length: int
  vocabulary: int
  chunk: int  # tokens whose logits are made at once


def _linear(part: str, tokens: int, inner: int, outer: int) -> list[Product]:
  """x w, and its two gradients: M tokens, I in, O out."""
  M, I, O = (tokens,), (inner,), (outer,)  # noqa: E741
  return [
    Product(part, 'MI,IO->MO', M + I, I + O),
    Product(part, 'MO,IO->MI', M + O, I + O),
    Product(part, 'MI,MO->IO', M + I, M + O),
  ]


def _loss(tokens: int, width: int, vocabulary: int) -> list[Product]:
  M, D, V = (tokens,), (width,), (vocabulary,)
  return [
    Product('loss', 'MD,VD->MV', M + D, V + D),
    Product('loss', 'MV,VD->MD', M + V, V + D),
    Product('loss', 'MV,MD->VD', M + V, M + D),
  ]


def _attention(
  model: ModelConfig, rows: int, queries: int, keys: int
) -> list[Product]:
  """Scores and mix of all heads, and their two gradients each."""
  H = model.heads
  q, k = (rows, queries, H, model.d_k), (rows, keys, H, model.d_k)
  mixed, v = (rows, queries, H, model.d_v), (rows, keys, H, model.d_v)
  scores = (rows, H, queries, keys)
  shapes = {
    'BTHK,BSHK->BHTS': (q, k),
    'BHTS,BSHK->BTHK': (scores, k),
    'BHTS,BTHK->BSHK': (scores, q),
    'BHTS,BSHE->BTHE': (scores, v),
    'BTHE,BSHE->BHTS': (mixed, v),
    'BHTS,BTHE->BSHE': (scores, mixed),
  }
  return [Product('attention', e, *pair) for e, pair in shapes.items()]


def products_of(model: ModelConfig, shape: Shape) -> Counter[Product]:
  """How often each matrix product occurs in one training step.

  Args:
    model: an encoder-decoder.
    shape: of the batch.

  Without rematerialisation; sums over heads, norms, softmax and the like are
  no matrix products and are not counted.
  """
  D, F, H = model.d_model, model.d_ff, model.heads
  source = shape.rows * shape.source_length
  target = shape.rows * shape.target_length
  wide_k, wide_v = H * model.d_k, H * model.d_v

  def multi_head(queries: int, keys: int) -> Iterable[Product]:
    yield from _linear('layers', queries, D, wide_k)
    yield from _linear('layers', keys, D, wide_k)
    yield from _linear('layers', keys, D, wide_v)
    yield from _linear('layers', queries, wide_v, D)
    yield from _attention(
      model, shape.rows, queries // shape.rows, keys // shape.rows
    )

  def feed_forward(tokens: int) -> Iterable[Product]:
    yield from _linear('layers', tokens, D, F)
    yield from _linear('layers', tokens, F, D)

  layer: Counter[Product] = Counter()
  layer.update(multi_head(source, source))
  layer.update(feed_forward(source))
  layer.update(multi_head(target, target))
  layer.update(multi_head(target, source))
  layer.update(feed_forward(target))
  found = Counter({p: n * model.layers for p, n in layer.items()})
  chunks = -(-target // shape.chunk)
  for product in _loss(shape.chunk, D, shape.vocabulary):
    found[product] += chunks
  return found


def flop(products: Counter[Product], part: str | None = None) -> float:
  """Operations of a step, of one part or of all."""
  return float(
    sum(p.flop * n for p, n in products.items() if part in (None, p.part))
  )


def squares() -> list[Product]:
  return [Product('peak', 'MI,IO->MO', (n, n), (n, n)) for n in SQUARES]


def noise(shape: tuple[int, ...], dtype: str) -> Array:
  """Normal numbers, always the same ones, in a compute dtype."""
  values = np.random.default_rng(0).standard_normal(shape, np.float32)
  return jnp.asarray(values, DTYPES[dtype])


def turns_of(product: Product) -> int:
  """How often the product is made in one turn."""
  return max(1, round(TURN_FLOP / product.flop))


def contestant(product: Product, dtype: str) -> Contestant:
  """The product alone, `turns_of` times a turn.

  The result goes where the last one was, as inside a step: fresh memory for
  each would cost more than a small product.
  """
  left, right = (noise(shape, dtype) for shape in (product.left, product.right))

  def once(left: Array, right: Array, out: Array) -> Array:
    del out
    return jnp.einsum(product.einsum, left, right)

  run: Any = jax.jit(once, donate_argnums=2, keep_unused=True)
  shape = jax.eval_shape(partial(jnp.einsum, product.einsum), left, right)
  out = jnp.zeros(shape.shape, shape.dtype)

  def work() -> None:
    nonlocal out
    for _ in range(turns_of(product)):
      out = run(left, right, out)
    jax.block_until_ready(out)

  return Contestant(product.name, work)
