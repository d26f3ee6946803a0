"""Translate lines, or score given translations, with a trained run.

    python -m experiments.translate --workdir=W < source.txt > translation.txt

One line in, one line out, in order; an empty line stays empty. With
--decode.n_best=5 every line becomes up to five, best first:

    LINE ||| HYPOTHESIS ||| SCORE

LINE counts from 1; SCORE is the log-probability over the length penalty;
samples have no penalty. With --score a line in is SOURCE, a tab and
TARGET, and a line out is the target's log-probability in nats, a tab and the
same per token (the end of the sentence is a token).
"""

import contextlib
import errno
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from experiments.evaluate import prepared
from transformer_jax import flags
from transformer_jax.config import Config, ConfigError
from transformer_jax.inference import restore
from transformer_jax.training import hosts

if TYPE_CHECKING:
  from transformer_jax.inference.translate import Translation

EXTRA = (
  flags.Flag('workdir', str, '', "the run's folder", required=True),
  flags.Flag('score', bool, False, 'score SOURCE<tab>TARGET lines instead'),
  *hosts.FLAGS,
)

# What scoring given translations reads of decoding.
READ_BY_SCORE = ('decode.max_tokens', 'decode.average', 'decode.checkpoint')

# Lines that are sorted by length together; their output is written before the
# next ones are begun.
LINES = 1 << 14


def pairs_of(lines: Sequence[str]) -> list[tuple[str, str]]:
  """Source and target of each line.

  Raises:
    ConfigError: a line that has no tab, or more than one.
  """
  pairs = []
  for number, line in enumerate(lines, 1):
    source, *target = line.split('\t')
    if len(target) != 1:
      raise ConfigError(
        f'stdin, line {number}: {len(target)} tabs where one is needed, '
        'between source and target'
      )
    pairs.append((source, target[0]))
  return pairs


def admit_scoring(overrides: Iterable[str]) -> None:
  """Refuse flags of a search where nothing is searched."""
  for path in overrides:
    if path.startswith('decode.') and path not in READ_BY_SCORE:
      raise ConfigError(
        f'--{path} has no effect with --score, which scores the translations '
        'that are given: leave out one of them'
      )


def chunks(total: int) -> Iterator[slice]:
  for start in range(0, total, LINES):
    yield slice(start, start + LINES)


def shown(
  line: int, found: Sequence['Translation'], n_best: int
) -> Iterator[str]:
  """What is printed of the hypotheses of one line."""
  if n_best == 1:
    yield found[0].text
    return
  for hypothesis in found:
    yield f'{line} ||| {hypothesis.text} ||| {hypothesis.score:.6f}'


def put(texts: Iterable[str]) -> None:
  """Prints lines.

  Raises:
    BrokenPipeError: the reader has enough; on all processes, as the other.
    ConfigError: nothing more can be written.
  """
  failed = 0
  try:
    for text in texts:
      print(text)
    sys.stdout.flush()
  except OSError as error:
    failed = error.errno or errno.EIO
    # Python flushes stdout once more at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  failed = hosts.agreed(failed)
  if failed == errno.EPIPE:
    raise BrokenPipeError
  if failed:
    raise ConfigError(f'stdout cannot be written: {os.strerror(failed)}')


def translate(
  run: restore.Run, lines: Sequence[str], check: Callable[[], None]
) -> None:
  """Print the translation of every line."""
  from transformer_jax.inference.grouping import encode
  from transformer_jax.inference.translate import translate_sentences

  model, vocabulary = run.model.config, run.vocabularies.source
  if model.longest('encoder'):
    # Before any work: a line that is refused is refused at once.
    for part in chunks(len(lines)):
      encode(lines[part], vocabulary, config=model, first_line=part.start + 1)
  said = 0
  for part in chunks(len(lines)):
    first = part.start + 1

    def progress(done: int, total: int, before: int = part.start) -> None:
      nonlocal said
      if before + done > said:
        text = f'\r{before + done:,} of {len(lines):,} lines'
        hosts.say(text, end='' if done < total else '\n')
      said = before + done
      alive()

    # Not around what is read and printed: a pipe may be slow.
    with restore.watched(run, check) as alive:
      found = translate_sentences(
        run.model,
        run.params,
        lines[part],
        vocabularies=run.vocabularies,
        options=run.config.decode,
        first_line=first,
        progress=progress,
        layout=run.layout,
      )
    put(
      text
      for line, hypotheses in enumerate(found.hypotheses, first)
      for text in shown(line, hypotheses, run.config.decode.n_best)
    )


def score(
  run: restore.Run, pairs: Sequence[tuple[str, str]], check: Callable[[], None]
) -> None:
  """Print the log-probability of every target."""
  from transformer_jax.inference.evaluate import score_pairs

  for part in chunks(len(pairs)):
    with restore.watched(run, check) as alive:
      found = score_pairs(
        run.model,
        run.params,
        pairs[part],
        vocabularies=run.vocabularies,
        max_tokens=run.config.decode.max_tokens,
        first_line=part.start + 1,
        progress=lambda done, total: alive(),
        layout=run.layout,
      )
    put(
      f'{pair.log_prob:.6f}\t{pair.log_prob / pair.tokens:.6f}'
      for pair in found
    )


def main(config: Config, options: types.SimpleNamespace) -> int:
  """Stdin to stdout, until the reader has enough."""
  if sys.stdin is None or sys.stdout is None:
    raise ConfigError('stdin or stdout is closed: lines in, lines out')
  hosts.start(options)
  # As `translate | head` leaves it.
  with prepared(options) as check, contextlib.suppress(BrokenPipeError):
    translate_lines(config, options, check)
  return 0


def translate_lines(
  config: Config, options: types.SimpleNamespace, check: Callable[[], None]
) -> None:
  from transformer_jax.data.files import decoded_lines

  if options.score:
    admit_scoring(options.overrides)
  lines = decoded_lines(hosts.shared(sys.stdin.buffer), 'stdin')
  pairs = pairs_of(lines) if options.score else []
  from transformer_jax.training.compiled import use_cache

  use_cache(config)
  run = restore.load_run(options.workdir, config)
  steps = ', '.join(map(str, run.steps))
  hosts.say(f'checkpoint {steps} of {options.workdir}')
  if options.score:
    score(run, pairs, check)
  else:
    translate(run, lines, check)


if __name__ == '__main__':
  flags.run(main, extra=EXTRA, base=restore.config_of)
