"""What is asked: a study's declaration.

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

from transformer_jax.config import Config, ConfigError, closest
from transformer_jax.fields import FIELDS, difference, flatten, override

Value = int | float | str
Overrides = Mapping[str, Value]
Phase = Literal['tune', 'paper', 'tuned']
_TUNED = ' (tuned)'

# Scores of what the model writes by itself, which a study asks for by name.
FREE_RUNNING = {'generated': 'higher', 'pronoun': 'higher'}
SHOWN_SEED = 0  # the run of each arm whose maps and views are kept
WRITTEN = 256  # pairs of the test split that are written for them, at most
# Scores and views that only one source of data can give.
ONLY_OF = {'pronoun': 'task:korean', 'links': 'task:korean'}
# Closer looks at a trained run, see `viewing`.
VIEWS = ('heads', 'places', 'links')
# Which way each metric is better. `steps_to_threshold` is a time that some
# runs never reach: the log-rank test judges it.
METRICS = {
  'loss': 'lower',
  'accuracy': 'higher',
  'exact': 'higher',
  'steps_to_threshold': 'lower',
  **FREE_RUNNING,
}
# What `probes.measure` finds, which a study asks for by name.
PROBES = (
  'score_variance',
  'score_range',
  'entropy',
  'saturated',
  'softmax_gradient',
  'softmax_share',
  'query_gradient',
  'key_gradient',
  'value_gradient',
  'input_variance',
)


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
  probes: of each run while it trains, names of PROBES.
  free_running: scores of generated text, names of FREE_RUNNING.
  threshold: validation loss, for the steps that a run takes to it.
  views: of the first seed of each arm when it is trained, names of VIEWS.
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
  views: tuple[str, ...] = ()
  doc: str = ''


def deviations(config: Config) -> dict[str, Value]:
  """{path: value} of what differs from the defaults and decides a result.

  The number of steps is among them: a run that goes on is the same run, but
  its result at a fixed step is another.
  """
  return {
    path: new
    for path, (_, new) in difference(Config(), config).items()
    if decides(path)
  }


def decides(path: str) -> bool:
  """Whether the field changes what a run of so many steps results in."""
  return FIELDS[path].affects == 'result' or path == 'train.steps'


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
  values = flatten(override(Config(), baseline))
  found = []
  for path in paths:
    check_field(path)
    choices = FIELDS[path].choices
    if choices is None:
      raise ConfigError(f'{path} has no choices to go through')
    for choice in choices:
      if choice != values[path]:
        company = (needs or {}).get(f'{path}={choice}', {})
        found.append(merge({path: choice}, company))
  return found


def check_field(path: str) -> None:
  """Raise ConfigError unless `path` is a field of the config."""
  if path not in FIELDS:
    near = closest(path, FIELDS)
    raise ConfigError(f'no config field {path}{near}')


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


def find_arm(study: Study, name: str) -> Arm:
  """The arm of that name.

  Raises:
    ConfigError: there is none.
  """
  named = {arm.name: arm for arm in study.arms}
  if name not in named:
    raise ConfigError(
      f'study {study.name} has no variant {name}{closest(name, named)}'
    )
  return named[name]


def label(variant: str, phase: str) -> str:
  """How tables name an arm: a tuned run is told from one of the recipe."""
  return variant + _TUNED * (phase == 'tuned')


def arm_of(label: str) -> str:
  """The name of the arm, of a label.

  >>> arm_of(label('scale=none', 'tuned'))
  'scale=none'
  """
  return label.removesuffix(_TUNED)


# Text.


def to_dict(study: Study) -> dict[str, Any]:
  """For JSON.

  Empty `views` are left out, so that the hash of a study without views stays
  the same.
  """
  body = dataclasses.asdict(study)
  if not study.views:
    del body['views']
  return body


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
      'views': tuple(body.get('views', ())),
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

  It leaves out the lab note, the number of planned seeds, which the folder
  knows, and fields that cannot change a result.
  """
  body = to_dict(study)
  for name in ('doc', 'seeds', 'looks'):
    del body[name]
  body['baseline'] = {
    path: value for path, value in study.baseline.items() if decides(path)
  }
  return body


def study_hash(study: Study) -> str:
  """Hash of the whole declaration."""
  return digest(to_dict(study))
