"""Reading data: how soon a large corpus is open, how fast its batches come.

The corpus is generated text, encoded once into the token cache. Then a fresh
process with one core opens it and reads batches: its memory holds neither JAX
nor anything that made the cache. Another one trains a model of almost no size,
so that what is resident is due to the data and the loop.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.bench.measure import Row, fact, row, say
from transformer_jax.config import DataConfig

WORDS = 20_000
LANGUAGES = ('xx', 'yy')
LOG_LENGTH = (2.9, 0.5)  # of words in a sentence: about 20, like news text
LOG_RATIO = 0.1  # by which either side is longer or shorter
LENGTHS = (1, 100)
BLOCK = 50_000  # pairs written at once
BATCHES = 200  # read in a round
HELD_OUT = 64  # pairs, for the run that trains
TRAIN_TOKENS = 4096  # of its batches
STEPS = {'train.steps': 4}
STATUS = pathlib.Path('/proc/self/status')


class Reading(NamedTuple):
  """What the fresh process found."""

  open_seconds: float  # vocabulary, checks, token cache
  plan_seconds: float  # lengths, shapes, batches of each
  first_seconds: float  # the first batch, with the order of the epoch
  rates: tuple[float, ...]  # tokens a second, of each round
  epoch_seconds: float  # a whole epoch at the median rate, the order included
  tokens: int  # of an epoch, both sides
  padding: float
  anonymous_bytes: int  # the most that was resident; 0 where not known
  before_bytes: int  # of that, before anything was opened


def write_text(folder: str, pairs: int, split: str = 'train') -> None:
  """`pairs` sentences of random words a language, commoner and rarer ones.

  A translation is about as long as its source.
  """
  draw = np.random.default_rng(0)
  letters = list('abcdefghijklmnopqrstuvwxyz')
  sizes = draw.integers(2, 9, WORDS)
  words = [''.join(draw.choice(letters, size)) for size in sizes]
  share = 1 / np.arange(10, WORDS + 10)
  edges = np.cumsum(share / share.sum())
  log_n = draw.normal(*LOG_LENGTH, pairs)
  for language in LANGUAGES:
    with open(os.path.join(folder, f'{split}.{language}'), 'w') as file:
      for start in range(0, pairs, BLOCK):
        count = min(BLOCK, pairs - start)
        log_length = log_n[start : start + BLOCK]
        log_length = log_length + draw.normal(0, LOG_RATIO, count)
        length = np.clip(np.exp(log_length).astype(int), *LENGTHS)
        at = np.searchsorted(edges[:-1], draw.random(length.sum()))
        file.writelines(_lines(words, at.tolist(), length.tolist()))


def _lines(
  words: list[str], at: list[int], lengths: list[int]
) -> Iterator[str]:
  end = 0
  for length in lengths:
    start, end = end, end + length
    yield ' '.join([words[i] for i in at[start:end]]) + '\n'


def anonymous_bytes() -> int:
  """Resident memory of this process that is no file's; 0 where not known."""
  if not STATUS.exists():
    return 0
  for line in STATUS.read_text().splitlines():
    if line.startswith('RssAnon:'):
      return int(line.split()[1]) * 1024
  return 0


class MemoryWatch:
  """The most anonymous memory while it is open, seen every few ms."""

  def __init__(self, every: float = 0.005):
    self.most = self.first = anonymous_bytes()
    self._every = every
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def _watch(self) -> None:
    while not self._done.wait(self._every):
      self.most = max(self.most, anonymous_bytes())

  def __enter__(self) -> 'MemoryWatch':
    self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._done.set()
    self._thread.join()
    self.most = max(self.most, anonymous_bytes())


