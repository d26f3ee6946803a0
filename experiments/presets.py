"""Named configs: what differs from the paper's base model, and why.

`python -m experiments.train --preset=list` shows them. The whole config of
each is kept as text in `tests/goldens/presets`, so that a default which
changes shows in the diff of every experiment it touches.
"""

from collections.abc import Mapping
from typing import NamedTuple

from transformer_jax.ablation.table3 import ROWS


class Preset(NamedTuple):
  """A line that says what it is for, and the fields it sets."""

  doc: str
  overrides: Mapping[str, int | float | str]


# Seconds on one CPU core: for tests of everything around the model.
TEST: dict[str, int | float | str] = {
  'model.layers': 1,
  'model.d_model': 16,
  'model.d_ff': 32,
  'model.heads': 2,
  'model.d_k': 8,
  'model.d_v': 8,
  'optim.schedule': 'constant',
  'optim.learning_rate': 3e-3,
  'data.max_length': 16,
  'data.max_tokens': 256,
  'data.buckets': 2,
  'data.batches_per_run': 2,
  'data.task_min_length': 2,
  'data.task_max_length': 6,
  'data.task_symbols': 8,
  'data.task_held_out': 32,
  'train.steps': 20,
  'train.log_every': 4,
  'train.evaluate_every': 8,
  'train.save_every': 8,
  'train.keep_latest': 3,
  'decode.beam_size': 2,
  'mesh.data': 1,
}

# Symbols come back in reverse order: attention has to look from the other
# end of the sentence at each step, and the right answer is known.
REVERSE: dict[str, int | float | str] = {
  'model.layers': 2,
  'model.d_model': 64,
  'model.d_ff': 128,
  'model.heads': 4,
  'model.d_k': 16,
  'model.d_v': 16,
  # Pairs are never seen twice: there is nothing to regularise.
  'model.dropout': 0.0,
  'optim.schedule': 'inverse_sqrt',
  'optim.learning_rate': 2e-3,
  'optim.warmup_steps': 200,
  'optim.clip_norm': 1.0,
  'optim.label_smoothing': 0.0,
  'data.max_length': 16,
  'data.max_tokens': 1024,
  'data.buckets': 3,
  'train.steps': 1200,
  'train.log_every': 50,
  'train.evaluate_every': 200,
  'train.save_every': 200,
  'train.keep_latest': 3,
  'train.best_metric': 'accuracy',
  'decode.average': 3,
}

# Transformer-Tiny of Wu et al. (2021), "Good for Misconceived Reasons":
# 41.0 tokenised BLEU on test_2016_flickr, small because the data is.
TINY: dict[str, int | float | str] = {
  'model.layers': 4,
  'model.d_model': 128,
  'model.d_ff': 256,
  'model.heads': 4,
  'model.d_k': 32,
  'model.d_v': 32,
  # As the recipe's own code starts; see `initializers.INITIALIZATIONS`.
  'model.initialization': 'fairseq',
  'model.dropout': 0.3,
  'optim.schedule': 'inverse_sqrt',
  'optim.learning_rate': 5e-3,
  'optim.warmup_steps': 2000,
  'data.source': 'files:multi30k/tok',
  'data.pair': 'en-de',
  'data.validation_split': 'val',
  'data.test_split': 'test_2016_flickr',
  'data.text': 'pretokenized',
  'data.vocabulary_size': 10000,
  'data.max_tokens': 4096,
  'train.steps': 8000,
  'train.evaluate_every': 250,
  # Ten averaged checkpoints then span about ten epochs, as in the recipe.
  'train.save_every': 125,
  'train.patience': 10,
  # Its score was made by fairseq's search, with fairseq's defaults.
  'decode.beam_size': 5,
  'decode.penalty': 'length',
  'decode.alpha': 1.0,
  'decode.stop': 'count',
  'decode.average': 10,
}

BASE: dict[str, int | float | str] = {
  'data.source': 'tfds:wmt14_translate/de-en',
  'data.pair': 'en-de',
  'decode.average': 5,
}

BIG: dict[str, int | float | str] = BASE | {
  'model.d_model': 1024,
  'model.d_ff': 4096,
  'model.heads': 16,
  'model.dropout': 0.3,
  'train.steps': 300_000,
  'train.keep_latest': 20,
  'decode.average': 20,
}

PRESETS = {
  'reverse': Preset('reverse a sequence: a minute on two cores', REVERSE),
  'tiny': Preset('Multi30k en-de, Transformer-Tiny of Wu et al.', TINY),
  'base': Preset('WMT14 en-de, base model of the paper', BASE),
  'big': Preset('WMT14 en-de, big model of the paper', BIG),
  'test': Preset('a few steps of a model of nothing, for tests', TEST),
  **{
    f'table3_{name}': Preset(
      f'Table 3 {name[0].upper()}: base with '
      + ', '.join(
        f'{path.partition(".")[2]}={value}'
        for path, value in row.overrides.items()
      ),
      BASE | dict(row.overrides),
    )
    for name, row in ROWS.items()
  },
}
