"""Score a trained run on a split or on two files; one JSON line on stdout.

    python -m experiments.evaluate --workdir=W --split=test
    python -m experiments.evaluate --workdir=W --source=FILE --reference=FILE

Loss, perplexity and accuracy are those of the references by teacher forcing,
in nats a token without label smoothing. `exact` is the share of references
whose every token was the likeliest, `exact_translations` the share of
translations that equal their reference. BLEU and chrF are of the translations,
with sacrebleu's signatures; `length_ratio` is their tokens over those of the
references. Text that is already tokenised (data.text=pretokenized) is scored as
it stands, under the names tokenized_bleu and tokenized_chrf.

On a split of task:korean `korean` says what the translations get right: the
share of sentences (exact), of particles after nouns, of tenses and negations in
short sentences, of pronouns whose noun is right, and of predicate nouns at the
end of long sentences; and, where distances differ, each by distance, the number
of clauses between a question and its answer.

The line is kept in WORKDIR/results as well.
"""

import contextlib
import hashlib
import json
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformer_jax import flags
from transformer_jax.config import Config, ConfigError, DataConfig
from transformer_jax.inference import restore
from transformer_jax.training import hosts, peers
from transformer_jax.training.guard import leave_on_signal

if TYPE_CHECKING:
  from transformer_jax.inference.evaluate import PairScore
  from transformer_jax.inference.translate import Translations

Pairs = Sequence[tuple[str, str]]

EXTRA = (
  flags.Flag('workdir', str, '', "the run's folder", required=True),
  flags.Flag('split', str, '', 'split of the data; data.test_split by default'),
  flags.Flag('source', str, '', 'file to translate, instead of a split'),
  flags.Flag('reference', str, '', 'file with its translation, by line'),
  flags.Flag(
    'tokenize',
    str,
    '',
    "sacrebleu's tokenizer of raw text, as ko-mecab; 13a by default",
  ),
  *hosts.FLAGS,
)


def file_lines(path: str) -> list[str]:
  """Sentences of a file, plain or gzip.

  Raises:
    ConfigError: it cannot be read, is empty or is not UTF-8.
  """
  import gzip
  import zlib

  from transformer_jax.data.files import decoded_lines

  name = pathlib.Path(path).expanduser()
  try:
    with gzip.open(name) if name.suffix == '.gz' else open(name, 'rb') as file:
      lines = decoded_lines(file, path)
  except (OSError, EOFError, zlib.error) as error:
    raise ConfigError(
      f'{path} cannot be read: {getattr(error, "strerror", None) or error}'
    ) from None
  if not lines:
    raise ConfigError(f'{path} is empty')
  return lines


def split_pairs(
  data: DataConfig, split: str, workdir: str | None
) -> list[tuple[str, str]]:
  """Source and target sentences of a split of the run's own data."""
  from transformer_jax.data.corpus import open_corpus
  from transformer_jax.data.sources import open_text

  if data.source.startswith('task:'):
    corpus = open_corpus(data, workdir=workdir, progress=hosts.say)
    return corpus.references(split)
  # Not the corpus: that would want the training text, which can be elsewhere.
  text = open_text(data)
  text.check(split)
  return list(text.pairs(split))


def chosen_pairs(
  config: Config, options: types.SimpleNamespace
) -> tuple[str, list[tuple[str, str]]]:
  """What to call the pairs, and the pairs.

  Raises:
    ConfigError: flags that do not go together, or input that is not usable.
  """
  if bool(options.source) != bool(options.reference):
    raise ConfigError('--source and --reference are given together')
  if not options.source:
    split = options.split or config.data.test_split
    return split, split_pairs(config.data, split, options.workdir)
  if options.split:
    raise ConfigError('give --split, or --source and --reference')
  sides = file_lines(options.source), file_lines(options.reference)
  if len(sides[0]) != len(sides[1]):
    raise ConfigError(
      f'{options.source} has {len(sides[0])} lines but {options.reference} '
      f'has {len(sides[1])}: they must be aligned line by line'
    )
  return pathlib.Path(options.source).name, list(zip(*sides, strict=True))


def scored(
  run: restore.Run, pairs: Pairs, check: Callable[[], None]
) -> list['PairScore']:
  """How well the model predicts the reference of each pair."""
  from transformer_jax.inference.evaluate import score_pairs

  with restore.watched(run, check) as alive:
    return score_pairs(
      run.model,
      run.params,
      pairs,
      vocabularies=run.vocabularies,
      max_tokens=run.config.decode.max_tokens,
      progress=lambda done, total: alive(),
      layout=run.layout,
    )


def translated(
  run: restore.Run, pairs: Pairs, check: Callable[[], None]
) -> 'Translations':
  """The translation of each source; progress on stderr."""
  from transformer_jax.inference.translate import translate_sentences

  said = 0

  def progress(done: int, total: int) -> None:
    nonlocal said
    if done > said:
      hosts.say(f'translated {done:,} of {total:,}')
    said = done
    alive()

  with restore.watched(run, check) as alive:
    return translate_sentences(
      run.model,
      run.params,
      [source for source, _ in pairs],
      vocabularies=run.vocabularies,
      options=run.config.decode,
      progress=progress,
      layout=run.layout,
    )