def one_core() -> None:
  """Keep to one core where the system can."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def read(data: DataConfig, batches: int, rounds: int) -> Reading:
  """Open the corpus and read `batches` in each of `rounds`."""
  from transformer_jax.data.batches import make_plan
  from transformer_jax.data.corpus import open_corpus

  one_core()
  with MemoryWatch() as memory:
    start = time.perf_counter()
    corpus = open_corpus(data, workdir=None, progress=say)
    opened = time.perf_counter()
    plan = make_plan(corpus.train, data)
    planned = time.perf_counter()
    plan.batch(0, 0)
    first = time.perf_counter()
    rates = []
    for turn in range(rounds):
      # Of one epoch: the order of the next would be made again.
      steps = range(turn * batches, (turn + 1) * batches)
      steps = [step % plan.steps_per_epoch for step in steps]
      begin = time.perf_counter()
      read_now = [plan.batch(0, step) for step in steps]
      seconds = time.perf_counter() - begin
      total = sum(np.count_nonzero(x) for pair in read_now for x in pair)
      rates.append(total / seconds)
    lengths = corpus.pairs(data.train_split).lengths
    tokens = sum(int(n.sum(dtype=np.int64)) for n in lengths)
  order = first - planned
  return Reading(
    opened - start,
    planned - opened,
    order,
    tuple(rates),
    order + tokens / float(np.median(rates)),
    tokens,
    plan.padding,
    memory.most,
    memory.first,
  )


def trained_bytes(data: DataConfig, workdir: str) -> int:
  """The most anonymous memory of a process that trains a few steps."""
  from experiments.presets import PRESETS
  from transformer_jax.config import Config
  from transformer_jax.fields import override
  from transformer_jax.training.loop import train

  small = override(Config(), {**PRESETS['test'].overrides, **STEPS})
  data = dataclasses.replace(
    data,
    max_tokens=TRAIN_TOKENS,
    buckets=1,
    validation_split='held',
    test_split='held',
  )
  with MemoryWatch() as memory:
    train(dataclasses.replace(small, data=data), workdir=workdir)
  return memory.most


def suite(data: DataConfig, *, pairs: int, rounds: int) -> list[Row]:
  """Rows of a corpus of `pairs` generated pairs, in a temporary folder."""
  from transformer_jax.data.corpus import open_corpus

  with tempfile.TemporaryDirectory(prefix='transformer_jax-bench-') as folder:
    data = dataclasses.replace(
      data,
      source=f'files:{folder}',
      pair='-'.join(LANGUAGES),
      train_split='train',
      validation_split='train',
      test_split='train',
      cache_dir=os.path.join(folder, 'cache'),
    )
    say(f'writing {pairs:,} pairs')
    write_text(folder, pairs)
    write_text(folder, HELD_OUT, 'held')
    start = time.perf_counter()
    open_corpus(data, workdir=None, progress=say)
    encoded = time.perf_counter() - start
    # spawn: the new process inherits no memory of this one.
    with multiprocessing.get_context('spawn').Pool(1) as pool:
      found = pool.apply(read, (data, BATCHES, rounds))
    with multiprocessing.get_context('spawn').Pool(1) as pool:
      trained = pool.apply(trained_bytes, (data, os.path.join(folder, 'run')))
  rows = rows_of(found, pairs, encoded)
  note = f'the most, JAX included, {STEPS["train.steps"]} steps of preset test'
  if not trained:
    note = 'not known on this system'
  value = trained / (1 << 20)
  return [*rows, fact('data', 'of a run that trains', value, 'MiB', note)]


def rows_of(found: Reading, pairs: int, encoded: float) -> list[Row]:
  """The table of what was found."""
  mega = 1 / (1 << 20)
  memory = 'most at any time, the interpreter included'
  if not found.anonymous_bytes:
    memory = 'not known on this system'
  whole = found.tokens / found.epoch_seconds
  facts = (
    ('pairs', pairs, 'pairs', f'{found.tokens:,} tokens on both sides'),
    ('learn and encode, once', encoded, 's', 'vocabulary and token cache'),
    ('open', found.open_seconds, 's', 'in a fresh process, cache present'),
    ('plan', found.plan_seconds, 's', 'bucket shapes and their batches'),
    ('first batch', found.first_seconds, 's', 'with the order of its epoch'),
  )
  rows = [fact('data', *values) for values in facts]
  note = 'one core, both sides, padding not counted'
  rows.append(row('data', 'batches', found.rates, 'tokens/s', note=note))
  facts = (
    ('epoch', whole, 'tokens/s', 'the same, the order of an epoch included'),
    ('padding', 100 * found.padding, '%', 'of an epoch'),
    ('anonymous memory', found.anonymous_bytes * mega, 'MiB', memory),
    ('of which at start', found.before_bytes * mega, 'MiB', ''),
  )
  return rows + [fact('data', *values) for values in facts]
