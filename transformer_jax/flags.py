"""absl flags derived from `config.py`: nothing is declared twice.

Every field of the config is a flag by its dotted path, typed, with its
allowed values and default in `--help`. A program ends with

    if __name__ == '__main__':
      flags.run(main, extra=EXTRA)

where `main(config, options)` gets the finished config and the program's own
flags. What the user got wrong is answered in one line on stderr and exit
code 2 before `main` is entered; so a program imports JAX inside `main`, and a
typing error costs nobody the seconds of that import.
"""

import io
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from absl import flags as absl_flags

from transformer_jax import plugins
from transformer_jax.config import Config, ConfigError, closest
from transformer_jax.fields import FIELDS, override
from transformer_jax.rules import admit_given, validate

INTERRUPTED = 130  # exit code: a Ctrl-C, as shells say it
type_names = {int: 'integer', float: 'number', str: 'text', bool: 'switch'}


class Flag(NamedTuple):
  """A flag that belongs to one program and not to the experiment."""

  name: str
  type: type
  default: Any
  help: str
  required: bool = False
  choices: tuple[str, ...] | None = None


Main = Callable[[Config, types.SimpleNamespace], int | None]
Base = Callable[[types.SimpleNamespace], Config]

# What every program understands besides the config's fields.
COMMON = (
  Flag('preset', str, '', 'named config to start from; list shows them'),
  Flag('plugin', str, '', 'FILE.py that adds choices; imported first'),
  Flag('help', bool, False, 'show this text'),
  Flag('helpfull', bool, False, 'the same'),
)


class _Parser(absl_flags.ArgumentParser):
  """Text to a typed value; its errors name what would have been right."""

  def __init__(self, wanted: type, choices: tuple[str, ...] | None) -> None:
    super().__init__()
    self.wanted = wanted
    self.choices = choices

  def parse(self, argument: Any) -> Any:
    value: Any
    try:
      value = self.wanted(argument)
    except ValueError:
      value = math.nan
    if value != value or value in (math.inf, -math.inf):
      kind = 'an integer' if self.wanted is int else 'a finite number'
      raise ValueError(f'takes {kind}')
    if self.choices is not None and value not in self.choices:
      near = closest(value, list(self.choices))
      raise ValueError(f'is not one of {", ".join(self.choices)}{near}')
    return value

  def flag_type(self) -> str:
    return type_names[self.wanted]


class _SwitchParser(absl_flags.BooleanParser):
  """As absl's, with an error that a reader can use."""

  def parse(self, argument: Any) -> bool:
    try:
      return super().parse(argument)
    except (TypeError, ValueError):
      raise ValueError('is neither true nor false') from None


def define(extra: Sequence[Flag] = ()) -> absl_flags.FlagValues:
  """All flags of a program: the config's fields, the common ones, `extra`."""
  values = absl_flags.FlagValues()
  # Words between flags are collected, not an end of all flags.
  values.set_gnu_getopt(True)
  config_flags = [
    Flag(f.path, f.type, f.default, f.help, choices=f.choices)
    for f in FIELDS.values()
  ]
  for flag in (*config_flags, *COMMON, *extra):
    if flag.type is bool:
      switch = absl_flags.BooleanFlag(flag.name, flag.default, flag.help)
      switch.parser = _SwitchParser()
      absl_flags.DEFINE_flag(switch, values)
    else:
      absl_flags.DEFINE(
        _Parser(flag.type, flag.choices),
        flag.name,
        flag.default,
        flag.help,
        flag_values=values,
        serializer=absl_flags.ArgumentSerializer(),
      )
  return values


def _flagfiles_first(arguments: Sequence[str]) -> list[str]:
  """Flags win over flag files wherever on the line the files stand."""
  files: list[str] = []
  rest: list[str] = []
  words = iter(arguments)
  for word in words:
    if word in ('--flagfile', '-flagfile'):
      word = '--flagfile=' + next(words, '')
    if word.startswith(('--flagfile=', '-flagfile=')):
      if word.endswith('='):
        raise ConfigError('--flagfile needs the name of a file')
      files.append(word)
    else:
      rest.append(word)
  return files + rest


def _parse_values(
  arguments: Sequence[str], extra: Sequence[Flag]
) -> absl_flags.FlagValues:
  """Flag values of the words of a command line, without the program's name."""
  plugins.load(arguments)
  values = define(extra)
  try:
    stray = values(['program', *_flagfiles_first(arguments)])[1:]
  except absl_flags.UnrecognizedFlagError as error:
    near = closest(error.flagname, list(values))
    raise ConfigError(f'no flag --{error.flagname}{near}') from error
  except absl_flags.IllegalFlagValueError as error:
    # absl says `flag --NAME=VALUE: REASON`.
    text = str(error).removeprefix('flag ').replace(': ', ' ', 1)
    raise ConfigError(' '.join(text.split())) from error
  except (absl_flags.Error, ValueError) as error:
    text = str(error).removeprefix('ERROR:: ')
    raise ConfigError(' '.join(text.split())) from error
  if values['plugin'].value and not plugins.loaded(values['plugin'].value):
    raise ConfigError('--plugin is read before any --flagfile: give it itself')
  if stray:
    raise ConfigError(f'stray word {stray[0]!r}: flags look like --NAME=VALUE')
  return values


