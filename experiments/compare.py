"""How two trained runs differ on the same sentences; one JSON line on stdout.

    python -m experiments.compare --workdir=W --against=V --split=test

Difference of W minus V in loss (nats a token, where both have one vocabulary)
and in BLEU of the translations, with a 95 % interval of the paired bootstrap
over sentences. The interval is about these two checkpoints only. Whether one
way of training is better than another is asked over seeds:
`experiments.ablate`.
"""

import json
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import evaluate as program
from transformer_jax import flags
from transformer_jax.config import BLEU_NAMES, Config, ConfigError
from transformer_jax.inference import restore
from transformer_jax.training import hosts

EXTRA = (
  *program.EXTRA,
  flags.Flag('against', str, '', 'folder of the other run', required=True),
)


def main(config: Config, options: types.SimpleNamespace) -> None:
  hosts.start(options)
  with program.prepared(options) as check:
    compare(config, options, check)


def compare(
  config: Config, options: types.SimpleNamespace, check: Callable[[], None]
) -> None:
  """Scores both runs, prints one line."""
  from transformer_jax.ablation.sentences import (
    FEWEST_SENTENCES,
    checkpoint_difference,
  )
  from transformer_jax.inference.evaluate import tokenizer
  from transformer_jax.training.compiled import use_cache

  other = types.SimpleNamespace(**{**vars(options), 'workdir': options.against})
  configs = config, restore.config_of(other)
  text = {one.data.text for one in configs}
  if len(text) > 1:
    raise ConfigError(
      f'{options.workdir} and {options.against} differ in data.text: their '
      'translations are scored differently'
    )
  use_cache(config)
  tokenize = tokenizer(config.data.text, options.tokenize)
  name, pairs = program.chosen_pairs(config, options)
  if len(pairs) < FEWEST_SENTENCES:
    raise ConfigError(
      f'{name} has {len(pairs)} sentences: an interval over sentences needs '
      f'{FEWEST_SENTENCES}'
    )
  runs, found = [], []
  folders = options.workdir, options.against
  for folder, own in zip(folders, configs, strict=True):
    run = restore.load_run(folder, own)
    hosts.say(f'{len(pairs):,} pairs of {name}; {folder}, {run.steps}')
    runs.append(run)
    found.append(sums(run, pairs, tokenize, check))
  first, second = (run.vocabularies.fingerprint for run in runs)
  result: dict[str, Any] = dict(
    split=name,
    sentences=len(pairs),
    runs=folders,
    checkpoint_steps=[run.steps for run in runs],
    interval='95 %, bootstrap over sentences, for these two checkpoints',
  )
  if first == second:
    loss = checkpoint_difference(*(one.loss_S2 for one in found))
    result['loss'] = loss._asdict()
  else:
    hosts.say('the vocabularies differ: nats a token are not compared')
  bleu = checkpoint_difference(
    *(one.bleu_SK for one in found), score=corpus_bleu
  )
  result[BLEU_NAMES[config.data.text]] = bleu._asdict()
  if hosts.first():
    print(json.dumps(result, ensure_ascii=False), flush=True)


class Sums(NamedTuple):
  """Of each sentence, what a score of the corpus is made of.

  loss_S2: nats and tokens.
  bleu_SK: matches of n-grams 1 to 4, their number, and both lengths.
  """

  loss_S2: np.ndarray
  bleu_SK: np.ndarray


def sums(
  run: restore.Run,
  pairs: program.Pairs,
  tokenize: str,
  check: Callable[[], None],
) -> Sums:
  """What the bootstrap draws from."""
  from sacrebleu.metrics.bleu import BLEU

  loss_S2 = [(-s.log_prob, s.tokens) for s in program.scored(run, pairs, check)]
  texts = program.translated(run, pairs, check).texts
  # Of a sentence only the counts are taken; no order is left out of those.
  metric = BLEU(tokenize=tokenize, force=True, effective_order=True)
  bleu_SK = []
  for found, (_, reference) in zip(texts, pairs, strict=True):
    one = metric.sentence_score(found, [reference])
    bleu_SK.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
  return Sums(np.array(loss_S2), np.array(bleu_SK))


def corpus_bleu(sums_K: np.ndarray) -> np.ndarray:
  """BLEU of the sums of sentences [..., 10]; see `Sums`."""
  from sacrebleu.metrics.bleu import BLEU

  def one(sums: np.ndarray) -> float:
    counts, totals = sums[:4].tolist(), sums[4:8].tolist()
    # Smoothed as `evaluate` has it: sacrebleu's default.
    return BLEU.compute_bleu(
      counts,
      totals,
      sys_len=int(sums[8]),
      ref_len=int(sums[9]),
      smooth_method='exp',
    ).score

  return np.apply_along_axis(one, -1, sums_K)


if __name__ == '__main__':
  flags.run(main, extra=EXTRA, base=restore.config_of)
