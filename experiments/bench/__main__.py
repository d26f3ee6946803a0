"""How fast: training, where its time goes, decoding, reading data.

  python -m experiments.bench --suite=train
  python -m experiments.bench --suite=decode --workdir=runs/tiny --split=val
  python -m experiments.bench --suite=data --pairs=5000000
  python -m experiments.bench --suite=attention --rounds=3

train      target tokens a second, and the same step in PyTorch
breakdown  where the time of our step goes, and how near the peak it comes
decode     sentences a second of beam search
data       a large corpus: opening it, batches a second, memory
attention  dot and additive, by length and implementation: time, memory
population a step of 1 to 16 runs that share a program, against lone ones
memory     peak of a training step as its program says, against the measured
long       the same of a step on 4,096 tokens with the additive score
cost       of every score and way to join positions: parameters, FLOPs, time
all        one after the other

What is compared runs in one process by turns; the figure is the median over
the rounds. The table goes to stdout, progress to stderr. On a machine that
does something else meanwhile the figures say nothing. The model is that of
--preset=tiny with dropout 0.1 and its layers unrolled, of `population` and
`cost` the small one of the studies; fields are flags, as everywhere.
"""

import pathlib
import types
from collections.abc import Callable
from typing import TYPE_CHECKING

from experiments.bench import measure
from experiments.bench.measure import Row
from transformer_jax import flags
from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import override

if TYPE_CHECKING:
  from experiments.bench.train import Sizes

# What a suite reads beside --rounds: flags of its own, and the config's fields.
BATCH = ('rows', 'length', 'steps')
READS: dict[str, tuple[str, ...]] = {
  'train': (*BATCH, 'fields'),
  'breakdown': (*BATCH, 'fields'),
  'decode': ('sentences', 'workdir', 'split', 'fields'),
  'data': ('pairs', 'fields'),
  'attention': (),
  'population': ('fields',),
  'memory': ('fields',),
  'long': ('fields',),
  'cost': ('fields',),
}
SUITES = tuple(READS)

EXTRA = (
  flags.Flag('suite', str, 'all', 'what to measure', choices=(*SUITES, 'all')),
  flags.Flag('rounds', int, 5, 'turns of each contestant'),
  flags.Flag('rows', int, 64, 'sentence pairs in a training batch'),
  flags.Flag('length', int, 32, 'tokens of each side in a training batch'),
  flags.Flag('steps', int, 8, 'training steps a turn, made in one call'),
  flags.Flag('sentences', int, 1000, 'to decode, when there is no run'),
  flags.Flag('workdir', str, '', 'run to decode with; none: an untrained one'),
  flags.Flag('split', str, '', 'of the run; data.test_split by default'),
  flags.Flag('pairs', int, 200_000, 'sentence pairs to read as data'),
  flags.Flag('json', str, '', 'file for the rows, one JSON object a line'),
)
POSITIVE = ('rounds', 'rows', 'length', 'steps', 'sentences', 'pairs')


def base(options: types.SimpleNamespace) -> Config:
  """The config that flags are laid upon: the run's, or the benchmark's."""
  if options.workdir:
    from transformer_jax.inference import restore

    return restore.config_of(options)
  from experiments.presets import PRESETS

  tiny = override(Config(), PRESETS['tiny'].overrides)
  fixed = {'model.dropout': 0.1, 'model.layer_loop': 'unroll'}
  return override(tiny, fixed)


def check(options: types.SimpleNamespace) -> None:
  """Refuse options that cannot be measured.

  Raises:
    ConfigError: names the option.
  """
  for name in POSITIVE:
    if getattr(options, name) < 1:
      raise ConfigError(f'--{name}={getattr(options, name)} must be at least 1')
  if options.workdir and options.suite != 'decode':
    raise ConfigError('--workdir goes with --suite=decode only')
  if options.split and not options.workdir:
    raise ConfigError('--split needs --workdir')
  given = dict.fromkeys(options.overrides, 'fields')
  for flag in EXTRA:
    if getattr(options, flag.name) != flag.default:
      given[flag.name] = flag.name
  reads = {*READS.get(options.suite, given.values()), 'suite', 'rounds', 'json'}
  for name, kind in given.items():
    if kind not in reads:
      raise ConfigError(
        f'--suite={options.suite} does not read --{name}: '
        + ', '.join(suite for suite, own in READS.items() if kind in own)
        + ' do'
      )


def _sizes(options: types.SimpleNamespace) -> 'Sizes':
  from experiments.bench.train import Sizes

  return Sizes(options.rows, options.length, options.steps)


def _train(config: Config, options: types.SimpleNamespace) -> list[Row]:
  from experiments.bench import train

  return train.suite(config, _sizes(options), options.rounds)


def _breakdown(config: Config, options: types.SimpleNamespace) -> list[Row]:
  from experiments.bench import breakdown

  return breakdown.suite(config, _sizes(options), options.rounds)


def _decode(config: Config, options: types.SimpleNamespace) -> list[Row]:
  from experiments.bench import decode

  if options.workdir:
    job = decode.of_run(config, options.workdir, options.split)
  else:
    job = decode.generated(config, options.sentences)
  return decode.suite(job, options.rounds)


def _data(config: Config, options: types.SimpleNamespace) -> list[Row]:
  from experiments.bench import data

  return data.suite(config.data, pairs=options.pairs, rounds=options.rounds)


def _attention(config: Config, options: types.SimpleNamespace) -> list[Row]:
  from experiments.bench import attention

  del config  # one attention, not a model
  return attention.suite(options.rounds)


def _population(config: Config, options: types.SimpleNamespace) -> list[Row]:
  from experiments.bench import population

  del config  # Not the benchmark's model but that of the studies.
  return population.suite(options.overrides, options.rounds)


def _memory(config: Config, options: types.SimpleNamespace) -> list[Row]:
  from experiments.bench import memory

  del options  # Its cases are fixed.
  return memory.suite(config, 'memory')


def _long(config: Config, options: types.SimpleNamespace) -> list[Row]:
  from experiments.bench import memory

  del options  # Its case is fixed.
  return memory.suite(config, 'long')


def _cost(config: Config, options: types.SimpleNamespace) -> list[Row]:
  from experiments.bench import cost

  del config  # Not the benchmark's model but that of the studies.
  return cost.suite(options.overrides, options.rounds)


Suite = Callable[[Config, types.SimpleNamespace], list[Row]]
RUN: dict[str, Suite] = {
  'train': _train,
  'breakdown': _breakdown,
  'decode': _decode,
  'data': _data,
  'attention': _attention,
  'population': _population,
  'memory': _memory,
  'long': _long,
  'cost': _cost,
}


def main(config: Config, options: types.SimpleNamespace) -> None:
  """Measure, print, keep."""
  check(options)
  names = SUITES if options.suite == 'all' else (options.suite,)
  if 'breakdown' in names:
    # Before the suites that come first, which take minutes.
    from experiments.bench import breakdown

    breakdown.counted_products(config, _sizes(options))
  found = measure.machine()
  print(measure.head(found), flush=True)
  rows: list[Row] = []
  for name in names:
    part = RUN[name](config, options)
    print(f'\n{name}\n{measure.table(part)}', flush=True)
    rows += part
  if options.json:
    path = pathlib.Path(options.json).expanduser()
    try:
      path.write_text(measure.json_lines(found, rows), encoding='utf-8')
    except OSError as error:
      raise ConfigError(f'{path} cannot be written: {error.strerror}') from None


if __name__ == '__main__':
  flags.run(main, extra=EXTRA, base=base)
