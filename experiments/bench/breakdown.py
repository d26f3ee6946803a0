"""Where the time of our training step goes, and how near the peak it comes.

Programs are timed by turns in the same rounds: the whole step; the step
without dropout; the layers alone (forward, backward, embeddings, no loss, no
Adam); attention alone (scores, softmax, mix, at the step's shapes); the loss
alone (logits, softmax, both gradients); and every matrix product of the step
alone, at its shapes, times how often it occurs. Then

  dropout               = whole step - step without dropout
  products of X         = sum of the products timed alone
  rest of the loss      = loss alone - its products
  rest of attention     = attention alone - its products
  rest of the layers    = layers alone - attention alone - their products
  Adam and all the rest = step without dropout - layers alone - loss alone

which adds up to the whole step. A compiler may do better in a whole than in
its parts, or worse: a part may come out a little below nothing.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import products, train
from experiments.bench.measure import Contestant, Row, Turns, row, take_turns
from experiments.bench.products import Product
from experiments.bench.train import Sizes
from transformer_jax.config import Config, ConfigError
from transformer_jax.nn import attention
from transformer_jax.training.loss import projected_cross_entropy
from transformer_jax.training.state import loss_chunk

WHOLE, CALM = 'whole step', 'step without dropout'
LAYERS, ATTENTION, LOSS = 'layers alone', 'attention alone', 'loss alone'
# Nothing here has threads of its own beside XLA's.
SETTLE_SECONDS = 0.02
PARTS = (
  ('layers', 'matrix products of the layers'),
  ('attention', 'matrix products of attention'),
  ('loss', 'matrix products of the loss'),
)


def forward_backward(function: Callable[..., jax.Array], steps: int) -> Any:
  """(inputs, cotangent, rate) -> the same, after `steps` of `function`.

  Forward and backward of function(*inputs) again and again in one program.
  What each makes goes into what the next reads, times `rate`, which is traced
  and given as 0: so nothing can be left out, or done once for all.
  """

  def mixed(x: jax.Array, y: jax.Array, rate: jax.Array) -> jax.Array:
    return x - rate.astype(x.dtype) * y.astype(x.dtype)

  def run(inputs: tuple, cotangent: jax.Array, rate: jax.Array) -> Any:
    def body(_, carry):
      inputs, cotangent = carry
      out, back = jax.vjp(function, *inputs)
      gradients = back(cotangent)
      inputs = jax.tree.map(lambda x, g: mixed(x, g, rate), inputs, gradients)
      return inputs, mixed(cotangent, out, rate)

    return jax.lax.fori_loop(0, steps, body, (inputs, cotangent))

  return jax.jit(run, donate_argnums=(0, 1))


def without_dropout(config: Config) -> Config:
  model = dataclasses.replace(
    config.model, dropout=0.0, attention_dropout=0.0, feed_forward_dropout=0.0
  )
  return dataclasses.replace(config, model=model)


def looped(
  name: str, function: Callable[..., jax.Array], inputs: tuple, steps: int
) -> Contestant:
  """`function` forward and backward, `steps` times a turn."""
  run = forward_backward(function, steps)
  out = jax.eval_shape(function, *inputs)
  carry = (inputs, jnp.ones(out.shape, out.dtype))

  def work() -> None:
    nonlocal carry
    carry = jax.block_until_ready(run(*carry, jnp.float32(0)))

  return Contestant(name, work)


def layers_alone(config: Config, sizes: Sizes) -> Contestant:
  """Token ids to the decoder's output and back to the parameters."""
  model = train.new_model(config)
  params = train.new_state(config).params
  batches = train.random_batches(config, sizes)
  source_BS, target_BT = (jnp.asarray(side[0]) for side in batches)

  def hidden(params: dict) -> jax.Array:
    variables = {'params': params}
    found: Any = model.apply(
      variables, source_BS, target_BT, None, method='hidden'
    )
    return found

  return looped(LAYERS, hidden, (params,), sizes.steps)


