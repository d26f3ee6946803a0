"""What each number may be, and `validate`, which reads every rule.

A rule about one field is a row of `BOUNDS`; one about several together is a
row of `refusals.REFUSALS`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import flatten
from transformer_jax.refusals import REFUSALS, unread


class Bound(NamedTuple):
  """A row.

  fields: dotted paths of numbers.
  holds: whether one of them may have a value.
  words: what it must do, behind `path=value `.
  """

  fields: str
  holds: Callable[[float], bool]
  words: str


BOUNDS = (
  Bound(
    """model.layers model.d_model model.d_ff model.heads model.d_k model.d_v
    model.d_position model.max_positions optim.warmup_steps optim.accumulate
    data.vocabulary_size data.max_length data.max_tokens data.buckets
    data.batches_per_run data.task_min_length data.task_symbols
    data.task_distance data.task_held_out train.steps train.log_every
    train.evaluate_every train.save_every train.keep_latest decode.beam_size
    decode.n_best decode.max_tokens decode.average""",
    lambda value: value >= 1,
    'must be at least 1',
  ),
  Bound(
    'train.seed train.noise_seed data.seed decode.seed',
    lambda value: 0 <= value < 2**31,
    'must lie in [0, 2^31)',
  ),
  Bound(
    """train.patience train.keep_best train.keep_every
    train.max_skipped_steps train.step_timeout_seconds data.task_train_size
    decode.top_k decode.extra_length decode.alpha optim.clip_norm
    optim.learning_rate""",
    lambda value: value >= 0,
    'must not be negative',
  ),
  Bound(
    """model.dropout model.attention_dropout model.feed_forward_dropout
    optim.label_smoothing optim.beta1 optim.beta2 data.task_noise""",
    lambda value: 0 <= value < 1,
    'must lie in [0, 1)',
  ),
  Bound('optim.epsilon', lambda value: value > 0, 'must be positive'),
  Bound(
    'decode.temperature',
    lambda value: value > 0,
    'must be positive; --decode.strategy=greedy is its limit at 0',
  ),
)


def validate(config: Config) -> None:
  """Refuse what no model or loop can take, before any work.

  Raises:
    ConfigError: one line that names the field and what it may be.
  """
  values = flatten(config)
  for bound in BOUNDS:
    for path in bound.fields.split():
      if not bound.holds(values[path]):
        raise ConfigError(f'{path}={values[path]} {bound.words}')
  for refusal in REFUSALS:
    if refusal.refused(config):
      raise ConfigError(refusal.reason(config))


def admit_given(config: Config, given: Iterable[str]) -> None:
  """Refuse a field that was given and would not be read.

  Raises:
    ConfigError: names the choices that read it.
  """
  reason = unread(config, given)
  if reason:
    raise ConfigError(reason)