def _presets() -> Mapping[str, Any]:
  # Imported late: presets are what is asked, and stand below the package.
  from experiments.presets import PRESETS

  return PRESETS


def parse(
  arguments: Sequence[str],
  *,
  extra: Sequence[Flag] = (),
  base: Base | None = None,
) -> tuple[Config, types.SimpleNamespace]:
  """Config and options of a command line.

  Args:
    arguments: the words after the program's name.
    extra: the program's own flags.
    base: options -> the config that preset and flags are laid upon; by
      default the paper's base model. A program that works on a finished run
      loads that run's config here.

  Returns:
    The valid config, and a namespace with one attribute for each of `extra`,
    `preset`, `overrides`: {path: value} that preset and user asked for, and
    `given`: paths of those that the user gave.

  Raises:
    ConfigError: with one line, for anything that cannot be used.
  """
  return _finished(_parse_values(arguments, extra), extra, base)


def _finished(
  values: absl_flags.FlagValues, extra: Sequence[Flag], base: Base | None
) -> tuple[Config, types.SimpleNamespace]:
  """What `parse` returns, of words that are flag values already."""
  for flag in extra:
    if flag.required and not values[flag.name].present:
      raise ConfigError(f'--{flag.name} is needed: {flag.help}')
    # As a variable leaves it that the shell does not know.
    if flag.required and not str(values[flag.name].value).strip():
      raise ConfigError(f'--{flag.name} is empty: {flag.help}')
  overrides: dict[str, Any] = {}
  preset = values['preset'].value
  if preset:
    presets = _presets()
    if preset not in presets:
      near = closest(preset, list(presets))
      raise ConfigError(
        f'--preset={preset} is not one of {", ".join(presets)}{near}'
      )
    overrides.update(presets[preset].overrides)
  given = [path for path in FIELDS if values[path].present]
  overrides.update((path, values[path].value) for path in given)
  options = types.SimpleNamespace(
    preset=preset,
    overrides=overrides,
    given=given,
    **{flag.name: values[flag.name].value for flag in extra},
  )
  start = Config() if base is None else base(options)
  config = override(start, overrides)
  validate(config)
  # A preset, or a run, may hold what another strategy reads; a person who
  # gives it wants it read. Of a study an arm may read it.
  admit_given(
    config,
    [path for path in given if base is None or path.startswith('decode.')],
  )
  return config, options


def _help_line(flag: Flag) -> str:
  name = f'  --{flag.name}'
  if flag.type is not bool:
    name += f'={"|".join(flag.choices or (type_names[flag.type],))}'
  ending = '' if flag.default in ('', None, False) else f' [{flag.default}]'
  return f'{name}{" (needed)" if flag.required else ""}\n      ' + (
    flag.help + ending
  )


def help_text(main: Main, extra: Sequence[Flag]) -> str:
  """The program's docstring and all its flags, defaults in brackets."""
  lines = [(sys.modules[main.__module__].__doc__ or '').strip(), '']
  lines += ['Flags of this program:']
  lines += [_help_line(flag) for flag in (*extra, *COMMON)]
  lines += ['  --flagfile=FILE\n      flags from a file, one a line']
  room = ''
  for field in FIELDS.values():
    if field.path.split('.')[0] != room:
      room = field.path.split('.')[0]
      lines += ['', f'Flags of the config, {room}:']
    lines.append(
      _help_line(
        Flag(
          field.path,
          field.type,
          field.default,
          field.help,
          choices=field.choices,
        )
      )
    )
  return '\n'.join(lines)


def _fail(error: ConfigError) -> NoReturn:
  print('error:', ' '.join(str(error).split()), file=sys.stderr)
  sys.exit(2)


def run(
  main: Main,
  *,
  extra: Sequence[Flag] = (),
  base: Base | None = None,
  arguments: Sequence[str] | None = None,
) -> NoReturn:
  """Parse the command line, call `main`, exit.

  Precedence: `base`, then preset, then flag file, then flags; the later wins.
  Exit code: what `main` returns (None is 0), or, with one line on stderr, 2
  for a ConfigError, raised here or anywhere inside `main`, and 130 for Ctrl-C.

  Args:
    main: called with the config and the options, see `parse`.
    extra: the program's own flags.
    base: see `parse`.
    arguments: the words to parse; the command line's by default.
  """
  words = sys.argv[1:] if arguments is None else arguments
  # Text is UTF-8 going out as it is coming in, whatever the locale.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(encoding='utf-8', errors=sys.stdout.errors)
  # Libraries that look at absl's own flags find them parsed, all at defaults.
  absl_flags.FLAGS.mark_as_parsed()
  try:
    values = _parse_values(words, extra)
    if values['help'].value or values['helpfull'].value:
      print(help_text(main, extra))
      sys.exit(0)
    if values['preset'].value == 'list':
      for name, preset in _presets().items():
        print(f'{name:10} {preset.doc}')
      sys.exit(0)
    config, options = _finished(values, extra, base)
    sys.exit(main(config, options))
  except ConfigError as error:
    _fail(error)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(INTERRUPTED)