def parts(
  data: DataConfig, texts: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
  """What is right in translations of task:korean; nothing of other data."""
  if data.source != 'task:korean':
    return {}
  from transformer_jax.data.korean import score

  language = data.pair.rpartition('-')[2]
  return dict(korean=score.shares(texts, references, language))


def scores(
  run: restore.Run,
  pairs: Pairs,
  options: types.SimpleNamespace,
  check: Callable[[], None],
) -> dict[str, Any]:
  """Everything that is measured on the pairs; a check after each batch."""
  from transformer_jax.inference import evaluate

  references = [reference for _, reference in pairs]
  data, tokenize = run.config.data, options.tokenize
  text = data.text
  # Of nothing, so that a missing tokenizer is told before the work.
  evaluate.bleu([''], [''], text=text, tokenize=tokenize)
  forced = evaluate.scores_of_pairs(scored(run, pairs, check))
  hosts.say(f'loss {forced.loss:.4f}, accuracy {forced.accuracy:.4f}')
  start = time.monotonic()
  found = translated(run, pairs, check)
  seconds = time.monotonic() - start
  # A file's sentences may be none of the task's.
  own = {} if options.source else parts(data, found.texts, references)
  return dict(
    **forced._asdict(),
    **evaluate.bleu(found.texts, references, text=text, tokenize=tokenize),
    exact_translations=evaluate.exact_share(found.texts, references),
    **own,
    seconds=round(seconds, 3),
    sentences_per_second=round(len(pairs) / seconds, 2),
    padding_steps=round(found.padding, 4),
  )


def results_path(workdir: str, name: str, result: dict[str, Any]) -> str:
  """WORKDIR/results/NAME-STRATEGY-STEP-HASH.json: other settings, another file.

  The hash is of all that makes the numbers: how text was decoded, tokenised
  and where it was read.
  """
  decode, steps = result['decode'], result['checkpoint_steps']
  kind = decode['strategy']
  if kind == 'beam':
    kind += f'{decode["beam_size"]}-alpha{decode["alpha"]:g}'
  settings = [
    result[key] for key in ('decode', 'tokenize', 'files', 'checkpoint_steps')
  ]
  text = json.dumps(settings, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  folder = pathlib.Path(workdir).expanduser() / 'results'
  # A split may lie in a folder of its own.
  split = name.replace('/', '-')
  file = f'{split}-{kind}-step{steps[0]}-average{len(steps)}-{digest}.json'
  return str(folder / file)


def named_files(options: types.SimpleNamespace) -> list[str]:
  """What flags say to read instead of what the run was trained on."""
  paths = [options.source, options.reference]
  if not options.source:
    paths = [options.overrides.get('data.source', '').partition(':')[2]]
  return [
    str(pathlib.Path(path).expanduser().absolute()) for path in paths if path
  ]


def main(config: Config, options: types.SimpleNamespace) -> None:
  """Score, print one line, keep it."""
  hosts.start(options)
  with prepared(options) as check:
    evaluate_run(config, options, check)


@contextlib.contextmanager
def prepared(options: types.SimpleNamespace) -> Iterator[Callable[[], None]]:
  """Joins all processes; yields a check to be called between batches.

  The program leaves when a signal comes. An error of the system becomes one
  line.
  """
  try:
    with peers.watched(), leave_on_signal() as check, hosts.first_speaks():
      yield check
  except OSError as error:
    raise ConfigError(
      f'{error.filename or options.workdir}: {error.strerror or error}; '
      'mend this and run the same command again'
    ) from error


def evaluate_run(
  config: Config, options: types.SimpleNamespace, check: Callable[[], None]
) -> None:
  import dataclasses

  from transformer_jax.inference.evaluate import tokenizer
  from transformer_jax.training.compiled import use_cache
  from transformer_jax.training.record import write_atomically

  use_cache(config)
  tokenize = tokenizer(config.data.text, options.tokenize)
  name, pairs = chosen_pairs(config, options)
  run = restore.load_run(options.workdir, config)
  hosts.say(f'{len(pairs):,} pairs of {name}; checkpoints {run.steps}')
  result = dict(
    split=name,
    **scores(run, pairs, options, check),
    tokenize=tokenize,
    files=named_files(options),
    checkpoint_steps=run.steps,
    decode=dataclasses.asdict(config.decode),
  )
  if not hosts.first():
    return
  line = json.dumps(result, ensure_ascii=False)
  print(line, flush=True)
  path = pathlib.Path(results_path(options.workdir, name, result))
  try:
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, line + '\n')
  except OSError as error:
    raise ConfigError(f'{path} cannot be written: {error.strerror}') from None


if __name__ == '__main__':
  flags.run(main, extra=EXTRA, base=restore.config_of)
