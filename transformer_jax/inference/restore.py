"""A finished or running training, opened to be decoded with.

JAX is imported where it is used: a wrong flag or folder is answered at once.
"""

import contextlib
import dataclasses
import pathlib
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from transformer_jax import plugins
from transformer_jax.config import Config, ConfigError, MeshConfig
from transformer_jax.fields import FIELDS, flatten, override
from transformer_jax.training import hosts, record
from transformer_jax.training.guard import Watchdog

if TYPE_CHECKING:
  from transformer_jax.data.tokens import Vocabularies
  from transformer_jax.nn.transformer import Transformer
  from transformer_jax.training.state import Alone

# What may differ from the run's own config: how to decode, and where this
# machine keeps its files. The program that computed attention in training may
# not run here: it is `auto` anew, or what is named.
ATTENTION = 'model.attention_implementation'
PATIENCE = 'train.step_timeout_seconds'
FREE = ('decode.', 'mesh.', 'data.cache_dir', 'data.tfds_dir')
FREE += (ATTENTION, PATIENCE)


class Run(NamedTuple):
  """What decoding and scoring need of a run."""

  config: Config
  model: 'Transformer'
  params: Any  # float32 arrays on the device, a nested dict
  vocabularies: 'Vocabularies'
  steps: list[int]  # the checkpoints that were averaged, newest first
  layout: 'Alone'  # of parameters and sentences over devices


def config_of(options: types.SimpleNamespace) -> Config:
  """The config of the run in --workdir: the `base` of a program's flags.

  Args:
    options: of `flags.parse`, with workdir and overrides.

  Raises:
    ConfigError: there is no run, or a flag would make it another one.
  """
  config = record.read_config(options.workdir)
  own = flatten(config)
  for path, value in options.overrides.items():
    moved = path == 'data.source' and record.same_source(
      config.data.source, value
    )
    if not (moved or value == own[path] or path.startswith(FREE)):
      raise ConfigError(
        f'--{path} belongs to the run in {options.workdir} and stays as it '
        'was trained; only decode.* flags and mesh.* may be given here, '
        f'{ATTENTION}, {PATIENCE}, and data.source for files that moved'
      )
  # A run on one device is decoded on one, others by rows on all there are.
  sizes = dataclasses.astuple(config.mesh)
  mesh = config.mesh if sizes == (1,) * len(sizes) else MeshConfig()
  # The compiler of a search may need longer than a step of training may take.
  usual = {ATTENTION: 'auto', PATIENCE: FIELDS[PATIENCE].default}
  config = override(config, usual)
  return dataclasses.replace(config, mesh=mesh)


@contextlib.contextmanager
def watched(
  run: Run, check: Callable[[], None]
) -> Iterator[Callable[[], None]]:
  """`check`, each call of which tells a watchdog that work goes on.

  A process without a call for train.step_timeout_seconds leaves, as in
  training; the time to compile for a batch counts.
  """
  with Watchdog(run.config.train.step_timeout_seconds) as watchdog:
    yield watchdog.hears(check)


def load_run(workdir: str, config: Config) -> Run:
  """Model, vocabularies and averaged parameters of a run.

  decode.checkpoint names a step, the newest or the best on validation, and
  decode.average says over how many the parameters are averaged: that step and
  the newest kept before it. Where fewer are kept, stderr says so.

  Args:
    workdir: the run's folder; it may still be training.
    config: of `config_of`, with the decode fields wanted.

  Raises:
    ConfigError: no run, no vocabulary, no whole checkpoint, no best one kept,
      or a plugin that is not the one it was trained with.
  """
  import jax

  from transformer_jax.data.tokens import load_vocabularies
  from transformer_jax.nn import implementations, randomness
  from transformer_jax.nn.transformer import (
    Transformer,
    initial_weights,
    with_statistics,
  )
  from transformer_jax.training import sharding
  from transformer_jax.training.average import average
  from transformer_jax.training.checkpoint import Checkpoints

  if config.decode.checkpoint == 'best' and not config.train.keep_best:
    raise ConfigError(
      f'decode.checkpoint=best: {workdir} keeps its newest checkpoints '
      'whatever their metric (train.keep_best=0); take '
      '--decode.checkpoint=latest, or train with --train.keep_best=1 from the '
      'start'
    )
  folder = pathlib.Path(workdir).expanduser()
  record.admit_data(folder, plugins.used(config))
  vocabularies = load_vocabularies(str(folder / 'vocabulary'))
  sizes = vocabularies.source.size, vocabularies.target.size
  checkpoints = Checkpoints(
    folder / 'checkpoints',
    best_metric_mode='min' if config.train.best_metric == 'loss' else 'max',
  )
  with hosts.first_alone():
    steps = _steps(checkpoints, config)
  if not steps:
    raise ConfigError(
      f'{workdir} has no {config.decode.checkpoint} checkpoint yet: train it '
      'first'
    )
  if hosts.first():
    _say_if_fewer(steps, config)
  draw = initial_weights(
    config.model, source_vocabulary=sizes[0], target_vocabulary=sizes[1]
  )
  like = jax.eval_shape(draw, randomness.seed_key(0))
  fields = dict(params=like[0], statistics=like[1])
  parts = average(checkpoints.restore_parts(fields, step) for step in steps)
  params = with_statistics(**parts)
  platform = jax.local_devices()[0].platform
  attend = implementations.choose(config.model, platform=platform)
  model = Transformer(config.model, *sizes, attend)
  layout = sharding.layout(config.mesh)
  params = layout.to_decode(params)
  return Run(config, model, params, vocabularies, steps, layout)


def _steps(checkpoints: Any, config: Config) -> list[int]:
  """Whole steps to average, newest first.

  A step that is kept only for its metric can lie far back: it is averaged only
  where it is the first of them.
  """
  last = {'latest': checkpoints.latest, 'best': checkpoints.best}
  chosen = last[config.decode.checkpoint]()
  if chosen is None:
    return []
  steps, train = checkpoints.steps(), config.train
  recent = {*steps[-train.keep_latest :]}
  if train.keep_every:
    recent |= {step for step in steps if step % train.keep_every == 0}
  newer = sum(step > chosen for step in steps)
  others = len(steps) - len(recent)
  good = checkpoints.good(newer + others + config.decode.average)
  kept = [step for step in good if step <= chosen]
  kept = kept[:1] + [step for step in kept[1:] if step in recent]
  return kept[: config.decode.average]


def _say_if_fewer(steps: list[int], config: Config) -> None:
  """That the average is of fewer checkpoints than were asked for."""
  asked = config.decode.average
  if len(steps) < asked:
    hosts.say(
      f'decode.average={asked}, but only {len(steps)} such checkpoints are '
      f'kept: {", ".join(map(str, steps))}; a longer --train.keep_latest '
      f'(now {config.train.keep_latest}) keeps more while it trains'
    )
