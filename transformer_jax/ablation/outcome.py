"""The numbers of a finished run: what its result.json says."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transformer_jax.ablation.results import DIVERGED, FINISHED
from transformer_jax.ablation.study import Study
from transformer_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from transformer_jax.data.batches import held_out_batches
from transformer_jax.data.cache import Batch
from transformer_jax.data.corpus import Corpus
from transformer_jax.data.tokens import PAD
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import record
from transformer_jax.training.population import Member
from transformer_jax.training.products import flops
from transformer_jax.training.replicas import Outcome
from transformer_jax.training.state import (
  initial_state,
  numbers,
  run_key,
  train_step,
)


def unigram_loss(corpus: Corpus, data: DataConfig) -> float:
  """Nats a token of a model that knows the test split's frequencies only."""
  pairs = corpus.pairs(data.test_split)
  count_V = np.zeros(corpus.vocabularies.target.size, np.int64)
  for _, batch in held_out_batches(pairs, data):
    tokens = batch.target_BT[batch.target_BT != PAD]
    count_V += np.bincount(tokens, minlength=len(count_V))
  share = count_V[count_V > 0] / count_V.sum()
  return float(-(share * np.log(share)).sum())


@functools.lru_cache(maxsize=32)
def _flops_per_token(
  model_config: ModelConfig, optim: OptimConfig, sizes: tuple[int, int]
) -> float:
  """Of a training step on 8 pairs of 16 tokens each side, a target token."""
  config = Config(model=model_config, optim=optim)
  model = Transformer(model_config, *sizes)
  state = jax.eval_shape(initial_state(config, model), run_key(config))
  tokens = np.ones((8, 16), np.int32)
  step = train_step(config, model)
  arguments = (state, Batch(tokens, tokens), run_key(config), numbers(config))
  return flops(step, *arguments) / tokens.size


def result_of(
  study: Study,
  member: Member,
  outcome: Outcome,
  corpus: Corpus,
  written: Mapping[str, Any],
) -> dict[str, Any]:
  """What result.json says beside the cell itself.

  Args:
    study: of the cell.
    member: of the population, with its folder.
    outcome: of its training.
    corpus: it was trained and tested on.
    written: scores of its own translations. Those that the study asks for are
      in its metrics, beside the scores by teacher forcing.
  """
  config = member.config
  lines = list(record.MetricsFile(member.folder).lines())
  curve = [x for x in lines if x['split'] == 'validation']
  reached = [
    x['step']
    for x in curve
    if study.threshold is not None and x['loss'] <= study.threshold
  ]
  metrics: dict[str, Any] = dict(
    unigram_loss=unigram_loss(corpus, config.data),
    validation_loss=curve[-1]['loss'] if curve else None,
    steps_to_threshold=reached[0] if reached else None,
  )
  if outcome.scores is not None:
    scores = outcome.scores._asdict()
    scores |= {x: written[x] for x in study.free_running if x in written}
    metrics |= scores
    record.MetricsFile(member.folder).append(
      [(config.train.steps, 'test', scores)]
    )
  metrics |= written
  sizes = corpus.vocabularies
  device = jax.local_devices()[0]
  seconds = outcome.step_seconds
  return dict(
    status=DIVERGED if outcome.scores is None else FINISHED,
    diverged_step=outcome.diverged_step,
    metrics=metrics,
    parameters=outcome.parameters,
    flops_per_token=_flops_per_token(
      config.model, config.optim, (sizes.source.size, sizes.target.size)
    ),
    step_seconds=seconds if math.isfinite(seconds) else None,
    peak_memory=outcome.memory,
    data=corpus.fingerprint,
    versions=record.versions(),
    device=f'{device.platform} {device.device_kind}',
  )
