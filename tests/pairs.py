"""Every pair of choices, and few configs that hold all those that are valid."""

import itertools
from collections.abc import Iterator, Mapping

from tests.choices import ELSEWHERE, base
from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import FIELDS, override
from transformer_jax.rules import validate

AXES = {
  path: field.choices
  for path, field in FIELDS.items()
  if path.startswith(('model.', 'optim.')) and field.choices
}
Pair = frozenset[tuple[str, str]]


def pairs() -> Iterator[Pair]:
  """Every two choices of different axes."""
  for first, second in itertools.combinations(AXES, 2):
    for one, other in itertools.product(AXES[first], AXES[second]):
      yield frozenset({(first, one), (second, other)})


def config_of(choices: Mapping[str, str] | Pair) -> Config:
  return override(base(), dict(choices))


def refusal(config: Config) -> str:
  """Why it is refused; '' if it is not."""
  try:
    validate(config)
  except ConfigError as error:
    return str(error)
  return ''


def covering() -> list[dict[str, str]]:
  """Valid sets of choices, in which each valid pair occurs at least once.

  Of what runs on this machine.
  """
  here = {
    path: [c for c in choices if f'{path}={c}' not in ELSEWHERE]
    for path, choices in AXES.items()
  }
  left = {
    pair
    for pair in pairs()
    if all(choice in here[path] for path, choice in pair)
    and not refusal(config_of(pair))
  }
  # In the order of the file: a set has none.
  order = [pair for pair in pairs() if pair in left]
  found = []
  for pair in order:
    if pair not in left:
      continue
    chosen = dict(pair)
    for path, choices in here.items():
      if path in chosen:
        continue
      news = {
        choice: sum(
          frozenset({(path, choice), entry}) in left for entry in chosen.items()
        )
        for choice in choices
      }
      for choice in sorted(choices, key=lambda choice: -news[choice]):
        wanted = chosen | {path: choice}
        if not refusal(config_of(wanted)):
          chosen = wanted
          break
    found.append(chosen)
    left -= {
      frozenset(two) for two in itertools.combinations(chosen.items(), 2)
    }
  return found