def attention_alone(config: Config, sizes: Sizes) -> Contestant:
  """The three attentions of one encoder and one decoder layer.

  A turn makes them `steps` times, not `layers` times that.
  """
  c = config.model
  heads = (sizes.rows, sizes.length, c.heads)
  k = products.noise((*heads, c.d_k), c.compute_dtype)
  v = products.noise((*heads, c.d_v), c.compute_dtype)
  all_BTS = jnp.ones((sizes.rows, 1, sizes.length), bool)
  scale = c.d_k**-0.5
  ways = [
    attention.How(scale, sees=s) for s in (None, attention.not_later, None)
  ]

  def three(*inputs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    mixed = [
      attention.attention(q, k, v, all_BTS, how)
      for (q, k, v), how in zip(inputs, ways, strict=True)
    ]
    return jnp.stack(mixed)

  # Copies: the buffers are given away, each once.
  inputs = tuple((jnp.copy(k), jnp.copy(k), jnp.copy(v)) for _ in ways)
  return looped(ATTENTION, three, inputs, sizes.steps)


def loss_alone(config: Config, sizes: Sizes) -> Contestant:
  """The decoder's output and the embedding to the loss, and back."""
  targets = jnp.asarray(train.random_batches(config, sizes).target_BT[0])
  target_M = targets.reshape(-1)
  V = config.data.vocabulary_size
  D, dtype = config.model.d_model, config.model.compute_dtype
  shapes = (target_M.size, D), (V, D)
  inputs = tuple(products.noise(shape, dtype) for shape in shapes)

  def loss(h_MD: jax.Array, w_VD: jax.Array) -> jax.Array:
    smoothing = config.optim.label_smoothing
    chunk = loss_chunk(target_M.size, V)
    sums: Any = projected_cross_entropy(h_MD, w_VD, target_M, smoothing, chunk)
    return sums.smoothed

  return looped(LOSS, loss, inputs, sizes.steps)


def counted_products(config: Config, sizes: Sizes) -> Counter[Product]:
  """How often each product occurs in a step.

  Raises:
    ConfigError: the step makes others than these.
  """
  V = config.data.vocabulary_size
  shape = products.Shape(
    rows=sizes.rows,
    source_length=sizes.length,
    target_length=sizes.length,
    vocabulary=V,
    chunk=loss_chunk(sizes.rows * sizes.length, V),
  )
  counted = products.products_of(config.model, shape)
  known, whole = products.flop(counted), train.work(config, sizes)
  # As many by chance: additive scores have another product for each of dot's.
  other = config.model.score not in ('dot', 'cosine')
  if other or not math.isclose(known, whole, rel_tol=0.01):
    raise ConfigError(
      "--suite=breakdown knows the products of the paper's attention alone, "
      f'and this model makes others ({whole:.3g} and {known:.3g} FLOP a step); '
      '--suite=train takes any model'
    )
  return counted


def suite(config: Config, sizes: Sizes, rounds: int) -> list[Row]:
  """Rows of the breakdown, of the products, and of the peak.

  Raises:
    ConfigError: see `counted_products`.
  """
  counted = counted_products(config, sizes)
  single = [*products.squares(), *counted]
  calm = without_dropout(config)
  dtype = config.model.compute_dtype
  turns = take_turns(
    [
      train.ours(config, sizes, WHOLE),
      train.ours(calm, sizes, CALM),
      layers_alone(calm, sizes),
      attention_alone(calm, sizes),
      loss_alone(calm, sizes),
      *(products.contestant(product, dtype) for product in single),
    ],
    rounds=rounds,
    settle=SETTLE_SECONDS,
  )
  speeds = product_rows(single, counted, turns)
  peak = max(speeds, key=lambda found: found.value)
  programs = (WHOLE, CALM, LAYERS, ATTENTION, LOSS)
  seconds = {name: turns[name].median / sizes.steps for name in programs}
  seconds[ATTENTION] *= config.model.layers
  for part, name in PARTS:
    seconds[name] = sum(
      turns[p.name].median / products.turns_of(p) * n
      for p, n in counted.items()
      if p.part == part
    )
  whole = row(
    'breakdown',
    WHOLE,
    [1e3 * s / sizes.steps for s in turns[WHOLE].seconds],
    'ms',
    note='100 %',
  )
  return [
    whole,
    *part_rows(seconds),
    *speeds,
    *peak_rows(counted, seconds, peak),
  ]


def part_rows(seconds: Mapping[str, float]) -> list[Row]:
  """The parts of the step, which add up to the whole."""
  layers, mixing, loss = (seconds[name] for _, name in PARTS)
  parts = {name: seconds[name] for _, name in PARTS}
  parts |= {
    'rest of the layers: norms, sums, ReLU, embedding': (
      seconds[LAYERS] - seconds[ATTENTION] - layers
    ),
    'rest of attention: softmax, mask': seconds[ATTENTION] - mixing,
    'rest of the loss: softmax, targets': seconds[LOSS] - loss,
    'dropout: bits and masks': seconds[WHOLE] - seconds[CALM],
    'Adam and all the rest': seconds[CALM] - seconds[LAYERS] - seconds[LOSS],
  }
  return [
    Row(
      'breakdown',
      name,
      1e3 * value,
      'ms',
      1e3 * value,
      1e3 * value,
      0,
      note=f'{value / seconds[WHOLE]:.1%}',
    )
    for name, value in parts.items()
  ]


def product_rows(
  single: list[Product],
  counted: Counter[Product],
  turns: Mapping[str, Turns],
) -> list[Row]:
  """GFLOP/s of every product alone."""
  rows = []
  for p in single:
    work = p.flop * products.turns_of(p) / 1e9
    rates = [work / seconds for seconds in turns[p.name].seconds]
    note = f'{counted[p]} a step' if counted[p] else 'not in the step'
    rows.append(row('breakdown', p.name, rates, 'GFLOP/s', note=note))
  return rows


def peak_rows(
  counted: Counter[Product], seconds: Mapping[str, float], peak: Row
) -> list[Row]:
  """What the step reaches, and what its own products would allow."""
  giga = products.flop(counted) / 1e9
  bound = sum(seconds[name] for _, name in PARTS)
  facts = (
    ('work', giga, 'GFLOP', 'a step'),
    ('peak', peak.value, 'GFLOP/s', f'of {peak.name}'),
    (
      'reached by the step',
      giga / seconds[WHOLE],
      'GFLOP/s',
      f'{giga / seconds[WHOLE] / peak.value:.1%} of the peak',
    ),
    (
      'were it nothing but its products',
      giga / bound,
      'GFLOP/s',
      f'{giga / bound / peak.value:.1%} of the peak',
    ),
  )
  return [
    Row('breakdown', name, value, unit, value, value, 0, note=note)
    for name, value, unit, note in facts
  ]
