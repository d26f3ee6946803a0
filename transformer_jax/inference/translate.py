"""Sentences to sentences.

Nothing here reads files or flags: a training loop calls it with what it has.
Sentences are translated in groups of like length and come back in order.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from transformer_jax.config import DecodeConfig
from transformer_jax.data.tokens import Vocabularies
from transformer_jax.inference.beam import ALL, PENALTIES, beam
from transformer_jax.inference.decode import Hypotheses, greedy, sample
from transformer_jax.inference.grouping import (
  Group,
  encode,
  group_by_length,
  pad,
)
from transformer_jax.inference.stepper import ModelStepper
from transformer_jax.nn import randomness
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import hosts
from transformer_jax.training.state import ALONE, Alone

Params = Any
Progress = Callable[[int, int], None]  # sentences done, sentences in all


class Translation(NamedTuple):
  """One hypothesis as text."""

  text: str
  log_prob: float  # nats, EOS included
  score: float  # what hypotheses are ordered by


class Translations(NamedTuple):
  """Of each sentence the best hypotheses, best first."""

  hypotheses: list[list[Translation]]
  padding: float  # share of (row, step) in which nothing was left to find

  @property
  def texts(self) -> list[str]:
    """The best hypothesis of each sentence."""
    return [best[0].text for best in self.hypotheses]


class _Search(NamedTuple):
  """What every strategy is called with."""

  stepper: ModelStepper
  params: Params
  source_BS: Array
  limit_B: Array
  id_B: Array
  length: int


# decode.stop: how many hypotheses end the search of a sentence.
ENOUGH = {
  'bound': lambda options: ALL,
  'count': lambda options: options.beam_size,
}


def _beam(call: _Search, options: DecodeConfig) -> Hypotheses:
  return beam(
    *call[:4],
    length=call.length,
    beam_size=options.beam_size,
    alpha=options.alpha,
    penalty=PENALTIES[options.penalty],
    enough=ENOUGH[options.stop](options),
    n_best=options.n_best,
  )


def _greedy(call: _Search, options: DecodeConfig) -> Hypotheses:
  del options
  return greedy(*call[:4], length=call.length)


def _sample(call: _Search, options: DecodeConfig) -> Hypotheses:
  return sample(
    *call[:4],
    length=call.length,
    id_B=call.id_B,
    key=np.asarray(randomness.seed_key(options.seed)),
    temperature=options.temperature,
    top_k=options.top_k,
    samples=options.n_best,
  )


# decode.strategy: how hypotheses are found, and how many a sentence has.
STRATEGIES = {
  'beam': (_beam, lambda options: options.beam_size),
  'greedy': (_greedy, lambda options: 1),
  'sample': (_sample, lambda options: options.n_best),
}


def translate_sentences(
  model: Transformer,
  params: Params,
  sentences: Sequence[str],
  *,
  vocabularies: Vocabularies,
  options: DecodeConfig,
  first_line: int = 1,
  progress: Progress = lambda done, total: None,
  layout: Alone = ALONE,
) -> Translations:
  """Translates every sentence, whatever its length.

  An empty sentence stays empty; the model never sees it.

  Args:
    model: an encoder-decoder.
    params: its parameters.
    sentences: of the source language.
    vocabularies: of the model.
    options: strategy, sizes and budget.
    first_line: number of the first sentence: errors name it, and samples are
      drawn by it.
    progress: is told of each batch.
    layout: of sentences over devices.

  Raises:
    ConfigError: see `grouping.encode`.
  """
  rows = encode(
    sentences, vocabularies.source, config=model.config, first_line=first_line
  )
  found = [[Translation('', 0.0, 0.0)] for _ in rows]
  waiting = [i for i, row in enumerate(rows) if row]
  total, done, useful, spent = len(waiting), 0, 0, 0
  # Few sentences become as long as they may. The cache is for the usual length
  # first; those that need more are done again.
  for extent in (_usual_length, _largest_length):
    groups = group_by_length(
      [len(rows[i]) + 1 for i in waiting],
      options.max_tokens // STRATEGIES[options.strategy][1](options),
    )
    left = []
    for group in groups:
      group = group._replace(ids=[waiting[at] for at in group.ids])
      group = group._replace(rows=layout.rows(group.rows))
      result = _search(
        model, params, rows, group, options, first_line, extent, layout
      )
      spent += group.rows * int(result.steps_B.max())
      for at, i in enumerate(group.ids):
        if not result.done_B[at]:
          left.append(i)
          continue
        useful += int(result.steps_B[at])
        done += 1
        found[i] = _texts(result, at, vocabularies)
      progress(done, total)
    waiting = left
  return Translations(found, 1 - useful / spent if spent else 0.0)


def _usual_length(width: int, options: DecodeConfig) -> int:
  return min(_largest_length(width, options), width * 3 // 2 + 8)


def _largest_length(width: int, options: DecodeConfig) -> int:
  return width + options.extra_length


def _search(
  model: Transformer,
  params: Params,
  rows: Sequence[Sequence[int]],
  group: Group,
  options: DecodeConfig,
  first_line: int,
  extent: Callable[[int, DecodeConfig], int],
  layout: Alone,
) -> Hypotheses:
  """Hypotheses of a group, on the host."""
  width = min(group.width, model.config.longest('encoder') or group.width)
  most = group.width + options.extra_length
  most = min(most, model.config.longest('decoder') or most)
  source_BS = pad([rows[i] for i in group.ids], group.rows, width)
  length_B = np.count_nonzero(source_BS, axis=1)
  limit_B = np.minimum(length_B + options.extra_length, most)
  id_B = np.zeros(group.rows, np.int32)
  id_B[: len(group.ids)] = np.array(group.ids) + first_line
  limit_B = np.where(length_B > 0, limit_B, 0).astype(np.int32)
  source_BS, limit_B, id_B = layout.sentences((source_BS, limit_B, id_B))
  call = _Search(
    ModelStepper(model),
    params,
    source_BS,
    limit_B,
    id_B,
    min(extent(group.width, options), most),
  )
  return hosts.fetch(STRATEGIES[options.strategy][0](call, options))


def _texts(
  result: Hypotheses, at: int, vocabularies: Vocabularies
) -> list[Translation]:
  there = np.flatnonzero(np.isfinite(result.scores_BK[at]))
  texts = vocabularies.target.decode(result.tokens_BKT[at][there].tolist())
  return [
    Translation(
      text, float(result.log_probs_BK[at][k]), float(result.scores_BK[at][k])
    )
    for k, text in zip(there, texts, strict=True)
  ]
