"""Table 3 of the paper as presets, with what it printed as data.

Each row is the base model with the fields that differ. Quality is of
newstest2013, English to German, after 100,000 steps, without averaging of
checkpoints; perplexity is per word-piece of the paper's vocabulary and is not
to be compared with perplexities of another one. Vaswani et al. (2017),
arXiv:1706.03762v7.
"""

from collections.abc import Mapping
from typing import NamedTuple

Value = int | float | str


class Published(NamedTuple):
  """What the paper prints of a model; None where it leaves a blank.

  perplexity: per word-piece, on the development set.
  bleu: on the development set.
  millions: of parameters; a blank means those of base.
  """

  perplexity: float
  bleu: float
  millions: int | None = None


class Row(NamedTuple):
  """Fields that differ from base, and the printed numbers."""

  overrides: Mapping[str, Value]
  published: Published


def _heads(count: int) -> dict[str, Value]:
  """Row A: the amount of computation stays that of 8 heads of 64."""
  width = 512 // count
  return {'model.heads': count, 'model.d_k': width, 'model.d_v': width}


def _width(d_model: int, d_k: int) -> dict[str, Value]:
  return {'model.d_model': d_model, 'model.d_k': d_k, 'model.d_v': d_k}


_BIG: dict[str, Value] = {
  'model.d_model': 1024,
  'model.d_ff': 4096,
  'model.heads': 16,
}

BASE = Published(4.92, 25.8, 65)
BIG = Published(4.33, 26.4, 213)

ROWS = {
  'a_h1': Row(_heads(1), Published(5.29, 24.9)),
  'a_h4': Row(_heads(4), Published(5.00, 25.5)),
  'a_h16': Row(_heads(16), Published(4.91, 25.8)),
  'a_h32': Row(_heads(32), Published(5.01, 25.4)),
  'b_dk16': Row({'model.d_k': 16}, Published(5.16, 25.1, 58)),
  'b_dk32': Row({'model.d_k': 32}, Published(5.01, 25.4, 60)),
  'c_n2': Row({'model.layers': 2}, Published(6.11, 23.7, 36)),
  'c_n4': Row({'model.layers': 4}, Published(5.19, 25.3, 50)),
  'c_n8': Row({'model.layers': 8}, Published(4.88, 25.5, 80)),
  'c_dmodel256': Row(_width(256, 32), Published(5.75, 24.5, 28)),
  'c_dmodel1024': Row(_width(1024, 128), Published(4.66, 26.0, 168)),
  'c_dff1024': Row({'model.d_ff': 1024}, Published(5.12, 25.4, 53)),
  'c_dff4096': Row({'model.d_ff': 4096}, Published(4.75, 26.2, 90)),
  'd_dropout0': Row({'model.dropout': 0.0}, Published(5.77, 24.6)),
  'd_dropout20': Row({'model.dropout': 0.2}, Published(4.95, 25.5)),
  'd_smoothing0': Row({'optim.label_smoothing': 0.0}, Published(4.67, 25.3)),
  'd_smoothing20': Row({'optim.label_smoothing': 0.2}, Published(5.47, 25.7)),
  'e_learned': Row({'model.position': 'learned'}, Published(4.92, 25.7)),
}

# Every row that can be held against runs of ours, the last one included.
ALL = {
  **ROWS,
  'big': Row({**_BIG, 'model.dropout': 0.3}, BIG),
}

# Preset -> what the paper prints of it.
PUBLISHED = {
  'base': BASE,
  **{f'table3_{name}': row.published for name, row in ROWS.items()},
  'big': BIG,
}
