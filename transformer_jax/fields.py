"""The fields of a config by their dotted paths, and what is done by path.

`FIELDS` is what flags, sweeps and tests are derived from; a config is read,
changed, compared and written as text, one dotted path a value.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from transformer_jax.config import Config, ConfigError, closest


@dataclasses.dataclass(frozen=True)
class Field:
  """One leaf of `Config` by its dotted path, as flags and tests see it."""

  path: str
  default: int | float | str
  help: str
  affects: str
  choices: tuple[str, ...] | None

  @property
  def type(self) -> type:
    return type(self.default)


def _leaves() -> Iterator[Field]:
  """Of `Config`, in the order of the file."""
  paper = Config()
  for room in dataclasses.fields(paper):
    values = getattr(paper, room.name)
    for leaf in dataclasses.fields(values):
      # Decoding never changes what training computes.
      affects = 'run' if room.name == 'decode' else leaf.metadata['affects']
      yield Field(
        path=f'{room.name}.{leaf.name}',
        default=getattr(values, leaf.name),
        help=leaf.metadata['help'],
        affects=affects,
        choices=leaf.metadata['choices'],
      )


FIELDS = {field.path: field for field in _leaves()}
# Without those of a plugin.
OWN_CHOICES = {path: field.choices or () for path, field in FIELDS.items()}


def add_choice(path: str, name: str) -> None:
  """One more value of a field with named values, for this process.

  Raises:
    ConfigError: the field has no named values, or this one already.
  """
  if path not in FIELDS or FIELDS[path].choices is None:
    raise ConfigError(f'{path} is no field with named values')
  choices = FIELDS[path].choices or ()
  if name in choices:
    raise ConfigError(f'{path}={name} is there already: take another name')
  FIELDS[path] = dataclasses.replace(FIELDS[path], choices=(*choices, name))


def flatten(config: Config) -> dict[str, Any]:
  """{'model.d_model': 512, ...} in the order of the file."""
  rooms = dataclasses.asdict(config)
  return {
    path: rooms[path.split('.')[0]][path.split('.')[1]] for path in FIELDS
  }


def override(config: Config, values: Mapping[str, Any]) -> Config:
  """`config` with the dotted paths of `values` replaced.

  Raises:
    ConfigError: for an unknown path, a value of another type or one that is
      not among the field's choices.
  """
  rooms: dict[str, dict[str, Any]] = {}
  for path, value in values.items():
    if path not in FIELDS:
      raise ConfigError(f'no config field {path}{closest(path, FIELDS)}')
    field = FIELDS[path]
    if field.type is float and type(value) is int:
      value = float(value)
    if type(value) is not field.type:
      raise ConfigError(f'{path} takes a {field.type.__name__}, not {value!r}')
    if field.type is float and not math.isfinite(value):
      raise ConfigError(f'{path}={value} must be finite')
    if field.choices is not None and value not in field.choices:
      raise ConfigError(
        f'{path}={value} is not one of {", ".join(field.choices)}'
      )
    room, name = path.split('.')
    rooms.setdefault(room, {})[name] = value
  return dataclasses.replace(
    config,
    **{
      room: dataclasses.replace(getattr(config, room), **changes)
      for room, changes in rooms.items()
    },
  )


def to_json(config: Config) -> str:
  """The whole config as text, one field a line."""
  return json.dumps(flatten(config), indent=2, ensure_ascii=False)


def from_json(text: str) -> Config:
  """The inverse of `to_json`; fields that are absent keep their default."""
  return override(Config(), json.loads(text))


def difference(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
  """{path: (old value, new value)} of the fields that differ."""
  before, after = flatten(old), flatten(new)
  return {
    path: (before[path], after[path])
    for path in FIELDS
    if before[path] != after[path]
  }
