"""The training state and the pure step: (state, batch) -> (state, metrics)."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from transformer_jax.config import Config
from transformer_jax.nn import randomness
from transformer_jax.nn.layers import Dropout
from transformer_jax.nn.transformer import Transformer, initial_params
from transformer_jax.training import optim
from transformer_jax.training.loss import LossSums, projected_cross_entropy

# Largest share of the logits that exists at once, in numbers: 32 MiB of
# float32. On a CPU parts of 5 to 80 MiB took the same time within its noise.
LOGITS_AT_ONCE = 1 << 23


class State(NamedTuple):
  """All that training changes: what a checkpoint holds."""

  step: Array  # int32, updates made
  params: dict  # float32
  optimizer: optax.OptState


class Numbers(NamedTuple):
  """Numbers of the config that the step takes traced: one program for all."""

  learning_rate: Array | float
  warmup_steps: Array | float
  label_smoothing: Array | float
  dropout: Array | float
  attention_dropout: Array | float
  feed_forward_dropout: Array | float


class Metrics(NamedTuple):
  """Of one step: sums over its target tokens, and scalars."""

  losses: LossSums
  gradient_norm: Array
  learning_rate: Array


def numbers(config: Config) -> Numbers:
  """The traced numbers of a config."""
  return Numbers(
    learning_rate=config.optim.learning_rate,
    warmup_steps=float(config.optim.warmup_steps),
    label_smoothing=config.optim.label_smoothing,
    dropout=config.model.dropout,
    attention_dropout=config.model.attention_dropout,
    feed_forward_dropout=config.model.feed_forward_dropout,
  )


def initial_state(
  config: Config, model: Transformer
) -> Callable[[Array], State]:
  """key -> the state before the first update; jit it."""
  params = initial_params(
    config.model,
    source_vocabulary=model.source_vocabulary,
    target_vocabulary=model.target_vocabulary,
  )
  adam = optim.adam(config.optim)

  def start(key: Array) -> State:
    values = params(randomness.at(key, 'params'))
    return State(jnp.zeros((), jnp.int32), values, adam.init(values))

  return start


def loss_chunk(tokens: int, vocabulary: int) -> int:
  """Tokens whose logits are made at once: even parts, a multiple of 8."""
  parts = max(1, round(tokens * vocabulary / LOGITS_AT_ONCE))
  return -(-tokens // (8 * parts)) * 8


def loss_function(
  config: Config, model: Transformer
) -> Callable[[dict, NamedTuple, Array | None, Numbers], LossSums]:
  """(params, batch, dropout key or None, numbers) -> LossSums of the batch."""
  rates = ('dropout', 'attention_dropout', 'feed_forward_dropout')
  drops = any(getattr(config.model, rate) for rate in rates)

  def losses(params, batch, key, numbers):
    dropout = None
    if drops and key is not None:
      dropout = Dropout(
        key,
        residual=numbers.dropout,
        attention=numbers.attention_dropout,
        feed_forward=numbers.feed_forward_dropout,
      )
    variables = {'params': params}
    source_BS, target_BT = batch
    h_BTD = cast(
      Array,
      model.apply(variables, source_BS, target_BT, dropout, method='hidden'),
    )
    w_VD = cast(Array, model.apply(variables, method='unembed_VD'))
    sums = projected_cross_entropy(
      h_BTD.reshape(-1, h_BTD.shape[-1]),
      w_VD,
      target_BT.reshape(-1),
      numbers.label_smoothing,
      loss_chunk(target_BT.size, w_VD.shape[0]),
    )
    return cast(LossSums, sums)

  return losses


def train_step(
  config: Config, model: Transformer
) -> Callable[[State, NamedTuple, Array, Numbers], tuple[State, Metrics]]:
  """(state, batch, run's key, numbers) -> (state, metrics), pure.

  A step whose loss or gradient is not finite counts and changes nothing else:
  parameters and optimizer stay, the next step has the next batch.
  """
  losses = loss_function(config, model)
  adam = optim.adam(config.optim)
  schedule = optim.SCHEDULES[config.optim.schedule]

  def summed(params, batch, key, numbers):
    sums = losses(params, batch, key, numbers)
    return sums.smoothed, sums

  def gradients(params, batch, key, numbers):
    """Sums over the batch, in `accumulate` parts."""
    parts = config.optim.accumulate
    if parts == 1:
      return jax.grad(summed, has_aux=True)(params, batch, key, numbers)
    cut = jax.tree.map(
      lambda x_BT: x_BT.reshape(parts, -1, x_BT.shape[1]), batch
    )

    def body(total, part):
      n, batch = part
      part_key = randomness.at(key, n)
      found = jax.grad(summed, has_aux=True)(params, batch, part_key, numbers)
      return jax.tree.map(jnp.add, total, found), None

    zero = (
      jax.tree.map(jnp.zeros_like, params),
      LossSums(*[jnp.zeros((), jnp.float32)] * 4),
    )
    return jax.lax.scan(body, zero, (jnp.arange(parts), cut))[0]

  def step(state, batch, key, numbers):
    dropout_key = randomness.at(randomness.at(key, 'dropout'), state.step)
    grads, sums = gradients(state.params, batch, dropout_key, numbers)
    # The mean over the batch's tokens; a batch without any moves nothing.
    grads = jax.tree.map(lambda g: g / jnp.maximum(sums.tokens, 1.0), grads)
    updates, optimizer = adam.update(grads, state.optimizer, state.params)
    rate = numbers.learning_rate * schedule(
      state.step + 1,
      d_model=config.model.d_model,
      warmup_steps=numbers.warmup_steps,
    )
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    norm = optax.tree.norm(grads)
    # Chosen here and not by the host: where calls are cut changes no bit.
    sound = jnp.isfinite(sums.smoothed) & jnp.isfinite(norm)
    params, optimizer = jax.tree.map(
      lambda new, old: jnp.where(sound, new, old),
      (params, optimizer),
      (state.params, state.optimizer),
    )
    return State(state.step + 1, params, optimizer), Metrics(sums, norm, rate)

  return step


def train_steps(
  config: Config, model: Transformer
) -> Callable[
  [State, NamedTuple, Array, Array, Numbers], tuple[State, Metrics]
]:
  """(state, batches, how many, run's key, numbers) -> (state, metrics).

  `batches` has a leading axis of at least that many batches, of which the rest
  is not looked at, and so have the metrics. The number is traced: a call of one
  step and a call of eight run the same program, so where the calls are cut (at
  a save, at the end) cannot change a bit.
  """
  step = train_step(config, model)

  def steps(state, batches, count, key, numbers):
    room = jax.tree.leaves(batches)[0].shape[0]
    metrics = jax.eval_shape(
      step, state, jax.tree.map(lambda x: x[0], batches), key, numbers
    )[1]
    metrics = jax.tree.map(lambda m: jnp.zeros((room,), m.dtype), metrics)

    def body(n, carry):
      state, metrics = carry
      state, found = step(
        state, jax.tree.map(lambda x: x[n], batches), key, numbers
      )
      return state, jax.tree.map(lambda m, f: m.at[n].set(f), metrics, found)

    return jax.lax.fori_loop(0, count, body, (state, metrics))

  return steps
