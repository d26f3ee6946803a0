"""Sentences of any length in few shapes, within a token budget."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.config import ConfigError, ModelConfig
from transformer_jax.data.tokens import EOS, Vocabulary


class Group(NamedTuple):
  """Sentences that go to the device together."""

  ids: list[int]
  rows: int  # the last ones are padding when there are fewer ids
  width: int  # tokens that each is padded to


def round_width(length: int) -> int:
  """The next of 8, 12, 16, 24, 32, 48, 64, 96, ...: few shapes to compile."""
  step = 8
  while step < length:
    step *= 2
  return step * 3 // 4 if step > 8 and length <= step * 3 // 4 else step


def group_by_length(lengths: Sequence[int], max_tokens: int) -> list[Group]:
  """Groups of like length, the longest first.

  Args:
    lengths: tokens of each sentence.
    max_tokens: rows x width of a group, unless one row alone has more.
  """
  left = sorted(range(len(lengths)), key=lambda i: -lengths[i])
  groups = []
  while left:
    width = round_width(lengths[left[0]])
    rows = max(1, max_tokens // width)
    rows = rows if rows < 8 else rows // 8 * 8
    ids, left = left[:rows], left[rows:]
    # Only the last group is not full; powers of two are enough for it.
    rows = min(rows, 1 << (len(ids) - 1).bit_length())
    groups.append(Group(ids, rows, width))
  return groups


def pad(rows: Sequence[Sequence[int]], count: int, width: int) -> np.ndarray:
  """int32 [count, width]: each row ended by EOS, then zeros."""
  padded_BS = np.zeros((count, width), np.int32)
  for at, row in enumerate(rows):
    padded_BS[at, : len(row)] = row
    padded_BS[at, len(row)] = EOS
  return padded_BS


def encode(
  sentences: Sequence[str],
  vocabulary: Vocabulary,
  *,
  config: ModelConfig,
  side: str = 'encoder',
  first_line: int = 1,
) -> list[list[int]]:
  """Ids of each sentence, without EOS.

  Args:
    sentences: of the source language, or of the target's.
    vocabulary: of that language.
    config: of the model.
    side: that reads them, encoder or decoder.
    first_line: what an error calls the first sentence.

  Raises:
    ConfigError: naming the first line that has more tokens than this side of
      the model has positions.
  """
  rows = vocabulary.encode(list(sentences))
  limit = config.longest(side)
  for line, row in enumerate(rows, first_line):
    if limit is not None and len(row) + 1 > limit:
      raise ConfigError(
        f'line {line} has {len(row) + 1} tokens but the {side} of this model '
        f'has model.max_positions={limit}: split the line'
      )
  return rows
