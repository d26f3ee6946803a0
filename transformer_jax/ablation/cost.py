"""What a variant costs: parameters, FLOPs, memory and time.

FLOPs are counted in three ways:

- The formula counts matrix products by hand, so that a reader can follow it.
- `products.flops` counts the matrix products of the step as it was written; the
  body of a scan counts once for each turn. It agrees with the formula, except
  where attention runs in blocks: these compute each tile of scores again in the
  backward pass, which the formula leaves out.
- XLA counts all operations of a compiled step: besides products also each
  operation, but exponentials, on each number of softmax, norms, dropout, the
  loss and Adam. It counts the body of a loop once only. So it counts a step
  without loops: layers written out, attention by the formula.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import SIDES, Config, ModelConfig
from transformer_jax.data.cache import Batch
from transformer_jax.data.tokens import BOS, EOS, SPECIAL
from transformer_jax.inference.stepper import ModelStepper
from transformer_jax.nn import attention, implementations, randomness
from transformer_jax.nn.attention import SCORES
from transformer_jax.nn.positions import JOINS
from transformer_jax.nn.projections import OUTPUT_PROJECTIONS, PROJECTIONS
from transformer_jax.nn.transformer import Transformer, with_statistics
from transformer_jax.training import fit
from transformer_jax.training.products import flops
from transformer_jax.training.state import (
  State,
  initial_state,
  numbers,
  train_step,
)

# A product of [a, b] by [b, c] is 2abc operations, and so is each of its two
# gradients.
PRODUCT = 2 * 3
# The part of the model that a parameter belongs to: the first word that its
# path holds.
PARTS = {
  'norm': 'norms',
  'embedding': 'embeddings',
  'positions': 'positions',
  'attention': 'attention',
  'feed_forward': 'feed_forward',
}


class Shape(NamedTuple):
  """Sizes of a training batch and of the vocabularies."""

  rows: int
  source_length: int
  target_length: int
  source_vocabulary: int
  target_vocabulary: int

  @property
  def target_tokens(self) -> int:
    return self.rows * self.target_length


class Cost(NamedTuple):
  """What one variant costs on one shape of batch, on this machine.

  parameters: numbers by part: embeddings, positions, attention, feed_forward,
    norms.
  flops_per_token: of the matrix products of a training step, for each target
    token, by the formula.
  xla_flops_per_token: XLA's count of all operations, layers written out and
    attention by the formula.
  peak_memory: bytes at the step's worst moment, as compiled.
  compile_seconds: of the step, nothing read from a cache.
  step_seconds: median over the rounds.
  step_spread: fastest and slowest round.
  decode_tokens_per_second: target tokens, greedy, all rows at once.
  """

  parameters: dict[str, int]
  flops_per_token: float
  xla_flops_per_token: float
  peak_memory: int
  compile_seconds: float
  step_seconds: float
  step_spread: tuple[float, float]
  decode_tokens_per_second: float

  @property
  def total_parameters(self) -> int:
    return sum(self.parameters.values())


def of(
  config: Config, shape: Shape, *, rounds: int = 7, pairs: int = 0
) -> Cost:
  """Compiles and times one variant.

  Args:
    config: with several layers in a scan, its training step is compiled a
      second time, for XLA to count.
    shape: of the batch; every position holds a token.
    rounds: steps to time, after one that is not.
    pairs: `implementations.shared_pairs` of all that it is compared with.
  """
  model = new_model(config, shape, pairs=pairs)
  batch = full_batch(shape)
  key = randomness.seed_key(config.train.seed)
  state = jax.jit(initial_state(config, model))(key)
  arguments = abstract((state, batch, key, numbers(config)))
  step = train_step(config, model)
  begin = time.perf_counter()
  compiled = _compile(step, arguments)
  compile_seconds = time.perf_counter() - begin
  products = flops(step, *arguments)
  need = fit.estimate(
    compiled, params=state.params, optimizer=state.optimizer, flops=products
  )
  weights = with_statistics(state.params, state.statistics)
  parts = parameters(state.params)
  rate = decoding_rate(model, weights, batch, rounds)
  seconds = list(_times(compiled, state, batch, key, config, rounds))
  tokens = shape.target_tokens
  return Cost(
    parameters=parts,
    flops_per_token=training_flops(config.model, shape) / tokens,
    xla_flops_per_token=xla_flops(model, config, shape, compiled) / tokens,
    peak_memory=need.peak,
    compile_seconds=compile_seconds,
    step_seconds=statistics.median(seconds),
    step_spread=(min(seconds), max(seconds)),
    decode_tokens_per_second=rate,
  )


def new_model(config: Config, shape: Shape, *, pairs: int = 0) -> Transformer:
  """The model of one variant; pairs: as in `of`."""
  platform = jax.local_devices()[0].platform
  return Transformer(
    config.model,
    shape.source_vocabulary,
    shape.target_vocabulary,
    implementations.choose(config.model, platform=platform, pairs=pairs),
  )


def full_batch(shape: Shape) -> Batch:
  """Random tokens, no padding."""
  draw = np.random.default_rng(0)
  sides = (
    (shape.source_vocabulary, shape.source_length),
    (shape.target_vocabulary, shape.target_length),
  )
  rows = [
    draw.integers(len(SPECIAL), size, (shape.rows, length), dtype=np.int32)
    for size, length in sides
  ]
  for row in rows:
    row[:, -1] = EOS
  return Batch(*rows)


def abstract(tree: Any) -> Any:
  """Shapes and types, as a compiler needs them."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree
  )


def _compile(step: Callable[..., Any], arguments: Any) -> Any:
  """Compiled without a cache: a program read from one takes no time."""
  settings: Any = jax.config
  before = settings.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    return jax.jit(step, donate_argnums=0).lower(*arguments).compile()
  finally:
    jax.config.update('jax_enable_compilation_cache', before)


