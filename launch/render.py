"""A template with its names filled in.

    python -m launch.render launch/kubernetes/train.yaml name=base hosts=4 ...

A template says `$name` where a value goes and `$$` for a dollar sign. A name
without a value, or a value without a name, is refused.
"""

import pathlib
import string
import sys
from collections.abc import Mapping, Sequence

from transformer_jax.config import ConfigError


def names(text: str) -> set[str]:
  """What a template asks for."""
  return set(string.Template(text).get_identifiers())


def render(path: str | pathlib.Path, values: Mapping[str, str]) -> str:
  """The text of a template with `values` in place of its names.

  Raises:
    ConfigError: names what is missing or not asked for.
  """
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
  except OSError as error:
    raise ConfigError(f'{path}: {error.strerror}') from None
  wanted = names(text)
  for what, found in (
    ('needs', wanted - set(values)),
    ('does not ask for', set(values) - wanted),
  ):
    if found:
      raise ConfigError(f'{path} {what} {", ".join(sorted(found))}')
  return string.Template(text).substitute(values)


def main(words: Sequence[str]) -> int:
  try:
    path, *pairs = words or ['']
    wrong = [pair for pair in pairs if '=' not in pair]
    if not path or wrong:
      raise ConfigError('usage: python -m launch.render FILE NAME=VALUE ...')
    print(render(path, dict(pair.split('=', 1) for pair in pairs)), end='')
  except ConfigError as error:
    print('error:', error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
