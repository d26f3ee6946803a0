"""A study is checked before anything of it is written."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

from transformer_jax.ablation.cells import arm_config
from transformer_jax.ablation.sequential import check_looks
from transformer_jax.ablation.stats import MOST_PRIMARY
from transformer_jax.ablation.study import (
  FREE_RUNNING,
  METRICS,
  ONLY_OF,
  PROBES,
  VIEWS,
  Overrides,
  Study,
  check_field,
  find_arm,
)
from transformer_jax.ablation.tuning import FACTOR, RATE, WARMUP
from transformer_jax.config import ConfigError, closest
from transformer_jax.rules import validate

ROLES = ('', 'control', 'known_bad')
FEWEST_TUNING_SEEDS = 3
# Axes that change how large the first steps are, so that the best rate of an
# arm depends on its warmup: their names begin so.
WARMUP_MATTERS = ('model.scale', 'model.norm', 'model.residual')
# Fields of a single run that no run of a study reads, and why.
_ONE_CHECKPOINT = 'it keeps one checkpoint, to go on from'
UNREAD = {
  'train.keep_latest': _ONE_CHECKPOINT,
  'train.keep_best': _ONE_CHECKPOINT,
  'train.keep_every': _ONE_CHECKPOINT,
  'train.best_metric': 'its verdicts are at the last step',
  'train.max_skipped_steps': 'a loss that is not a number ends a run of it',
  'train.step_timeout_seconds': 'nothing watches over its steps',
}


def check(study: Study) -> Study:
  """The study, if it can be run as declared.

  Raises:
    ConfigError: one line that names what is wrong.
  """
  _check_arms(study)
  _check_primary(study)
  _check_seeds(study)
  if study.threshold is None and any(
    p.metric == 'steps_to_threshold' for p in study.primary
  ):
    raise ConfigError(f'{_of(study)}: steps_to_threshold needs a threshold')
  for arm in study.arms:
    try:
      config = arm_config(study, arm)
      validate(config)
    except ConfigError as error:
      raise ConfigError(f'{_of(study)}, arm {arm.name}: {error}') from None
    for kind, name in (
      *(('free_running', name) for name in study.free_running),
      *(('view', name) for name in study.views),
    ):
      if not _is_given(name, config.data.source):
        raise ConfigError(
          f'{_of(study)}, arm {arm.name}: {kind} {name} is of '
          f'{ONLY_OF[name]}, not of data.source={config.data.source}; leave '
          'it out'
        )
    if config.train.patience:
      raise ConfigError(
        f'{_of(study)}: train.patience={config.train.patience} would stop '
        'arms at different steps; verdicts are at a fixed one'
      )
    if config.train.evaluate_bleu != 'best_metric':
      raise ConfigError(
        f'{_of(study)}: train.evaluate_bleu={config.train.evaluate_bleu} is of '
        'a run by itself; a study scores what its runs write as free_running'
      )
  return study


def unread(path: str) -> str:
  """Why no run of a study reads the field; '' where they do."""
  if path.startswith('decode.'):
    return 'what it scores is decoded greedily'
  return UNREAD.get(path, '')


def taken(study: Study, values: Overrides, given: Iterable[str]) -> Overrides:
  """The values of a preset and of the user's flags that the study can use.

  A preset is written for a single run: fields that the arms vary, and fields
  that no run of the study reads, are dropped. What the user gave stays, so that
  it is refused.
  """
  own = set(study.axes) | {'train.patience', 'train.evaluate_bleu'}
  given = set(given)
  return {
    path: value
    for path, value in values.items()
    if path in given or not (path in own or unread(path))
  }


def _is_given(name: str, source: str) -> bool:
  return ONLY_OF.get(name, source) == source


def _of(study: Study) -> str:
  return f'study {study.name}'


def _check_arms(study: Study) -> None:
  names = [arm.name for arm in study.arms]
  if not names:
    raise ConfigError(f'{_of(study)} has no arms')
  twice = next((name for name in names if names.count(name) > 1), None)
  if twice is not None:
    raise ConfigError(f'{_of(study)} has two arms named {twice}')
  for path in (*study.axes, *study.baseline):
    check_field(path)
    if why := unread(path):
      raise ConfigError(
        f'{_of(study)}: no run of it reads {path}, {why}; leave it out'
      )
  if 'train.seed' in study.axes:
    raise ConfigError(f'{_of(study)}: train.seed is set by the study, no axis')
  for arm in study.arms:
    if arm.role not in ROLES:
      raise ConfigError(
        f'{_of(study)}, arm {arm.name}: role {arm.role} is not one of '
        f'{", ".join(filter(None, ROLES))}'
      )
    if study.tuning and RATE in arm.overrides and WARMUP not in arm.overrides:
      raise ConfigError(
        f'{_of(study)}, arm {arm.name}: {RATE} is set by its tuning; leave it '
        f'out, or give {WARMUP} too'
      )
    for path in arm.overrides:
      if path not in study.axes:
        raise ConfigError(
          f'{_of(study)}: arm {arm.name} varies {path}, which is not among '
          f'the declared axes ({", ".join(study.axes) or "none"})'
        )


def _check_primary(study: Study) -> None:
  for name in study.probes:
    if name not in PROBES:
      raise ConfigError(
        f'{_of(study)}: probe {name} is not one of {", ".join(PROBES)}'
        f'{closest(name, list(PROBES))}'
      )
  for name in study.views:
    if name not in VIEWS:
      raise ConfigError(
        f'{_of(study)}: view {name} is not one of {", ".join(VIEWS)}'
        f'{closest(name, list(VIEWS))}'
      )
  for name in study.free_running:
    if name not in FREE_RUNNING:
      raise ConfigError(
        f'{_of(study)}: free_running {name} is not one of '
        f'{", ".join(FREE_RUNNING)}{closest(name, FREE_RUNNING)}'
      )
  if len(study.primary) > MOST_PRIMARY:
    raise ConfigError(
      f'{_of(study)} has {len(study.primary)} primary comparisons; at most '
      f'{MOST_PRIMARY}: each one more makes all of them weaker'
    )
  for one in study.primary:
    find_arm(study, one.variant)
    find_arm(study, one.baseline)
    if one.variant == one.baseline:
      raise ConfigError(f'{_of(study)} compares {one.variant} with itself')
    if one.metric not in METRICS:
      raise ConfigError(
        f'{_of(study)}: metric {one.metric} is not one of {", ".join(METRICS)}'
        f'{closest(one.metric, METRICS)}'
      )
    if one.metric in FREE_RUNNING and one.metric not in study.free_running:
      raise ConfigError(
        f'{_of(study)}: metric {one.metric} must be among its free_running'
      )
    if one.better != METRICS[one.metric]:
      raise ConfigError(
        f'{_of(study)}: better {one.metric} is {METRICS[one.metric]}, '
        f'not {one.better}'
      )
    if one.margin is not None and one.metric == 'steps_to_threshold':
      raise ConfigError(
        f'{_of(study)}: steps_to_threshold has no margin, the log-rank test '
        'calls nothing equivalent; leave it out'
      )
    if one.margin is not None and not one.margin > 0:
      raise ConfigError(f'{_of(study)}: margin {one.margin} must be positive')


def _check_seeds(study: Study) -> None:
  try:
    looks = check_looks(study.looks)
  except ValueError as error:
    raise ConfigError(f'{_of(study)}: {error}') from None
  if looks[-1] != study.seeds:
    raise ConfigError(
      f'{_of(study)}: the last look is at {looks[-1]} seeds, and '
      f'{study.seeds} are planned'
    )
  tuning = study.tuning
  if tuning is None:
    return
  if len(set(tuning.seeds)) < FEWEST_TUNING_SEEDS:
    raise ConfigError(
      f'{_of(study)}: tuning takes at least {FEWEST_TUNING_SEEDS} different '
      f'seeds, not {len(set(tuning.seeds))}'
    )
  if not tuning.rates or not tuning.warmups:
    raise ConfigError(f'{_of(study)}: tuning needs rates and warmups')
  if min(tuning.rates) <= 0 or min(tuning.warmups) < 1:
    raise ConfigError(f'{_of(study)}: rates and warmups must be positive')
  for low, high in itertools.pairwise(sorted(tuning.rates)):
    # What widens a grid and measures a basin counts on it.
    if not math.isclose(high, FACTOR * low):
      raise ConfigError(
        f'{_of(study)}: rates {low:g} and {high:g} of its tuning are '
        f'neighbours; each must be {FACTOR:g} times the one below it'
      )
  if len(set(tuning.warmups)) < len(tuning.warmups):
    raise ConfigError(
      f'{_of(study)}: a warmup of its tuning is there twice, of '
      f'{", ".join(map(str, tuning.warmups))}'
    )
  check_apart(study, study.seeds)


def doubts(study: Study) -> list[str]:
  """Warnings for readers of its verdicts; the study can still be run."""
  moved = [path for path in study.axes if path.startswith(WARMUP_MATTERS)]
  if not moved:
    return []
  if study.tuning is None:
    return [
      f'Judged under one recipe only, and {", ".join(moved)} may want another '
      'learning rate and warmup: an arm that does is not shown at its best.'
    ]
  if len(set(study.tuning.warmups)) > 1:
    return []
  return [
    f'Learning rates were tuned at one warmup, and {", ".join(moved)} may want '
    'another: an arm that needs a longer one is not shown at its best.'
  ]


def check_apart(study: Study, seeds: int) -> None:
  """Refuse seeds that have been used to choose a learning rate.

  Raises:
    ConfigError: seeds 0 .. seeds - 1 collide with those of tuning.
  """
  used = study.tuning.seeds if study.tuning else ()
  shared = sorted(set(used) & set(range(seeds)))
  if shared:
    raise ConfigError(
      f'{_of(study)}: seeds {", ".join(map(str, shared))} are used for tuning '
      'and for testing; a rate must be judged on seeds that did not choose it'
    )


def with_overrides(study: Study, values: Overrides) -> Study:
  """The same study with these fields changed in all arms.

  On other data, scores, comparisons and views that only the study's own data
  can give are left out.

  Raises:
    ConfigError: a field that is an axis of the study, or its seed.
  """
  for path in values:
    if path in study.axes:
      raise ConfigError(
        f'--{path} is an axis of study {study.name}: its arms vary it'
      )
    if path == 'train.seed':
      raise ConfigError("--train.seed: the seeds are the study's; see --seeds")
  if not values:
    return study
  baseline = {**study.baseline, **values}
  kept, views, primary = study.free_running, study.views, study.primary
  if 'data.source' in values:
    source = str(values['data.source'])
    kept = tuple(name for name in kept if _is_given(name, source))
    views = tuple(name for name in views if _is_given(name, source))
    left = tuple(one for one in primary if _is_given(one.metric, source))
    primary = left or primary
  return check(
    dataclasses.replace(
      study,
      baseline=baseline,
      free_running=kept,
      views=views,
      primary=primary,
    )
  )


def with_seeds(study: Study, seeds: int) -> Study:
  """The study planned for this many seeds: looks beyond it are dropped."""
  if seeds < 1:
    raise ConfigError(f'--seeds={seeds} must be at least 1')
  looks = (*(look for look in study.looks if look < seeds), seeds)
  return check(dataclasses.replace(study, seeds=seeds, looks=looks))