def _times(
  compiled: Any, state: State, batch: Batch, key: Any, config: Config, rounds
) -> Iterator[float]:
  traced = jax.tree.map(jnp.asarray, numbers(config))
  for number in range(rounds + 1):
    begin = time.perf_counter()
    state, _ = jax.block_until_ready(compiled(state, batch, key, traced))
    if number:
      yield time.perf_counter() - begin


def xla_flops(
  model: Transformer, config: Config, shape: Shape, compiled: Any
) -> float:
  """XLA's count of a training step without loops, attention by the formula.

  `compiled` is the step of `model`. Where it loops over neither layers, parts
  of the batch nor tiles of scores, it is counted itself; else a step without
  these loops is compiled only to be counted. The loop over chunks of the loss
  stays: of several chunks (`loss_chunk`) one is counted.
  """
  written_out = config.model.layers == 1 or config.model.layer_loop == 'unroll'
  whole_batch = config.optim.accumulate == 1
  if written_out and whole_batch and by_formula(model, shape):
    return float(compiled.cost_analysis()['flops'])
  unrolled = dataclasses.replace(config.model, layer_loop='unroll')
  whole = dataclasses.replace(config.optim, accumulate=1)
  config = dataclasses.replace(config, model=unrolled, optim=whole)
  sizes = shape.source_vocabulary, shape.target_vocabulary
  model = Transformer(config.model, *sizes, attention.attention)
  key = randomness.seed_key(0)
  state = jax.eval_shape(initial_state(config, model), key)
  arguments = abstract((state, full_batch(shape), key, numbers(config)))
  again = _compile(train_step(config, model), arguments)
  return float(again.cost_analysis()['flops'])


def by_formula(model: Transformer, shape: Shape) -> bool:
  """Whether attention is computed by the formula at all sites."""
  if model.attention_fn is attention.attention:
    return True
  served = implementations.Served(model.attention_fn, '')
  S, T = shape.source_length, shape.target_length
  return all(
    implementations.at(served, model.config, shape.rows, queries, keys)
    == implementations.FORMULA
    for queries, keys in ((S, S), (T, T), (T, S))
  )


def decoding_rate(
  model: Transformer, weights: Any, batch: Batch, rounds: int
) -> float:
  """Target tokens a second of greedy decoding with the cache, all rows at once.

  Each sentence is decoded to the batch's target length, even where it ends
  before: sentences of an untrained model end anywhere.
  """
  rows, length = batch.target_BT.shape
  stepper = ModelStepper(model)

  def decode(weights, source_BS):
    def one(index, carry):
      token_BK, cache = carry
      log_probs_BKV, cache = stepper.step(weights, cache, token_BK, index)
      return jnp.argmax(log_probs_BKV, axis=-1).astype(jnp.int32), cache

    cache = stepper.start(weights, source_BS, length=length, width=1)
    start = jnp.full((rows, 1), BOS, jnp.int32), cache
    return jax.lax.fori_loop(0, length, one, start)[0]

  run, source_BS = jax.jit(decode), jnp.asarray(batch.source_BS)
  seconds = []
  for _ in range(rounds + 1):
    begin = time.perf_counter()
    jax.block_until_ready(run(weights, source_BS))
    seconds.append(time.perf_counter() - begin)
  return rows * length / statistics.median(seconds[1:])


def parameters(params: dict) -> dict[str, int]:
  """How many numbers each part has."""
  found = dict.fromkeys(PARTS.values(), 0)
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    part = next(part for word, part in PARTS.items() if word in name)
    found[part] += math.prod(leaf.shape)
  return found


def training_flops(model: ModelConfig, shape: Shape) -> float:
  """FLOPs of the matrix products of a training step, by formula.

    6 x tokens x weights, of every weight that a token is multiplied by, and
    6 x (d_k + d_v) of each pair of query and key in each head.

  Not counted: recomputation (remat), and all that is no matrix product.

  Args:
    model: an encoder-decoder.
    shape: of the batch; padding is multiplied like anything else.
  """
  D, F, H, K, E = (
    model.d_model,
    model.d_ff,
    model.heads,
    model.d_k,
    model.d_v,
  )
  B, S, T = shape.rows, shape.source_length, shape.target_length
  query, key, value = (
    D * H * width if name else 0
    for name, width in zip(
      PROJECTIONS[model.projections], (K, K, E), strict=True
    )
  )
  mixing = 1.0
  score = SCORES[model.score]
  if not score.products:
    # Nothing reads queries and keys, and even weights have no gradient.
    query, key, mixing = 0, 0, 2 / 3
  query += score.query_products * H * K * K
  output = H * E * D * len(OUTPUT_PROJECTIONS[model.output_projection])
  of_pair = H * (score.products * K + mixing * E)

  def attended(queries: int, keys: int) -> float:
    own = queries * (query + output) + keys * (key + value)
    return own + queries * keys * of_pair

  feed_forward = (S + T) * 2 * D * F
  sites = attended(S, S) + attended(T, T) + attended(T, S)
  layers = PRODUCT * B * model.layers * (sites + feed_forward)
  logits = PRODUCT * B * T * D * shape.target_vocabulary
  maps = JOINS[model.position_join].maps
  tokens = B * ('w_token_DD' in maps) * PRODUCT
  # The table is the same for all rows; one without an end is fixed, and needs
  # no gradient.
  places = 2 * sum(
    length * (2 if model.longest(side) is None else 3)
    for side, length in zip(SIDES, (S, T), strict=True)
  )
  joins = (tokens * (S + T) + ('w_position_DD' in maps) * places) * D * D
  return float(layers + logits + joins)
