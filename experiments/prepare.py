"""Download, learn the vocabulary, build the token cache; print what is there.

    python -m experiments.prepare --data.source=... --data.pair=en-de

Training does the same by itself, but it never downloads. Run a second time,
this program finds everything done and only prints.
"""

import types

from transformer_jax import flags
from transformer_jax.config import Config, ConfigError, DataConfig


def main(config: Config, options: types.SimpleNamespace) -> None:
  """Prepare what `config.data` names and print pairs, tokens and shapes.

  Raises:
    ConfigError: for data that is not there and cannot be made.
  """
  del options
  try:
    prepare(config.data)
  except OSError as error:
    raise ConfigError(
      f'{error.filename or config.data.source} cannot be prepared: '
      f'{error.strerror or error}'
    ) from error


def prepare(data: DataConfig) -> None:
  from transformer_jax.data.batches import make_plan
  from transformer_jax.data.corpus import EndlessPairs, open_corpus
  from transformer_jax.data.sources import open_text

  if not data.source.startswith('task:'):
    open_text(data).prepare()
  corpus = open_corpus(data, workdir=None, progress=print)
  source, target = corpus.vocabularies
  joint = source is target
  print(
    f'vocabulary: {source.size:,} pieces'
    + (' for both sides' if joint else f', {target.size:,} of the target')
  )
  splits = (data.train_split, data.validation_split, data.test_split)
  for split in dict.fromkeys(splits):
    if split == data.train_split and isinstance(corpus.train, EndlessPairs):
      print(f'{split}: generated without end')
      continue
    pairs = corpus.pairs(split)
    tokens = [int(length_n.sum(dtype=int)) for length_n in pairs.lengths]
    print(
      f'{split}: {len(pairs):,} pairs, {tokens[0]:,} source and '
      f'{tokens[1]:,} target tokens, {corpus.dropped[split]:,} dropped'
    )
  plan = make_plan(corpus.train, data)
  steps = plan.steps_per_epoch
  print(
    f'batches: {f"{steps:,} an epoch" if steps else "without end"}, '
    f'{plan.padding:.1%} padding, shapes (rows x source + target):'
  )
  for shape in plan.shapes:
    print(f'  {shape.rows} x {shape.source_length} + {shape.target_length}')
  print(f'fingerprint: {corpus.fingerprint}')


if __name__ == '__main__':
  flags.run(main)
