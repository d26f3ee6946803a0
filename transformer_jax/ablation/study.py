"""What is asked: a study's declaration, and the cells that follow from it.

A study is written down before its first run: the question, the arms, what
they may vary, the comparisons that will be judged, seeds and looks. Arms are
made from plain dicts of overrides by small combinators; a name follows from
its overrides, so that no table can show one thing and mean another.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from transformer_jax import config as config_lib
from transformer_jax.ablation.sequential import check_looks
from transformer_jax.ablation.stats import MOST_PRIMARY
from transformer_jax.config import Config, ConfigError, closest

Value = int | float | str
Overrides = Mapping[str, Value]
Phase = Literal['tune', 'paper', 'tuned']

# How a metric is read: which way is better. `steps_to_threshold` is a time
# that some runs never reach (the log-rank test judges it).
# Scores of what the model writes by itself, which a study asks for by name.
FREE_RUNNING = {'generated': 'higher', 'pronoun': 'higher'}
METRICS = {
  'loss': 'lower',
  'accuracy': 'higher',
  'exact': 'higher',
  'steps_to_threshold': 'lower',
  **FREE_RUNNING,
}
ROLES = ('', 'control', 'known_bad')
FEWEST_TUNING_SEEDS = 3
# What a tuning phase sets, and no arm may.
TUNED = ('optim.learning_rate', 'optim.warmup_steps')


@dataclasses.dataclass(frozen=True)
class Arm:
  """A variant: what it overrides, and whether it is there as a control."""

  name: str
  overrides: Overrides
  role: str = ''


@dataclasses.dataclass(frozen=True)
class Primary:
  """A comparison that is judged, declared beforehand.

  margin: smallest difference that matters, in the metric's unit; None: nothing
    can be called equivalent.
  """

  variant: str
  baseline: str
  metric: str = 'loss'
  better: str = 'lower'
  margin: float | None = None


@dataclasses.dataclass(frozen=True)
class LearningRates:
  """The grid that each arm's learning rate is chosen from.

  seeds: of the tuning runs only, apart from those of the study.
  """

  rates: tuple[float, ...]
  warmups: tuple[int, ...]
  seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Study:
  """A question with all that is needed to answer it.

  paper: what the paper says, and where.
  axes: dotted paths that arms may vary; anything else is refused.
  baseline: overrides of `Config()` that all arms share.
  arms: the first is the baseline.
  seeds: planned; runs have seeds 0 .. seeds - 1.
  looks: numbers of seeds at which the study is read; the last is `seeds`.
  free_running: scores of generated text, names of FREE_RUNNING.
  threshold: validation loss, for the steps that a run takes to it.
  doc: the lab note.
  """

  name: str
  question: str
  paper: str
  axes: tuple[str, ...]
  baseline: Overrides
  arms: tuple[Arm, ...]
  primary: tuple[Primary, ...]
  seeds: int
  looks: tuple[int, ...]
  tuning: LearningRates | None = None
  probes: tuple[str, ...] = ()
  free_running: tuple[str, ...] = ()
  threshold: float | None = None
  doc: str = ''


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a study."""

  study: str
  variant: str
  seed: int
  phase: Phase
  config: Config

  @property
  def identity(self) -> str:
    """The hash of all that its result depends on.

    Of the config only what differs from the defaults, so that a new axis
    leaves old results valid. The variant belongs to it: two arms of one
    config (a twin) are two runs. The phase does not: where tuning chooses the
    paper's own recipe, the run is there already.
    """
    text = json.dumps([self.variant, deviations(self.config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def deviations(config: Config) -> dict[str, Value]:
  """{path: value} of what differs from the defaults and decides a result.

  The number of steps is among them: a run that goes on is the same run, but
  its result at a fixed step is another.
  """
  return {
    path: new
    for path, (_, new) in config_lib.difference(Config(), config).items()
    if _decides(path)
  }


def _decides(path: str) -> bool:
  return config_lib.FIELDS[path].affects == 'result' or path == 'train.steps'


# Combinators: lists of plain dicts in, lists of plain dicts out.


def axis(path: str, *values: Value) -> list[dict[str, Value]]:
  """One dict for each value.

  >>> axis('model.d_k', 16, 64)
  [{'model.d_k': 16}, {'model.d_k': 64}]
  """
  return [{path: value} for value in values]


def product(*parts: Iterable[Overrides]) -> list[dict[str, Value]]:
  """Each with each, the last part turning quickest.

  >>> product(axis('model.d_k', 16, 64), axis('model.scale', 'none'))
  [{'model.d_k': 16, 'model.scale': 'none'}, \
{'model.d_k': 64, 'model.scale': 'none'}]
  """
  return [merge(*one) for one in itertools.product(*parts)]


def chain(*parts: Iterable[Overrides]) -> list[dict[str, Value]]:
  """One part after the other.

  >>> chain([{}], axis('model.d_k', 16))
  [{}, {'model.d_k': 16}]
  """
  return [dict(one) for one in itertools.chain(*parts)]


def zipped(*parts: Sequence[Overrides]) -> list[dict[str, Value]]:
  """The first with the first, the second with the second.

  >>> zipped(axis('model.heads', 1, 4), axis('model.d_k', 64, 16))
  [{'model.heads': 1, 'model.d_k': 64}, {'model.heads': 4, 'model.d_k': 16}]
  """
  if len({len(part) for part in parts}) > 1:
    lengths = ', '.join(str(len(part)) for part in parts)
    raise ConfigError(f'zipped takes parts of one length, not {lengths}')
  return [merge(*one) for one in zip(*parts, strict=True)]


def one_factor(
  baseline: Overrides,
  paths: Iterable[str],
  *,
  needs: Mapping[str, Overrides] | None = None,
) -> list[dict[str, Value]]:
  """Every other choice of each field, one at a time.

  Args:
    baseline: overrides of `Config()`.
    paths: fields with choices.
    needs: {'PATH=CHOICE': overrides} for choices that need company.

  >>> one_factor({}, ['model.norm_order'])
  [{'model.norm_order': 'pre'}]
  """
  values = config_lib.flatten(config_lib.override(Config(), baseline))
  found = []
  for path in paths:
    _known(path)
    choices = config_lib.FIELDS[path].choices
    if choices is None:
      raise ConfigError(f'{path} has no choices to go through')
    for choice in choices:
      if choice != values[path]:
        company = (needs or {}).get(f'{path}={choice}', {})
        found.append(merge({path: choice}, company))
  return found


def merge(*parts: Overrides) -> dict[str, Value]:
  """One dict of several that say nothing twice."""
  merged: dict[str, Value] = {}
  for part in parts:
    for path, value in part.items():
      if path in merged and merged[path] != value:
        raise ConfigError(f'{path} is both {merged[path]} and {value}')
      merged[path] = value
  return merged


def name_of(overrides: Overrides) -> str:
  """A name that says what is overridden.

  >>> name_of({'model.score': 'additive', 'model.d_k': 256})
  'score=additive d_k=256'
  >>> name_of({})
  'baseline'
  """
  parts = [f'{path.split(".")[1]}={value}' for path, value in overrides.items()]
  return ' '.join(parts) or 'baseline'


def arms(
  every: Iterable[Overrides], *, roles: Mapping[str, str] | None = None
) -> tuple[Arm, ...]:
  """Arms named by `name_of`; roles: {name: role}."""
  named = {name_of(one): dict(one) for one in every}
  roles = roles or {}
  for name in roles:
    if name not in named:
      raise ConfigError(f'no arm {name}{closest(name, named)}')
  return tuple(
    Arm(name, one, roles.get(name, '')) for name, one in named.items()
  )


# A declaration is checked before anything is written.


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
      config_lib.validate(config)
    except ConfigError as error:
      raise ConfigError(f'{_of(study)}, arm {arm.name}: {error}') from None
    if config.train.patience:
      raise ConfigError(
        f'{_of(study)}: train.patience={config.train.patience} would stop '
        'arms at different steps; verdicts are at a fixed one'
      )
  return study


def _of(study: Study) -> str:
  return f'study {study.name}'


def _known(path: str) -> None:
  if path not in config_lib.FIELDS:
    near = closest(path, config_lib.FIELDS)
    raise ConfigError(f'no config field {path}{near}')


def _check_arms(study: Study) -> None:
  names = [arm.name for arm in study.arms]
  if not names:
    raise ConfigError(f'{_of(study)} has no arms')
  twice = next((name for name in names if names.count(name) > 1), None)
  if twice is not None:
    raise ConfigError(f'{_of(study)} has two arms named {twice}')
  for path in (*study.axes, *study.baseline):
    _known(path)
  for path in (*TUNED, 'train.seed'):
    if path in study.axes and (study.tuning or path == 'train.seed'):
      raise ConfigError(f'{_of(study)}: {path} is set by the study, no axis')
  for arm in study.arms:
    if arm.role not in ROLES:
      raise ConfigError(
        f'{_of(study)}, arm {arm.name}: role {arm.role} is not one of '
        f'{", ".join(filter(None, ROLES))}'
      )
    for path in arm.overrides:
      if path not in study.axes:
        raise ConfigError(
          f'{_of(study)}: arm {arm.name} varies {path}, which is not among '
          f'the declared axes ({", ".join(study.axes) or "none"})'
        )


def find_arm(study: Study, name: str) -> Arm:
  """The arm of that name.

  Raises:
    ConfigError: there is none.
  """
  named = {arm.name: arm for arm in study.arms}
  if name not in named:
    raise ConfigError(
      f'{_of(study)} has no variant {name}{closest(name, named)}'
    )
  return named[name]


def _check_primary(study: Study) -> None:
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
  check_apart(study, study.seeds)


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
  return check(
    dataclasses.replace(study, baseline={**study.baseline, **values})
  )


def with_seeds(study: Study, seeds: int) -> Study:
  """The study planned for this many seeds: looks beyond it are dropped."""
  if seeds < 1:
    raise ConfigError(f'--seeds={seeds} must be at least 1')
  looks = (*(look for look in study.looks if look < seeds), seeds)
  return check(dataclasses.replace(study, seeds=seeds, looks=looks))


# Cells.


def arm_config(study: Study, arm: Arm) -> Config:
  """The config of an arm, under the recipe that all arms share."""
  shared = config_lib.override(Config(), study.baseline)
  return config_lib.override(shared, arm.overrides)


def cell(
  study: Study,
  variant: str,
  *,
  seed: int,
  phase: Phase,
  recipe: Overrides | None = None,
) -> Cell:
  """One run; recipe: learning rate and warmup, the shared ones by default."""
  config = arm_config(study, find_arm(study, variant))
  values = {**(recipe or {}), 'train.seed': seed}
  config = config_lib.override(config, values)
  return Cell(study.name, variant, seed, phase, config)


def cells(
  study: Study, seeds: Iterable[int], recipes: Mapping[str, Overrides] | None
) -> list[Cell]:
  """The runs that are judged, by seed and then by arm.

  Args:
    study: checked.
    seeds: to run.
    recipes: variant -> what tuning chose for it; None: no tuned phase.
  """
  found = []
  for seed in seeds:
    for arm in study.arms:
      found.append(cell(study, arm.name, seed=seed, phase='paper'))
      if recipes is not None:
        recipe = recipes[arm.name]
        found.append(
          cell(study, arm.name, seed=seed, phase='tuned', recipe=recipe)
        )
  return found


def is_exploratory(study: Study, one: Cell) -> bool:
  """Whether its seed was not planned when the study was declared."""
  return one.phase != 'tune' and one.seed >= study.seeds


# Text.


def to_dict(study: Study) -> dict[str, Any]:
  """For JSON."""
  return dataclasses.asdict(study)


def from_dict(body: Mapping[str, Any]) -> Study:
  """The inverse of `to_dict`, from JSON, where tuples are lists."""
  tuning = body['tuning']
  return Study(
    **{
      **body,
      'axes': tuple(body['axes']),
      'arms': tuple(Arm(**arm) for arm in body['arms']),
      'primary': tuple(Primary(**one) for one in body['primary']),
      'looks': tuple(body['looks']),
      'probes': tuple(body['probes']),
      'free_running': tuple(body['free_running']),
      'tuning': LearningRates(
        **{name: tuple(values) for name, values in tuning.items()}
      )
      if tuning
      else None,
    }
  )


def digest(body: Any) -> str:
  """sha256 of what can be written as JSON."""
  text = json.dumps(body, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()


def essence(study: Study) -> dict[str, Any]:
  """What makes it this study and not another.

  Not its lab note; not how many seeds were planned, which the folder knows;
  not fields that cannot change a result.
  """
  body = to_dict(study)
  for name in ('doc', 'seeds', 'looks'):
    del body[name]
  body['baseline'] = {
    path: value for path, value in study.baseline.items() if _decides(path)
  }
  return body


def study_hash(study: Study) -> str:
  """Of the whole declaration."""
  return digest(to_dict(study))
