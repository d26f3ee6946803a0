"""The training state and the pure step: (state, batch) -> (state, metrics)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from transformer_jax.config import SITES, Config, ConfigError
from transformer_jax.nn import randomness
from transformer_jax.nn.attention import Scales
from transformer_jax.nn.layers import query_rates, site_scales
from transformer_jax.nn.module import Dropout
from transformer_jax.nn.transformer import (
  STATISTICS,
  Transformer,
  initial_weights,
  variables,
)
from transformer_jax.training import optim
from transformer_jax.training.loss import LossSums, projected_cross_entropy

# Largest share of the logits that exists at once, in numbers: 32 MiB of
# float32. On a CPU parts of 5 to 80 MiB took the same time within its noise.
LOGITS_AT_ONCE = 1 << 23


NO_STATISTICS: dict = {}  # of a model whose norms keep none


class State(NamedTuple):
  """All that training changes: what a checkpoint holds."""

  step: Array  # int32, updates made
  params: dict  # float32
  optimizer: optax.OptState
  # Of a batch norm: changed by the forward pass, no gradient; else {}.
  statistics: dict = NO_STATISTICS


class Numbers(NamedTuple):
  """Numbers of the config that the step takes traced: one program for all."""

  learning_rate: Array | float
  warmup_steps: Array | float
  label_smoothing: Array | float
  dropout: Array | float
  attention_dropout: Array | float
  feed_forward_dropout: Array | float
  scales: Scales


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
    scales=site_scales(config.model),
  )


# Scales that differ in a traced number only.
_TRACED_SCALES = ('rsqrt_d_k', 'none', 'inverse_d_k')


def program(config: Config) -> Config:
  """`config` with every traced number and the seed at one fixed value.

  Configs with equal programs (and equal shapes of batches) have one compiled
  step: what is left of their difference is in `numbers` and in the key. A
  dropout rate of zero stays zero: that program draws nothing.
  """
  model = config.model
  rates = ('dropout', 'attention_dropout', 'feed_forward_dropout')
  fixed: dict[str, Any] = {rate: 0.1 for rate in rates if getattr(model, rate)}
  for site in SITES:
    scale = model.at('scale', site)
    fixed[f'scale_{site}'] = 'none' if scale in _TRACED_SCALES else scale
  optim = dataclasses.replace(
    config.optim, learning_rate=1.0, warmup_steps=1, label_smoothing=0.1
  )
  return dataclasses.replace(
    config,
    model=dataclasses.replace(model, scale='none', **fixed),
    optim=optim,
    train=dataclasses.replace(config.train, seed=0, noise_seed=0),
  )


def _adam(config: Config) -> optax.GradientTransformation:
  return optim.adam(config.optim, query_rates(config.model))


def run_key(config: Config) -> np.ndarray:
  """The one key of a run: of initial values and dropout.

  It lies on the host, for every device to take it from there.
  """
  key = randomness.seed_key(config.train.seed)
  noise = config.train.noise_seed
  return np.asarray(randomness.at(key, f'noise {noise}') if noise else key)


def initial_state(
  config: Config, model: Transformer
) -> Callable[[Array], State]:
  """key -> the state before the first update; jit it."""
  weights = initial_weights(
    config.model,
    source_vocabulary=model.source_vocabulary,
    target_vocabulary=model.target_vocabulary,
  )
  adam = _adam(config)

  def start(key: Array) -> State:
    params, statistics = weights(randomness.at(key, 'params'))
    step = jnp.zeros((), jnp.int32)
    return State(step, params, adam.init(params), statistics)

  return start


def admit_parts(config: Config, rows: int) -> None:
  """Refuse a batch of so many rows that is not cut into equal parts.

  Raises:
    ConfigError: then.
  """
  if rows % config.optim.accumulate:
    raise ConfigError(
      f'optim.accumulate={config.optim.accumulate} does not divide the {rows} '
      'rows of a batch; a power of two up to 8 does'
    )


def loss_chunk(tokens: int, vocabulary: int) -> int:
  """Tokens whose logits are made at once: even parts, a multiple of 8."""
  parts = max(1, round(tokens * vocabulary / LOGITS_AT_ONCE))
  return -(-tokens // (8 * parts)) * 8


def batch_cross_entropy(
  h_BTD: Array, w_VD: Array, target_BT: Array, smoothing: Array | float
) -> LossSums:
  """`projected_cross_entropy` of a batch, in parts of LOGITS_AT_ONCE."""
  sums = projected_cross_entropy(
    h_BTD.reshape(-1, h_BTD.shape[-1]),
    w_VD,
    target_BT.reshape(-1),
    smoothing,
    loss_chunk(target_BT.size, w_VD.shape[0]),
  )
  return cast(LossSums, sums)


class Alone:
  """How a step lies on one device. `sharding.Layout` lays it out on many."""

  def at_rest(self, state: Any) -> Any:
    """The place of each leaf of a state."""
    # As a restored state lies, for a resumed run to run the same program.
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: place, state)

  def outputs(self, state: Any) -> dict[str, Any]:
    """Arguments of `jit` for what gives a state and numbers."""
    del state
    return {}

  def parameters(self, params: Any) -> Any:
    """Inside a step: the parameters, ready to be computed with."""
    return params

  def wrap_layer(self, body: Callable) -> Callable:
    """Inside a step: the body of the scan over layers, see `Stack`."""
    return body

  def cross_entropy(
    self, h_BTD: Array, w_VD: Array, target_BT: Array, smoothing: Array | float
  ) -> LossSums:
    """Inside a step: `batch_cross_entropy`."""
    return batch_cross_entropy(h_BTD, w_VD, target_BT, smoothing)

  def batch(self, batch: Any, parts: int = 1) -> Any:
    """Host arrays [..., B, T] as a step of so many parts takes them."""
    del parts
    return batch

  def cut(self, batch: Any, parts: int) -> Any:
    """Inside a step: [B, T] -> [parts, B / parts, T], its rows in order."""
    return jax.tree.map(
      lambda x_BT: x_BT.reshape(parts, -1, x_BT.shape[1]), batch
    )

  def rows(self, count: int) -> int:
    """Rows that sentences to be decoded are padded to."""
    return count

  def sentences(self, tree: Any) -> Any:
    """Host arrays [B, ...] as decoding takes them."""
    return jax.tree.map(jnp.asarray, tree)

  def to_decode(self, params: Any) -> Any:
    """Parameters as decoding takes them."""
    return jax.device_put(params)


ALONE = Alone()


def loss_function(
  config: Config, model: Transformer, layout: Alone = ALONE
) -> Callable[[dict, NamedTuple, Array | None, Numbers], LossSums]:
  """(weights, batch, dropout key or None, numbers) -> LossSums of the batch.

  The weights are the parameters, or `with_statistics` of a model that has some;
  a batch norm takes its running moments.
  """
  losses = _losses(config, model, layout, mutable=False)

  def evaluate(weights, batch, key, numbers):
    return losses(variables(weights), batch, key, numbers)[0]

  return evaluate


def _losses(
  config: Config, model: Transformer, layout: Alone, *, mutable: bool
) -> Callable[..., tuple[LossSums, dict]]:
  """(variables, batch, dropout key or None, numbers) -> sums, statistics."""
  rates = ('dropout', 'attention_dropout', 'feed_forward_dropout')
  drops = any(getattr(config.model, rate) for rate in rates)

  def losses(variables, batch, key, numbers):
    params = layout.parameters(variables['params'])
    variables = variables | {'params': params}
    dropout = None
    if drops and key is not None:
      dropout = Dropout(
        key,
        residual=numbers.dropout,
        attention=numbers.attention_dropout,
        feed_forward=numbers.feed_forward_dropout,
      )
    source_BS, target_BT = batch
    found: Any = model.apply(
      variables,
      source_BS,
      target_BT,
      dropout,
      numbers.scales,
      method='hidden',
      mutable=[STATISTICS] if mutable else False,
    )
    h_BTD, changed = found if mutable else (found, {})
    w_VD = cast(Array, model.apply(variables, method='unembed_VD'))
    sums = layout.cross_entropy(h_BTD, w_VD, target_BT, numbers.label_smoothing)
    return sums, dict(changed.get(STATISTICS, {}))

  return losses


def _gradients(
  config: Config, model: Transformer, layout: Alone
) -> Callable[..., tuple[Any, tuple[LossSums, Any]]]:
  """(params, statistics, batch, key, numbers) -> (gradients, (sums, new ones)).

  Summed over the batch, in `accumulate` parts.
  """
  losses = _losses(config, model, layout, mutable=True)
  parts = config.optim.accumulate

  def summed(params, statistics, batch, key, numbers):
    own = {'params': params, STATISTICS: statistics}
    sums, statistics = losses(own, batch, key, numbers)
    return sums.smoothed, (sums, statistics)

  derived = jax.grad(summed, has_aux=True)
  if parts == 1:
    return derived

  def in_parts(params, statistics, batch, key, numbers):
    def body(total, part):
      n, batch = part
      part_key = randomness.at(key, n)
      found = derived(params, statistics, batch, part_key, numbers)
      return jax.tree.map(jnp.add, total, found), None

    # Parts have no statistics: a batch norm is refused with them.
    zero = (
      jax.tree.map(jnp.zeros_like, params),
      (LossSums(*[jnp.zeros((), jnp.float32)] * 4), statistics),
    )
    return jax.lax.scan(
      body, zero, (jnp.arange(parts), layout.cut(batch, parts))
    )[0]

  return in_parts


def train_step(
  config: Config, model: Transformer, layout: Alone = ALONE
) -> Callable[[State, NamedTuple, Array, Numbers], tuple[State, Metrics]]:
  """(state, batch, run's key, numbers) -> (state, metrics), pure.

  A step whose loss or gradient is not finite counts and changes nothing else:
  parameters and optimizer stay, the next step has the next batch.
  """
  gradients = _gradients(config, model, layout)
  adam = _adam(config)
  schedule = optim.SCHEDULES[config.optim.schedule]

  def step(state, batch, key, numbers):
    dropout_key = randomness.at(randomness.at(key, 'dropout'), state.step)
    grads, (sums, statistics) = gradients(
      state.params, state.statistics, batch, dropout_key, numbers
    )
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
    params, optimizer, statistics = jax.tree.map(
      lambda new, old: jnp.where(sound, new, old),
      (params, optimizer, statistics),
      (state.params, state.optimizer, state.statistics),
    )
    after = State(state.step + 1, params, optimizer, statistics)
    return after, Metrics(sums, norm, rate)

  return step


def train_steps(
  config: Config, model: Transformer, layout: Alone = ALONE
) -> Callable[
  [State, NamedTuple, Array, Array, Numbers], tuple[State, Metrics]
]:
  """(state, batches, count, run's key, numbers) -> (state, metrics).

  `batches` has a leading axis of at least `count`. Batches beyond it are
  ignored; their metrics are zero. The count is traced: a call of one step and a
  call of eight run the same program, so where the calls are cut (at a save, at
  the end) cannot change a bit.
  """
  step = train_step(config, model, layout)

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
