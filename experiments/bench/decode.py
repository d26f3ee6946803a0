"""Decoding: sentences a second, and the share of steps spent on padding.

Without a run the model is untrained and the sentences are random words, of
lengths like those of Multi30k; each translation is made as long as its source,
which an untrained model would not find out by itself.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.bench.measure import (
  Contestant,
  Row,
  fact,
  rate_row,
  take_turns,
)
from transformer_jax.config import Config, DecodeConfig
from transformer_jax.data.tokens import SPECIAL, SymbolVocabulary, Vocabularies
from transformer_jax.inference.translate import translate_sentences
from transformer_jax.nn import randomness
from transformer_jax.nn.transformer import Transformer, initial_params

# Words of an English sentence of Multi30k, test_2016_flickr: the mean and
# deviation of the logarithm, the shortest and the longest.
LOG_LENGTH = (2.52, 0.29)
LENGTHS = (5, 33)


class Job(NamedTuple):
  """What is to be translated, by what."""

  model: Transformer
  params: Any
  vocabularies: Vocabularies
  sentences: list[str]
  options: DecodeConfig
  about: str


def random_lengths(sentences: int) -> np.ndarray:
  draw = np.random.default_rng(0)
  found = np.exp(draw.normal(*LOG_LENGTH, sentences)).round().astype(int)
  return np.clip(found, *LENGTHS)


def generated(config: Config, sentences: int) -> Job:
  """An untrained model and random sentences."""
  size = config.data.vocabulary_size
  words = [f'w{n}' for n in range(size - len(SPECIAL))]
  one = SymbolVocabulary(words)
  draw = np.random.default_rng(1)
  texts = [
    ' '.join(words[n] for n in draw.integers(len(words), size=length))
    for length in random_lengths(sentences)
  ]
  start = initial_params(
    config.model, source_vocabulary=size, target_vocabulary=size
  )
  params = jax.jit(start)(randomness.seed_key(config.train.seed))
  return Job(
    Transformer(config.model, size, size),
    params,
    Vocabularies(one, one),
    texts,
    dataclasses.replace(config.decode, extra_length=0),
    'random sentences, each translation as long as its source',
  )


def of_run(config: Config, workdir: str, split: str) -> Job:
  """A trained run and a split of its data.

  Raises:
    ConfigError: there is no such run or split.
  """
  from experiments.evaluate import split_pairs
  from transformer_jax.inference import restore

  run = restore.load_run(workdir, config)
  split = split or config.data.test_split
  pairs = split_pairs(config.data, split, workdir)
  return Job(
    run.model,
    run.params,
    run.vocabularies,
    [source for source, _ in pairs],
    config.decode,
    f'{split}, step {run.steps[0]}, {len(run.steps)} averaged',
  )


def contestant(job: Job, name: str, **changes: Any) -> Contestant:
  """All sentences, from text to text; gives the share of padding."""
  options = dataclasses.replace(job.options, **changes)

  def work() -> float:
    found = translate_sentences(
      job.model,
      job.params,
      job.sentences,
      vocabularies=job.vocabularies,
      options=options,
    )
    return found.padding

  return Contestant(name, work)


def suite(job: Job, rounds: int) -> list[Row]:
  """Rows of beam search and, to see what the beam costs, of greedy search."""
  beam = f'beam {job.options.beam_size}'
  turns = take_turns(
    [
      contestant(job, beam, strategy='beam', n_best=1),
      contestant(job, 'greedy', strategy='greedy', n_best=1),
    ],
    rounds=rounds,
  )
  rows = [
    rate_row(
      'decode',
      name,
      taken,
      amount=len(job.sentences),
      unit='sentences/s',
      note=job.about,
    )
    for name, taken in turns.items()
  ]
  about = 'of (row, step): nothing was left to find there'
  for name, taken in turns.items():
    title = f'padding steps, {name}'
    rows.append(fact('decode', title, 100 * taken.last, '%', about))
  count = len(job.sentences)
  return [*rows, fact('decode', 'sentences', count, 'in all')]
