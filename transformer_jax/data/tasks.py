"""Embedded tasks: generated sequences with known answers, no download.

Row i of a split is a pure function of (data.seed, split, i), so that nothing
is stored and training can go on for ever. Which split a source sequence may
appear in is decided by a hash of the sequence itself: held-out sequences never
occur in training, for any seed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from transformer_jax.config import ConfigError, DataConfig, closest

SPLITS = ('train', 'validation', 'test')
# Tasks that make sentences: those are read as text is, with subwords.
SENTENCES = ('korean',)

# One source sequence of _CLASSES belongs to validation and one to test.
_CLASSES = 16
_ATTEMPTS = 4000  # draws of one row; (15/16)^4000 is nothing
# Different sources wanted for each row of a held-out split.
_SPARE = 2 * _CLASSES
_MARK = '?'  # what stands before the keys asked for, or where to look from
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd


class Rows(NamedTuple):
  """Symbols 0 .. task_symbols - 1; what lies beyond a length is not read."""

  source_BS: np.ndarray
  source_length_B: np.ndarray
  target_BT: np.ndarray
  target_length_B: np.ndarray


def _nothing(data: DataConfig) -> str:
  """Every config will do."""
  del data
  return ''


class Task(NamedTuple):
  """How a task draws its rows; everything else is common to all.

  Args:
    words: config -> how each symbol is written.
    longest: config -> most symbols of a source and of a target.
    sources: config -> how many different sources there are.
    columns: config -> random numbers that a row takes.
    make: (random numbers [B, columns], config) -> rows.
    refuse: config -> why it cannot be, with the mend; '' where it can.
  """

  words: Callable[[DataConfig], list[str]]
  longest: Callable[[DataConfig], tuple[int, int]]
  sources: Callable[[DataConfig], int]
  columns: Callable[[DataConfig], int]
  make: Callable[[np.ndarray, DataConfig], Rows]
  refuse: Callable[[DataConfig], str] = _nothing


def mix(x: np.ndarray) -> np.ndarray:
  """A bijection of uint64 that scatters neighbours (splitmix64's finisher)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def random_numbers(row_B: np.ndarray, columns: int, *key: int) -> np.ndarray:
  """uint64 numbers [B, columns], a function of key, row and column."""
  state_B = row_B.astype(np.uint64)
  for part in key:
    word = np.uint64(part % 2**64)
    state_B = mix(state_B + word + np.uint64(_GOLDEN))
  column_C = np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
  return mix(state_B[:, None] + column_C)


def below(numbers: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
  """Random uint64 numbers to integers in [0, limit), limit under 2^31."""
  limit = np.asarray(limit, np.uint64)
  return ((numbers >> np.uint64(33)) * limit >> np.uint64(31)).astype(np.int64)


def _class_of(symbols_BS: np.ndarray, length_B: np.ndarray) -> np.ndarray:
  """The class, 0 to 15, of each source sequence: of its content only."""
  state_B = mix(length_B.astype(np.uint64) + np.uint64(_GOLDEN))
  for column in range(symbols_BS.shape[1]):
    symbol_B = symbols_BS[:, column].astype(np.uint64)
    mixed_B = mix(state_B + symbol_B + np.uint64(_GOLDEN))
    state_B = np.where(column < length_B, mixed_B, state_B)
  return (state_B % np.uint64(_CLASSES)).astype(np.int64)


def generate(
  name: str, data: DataConfig, *, split: str, row_B: np.ndarray
) -> Rows:
  """Rows `row_B` of `split`: the same numbers, the same rows.

  A row whose source belongs to another split is drawn again. Where
  data.task_noise is given, that share of target symbols is then drawn at
  random, whatever the source: what a model can know of a symbol is that it is
  the right one with probability 1 - noise (1 - 1 / task_symbols).

  Raises:
    ConfigError: when no source of this split is found.
  """
  task = TASKS[name]
  wanted = {'validation': [0], 'test': [1]}.get(split, range(2, _CLASSES))
  number = SPLITS.index(split)
  columns = task.columns(data)
  rows = None
  pending = np.arange(len(row_B))
  for attempt in range(_ATTEMPTS):
    key = data.seed, number, attempt
    drawn = task.make(random_numbers(row_B[pending], columns, *key), data)
    if rows is None:
      rows = drawn
    else:
      for kept, new in zip(rows, drawn, strict=True):
        kept[pending] = new
    classes_B = _class_of(drawn.source_BS, drawn.source_length_B)
    pending = pending[~np.isin(classes_B, wanted)]
    if not len(pending):
      return _noisy(rows, row_B, data, number)
  raise ConfigError(f'task:{name} {_too_few(task, data)}')


def _noisy(rows: Rows, row_B: np.ndarray, data: DataConfig, split: int) -> Rows:
  """Each target symbol replaced with probability data.task_noise."""
  if not data.task_noise:
    return rows
  T = rows.target_BT.shape[1]
  # No draw of a row has this key.
  numbers = random_numbers(row_B, 2 * T, data.seed, split, _ATTEMPTS)
  replaced_BT = numbers[:, :T] >> np.uint64(33) < data.task_noise * 2**31
  symbol_BT = below(numbers[:, T:], data.task_symbols)
  return rows._replace(
    target_BT=np.where(replaced_BT, symbol_BT, rows.target_BT)
  )


def _too_few(task: Task, data: DataConfig) -> str:
  return (
    f'has {task.sources(data)} different sources, too few to hold out two '
    f'splits of data.task_held_out={data.task_held_out}: raise '
    'data.task_symbols or data.task_max_length, or hold out less'
  )


def check(name: str, data: DataConfig) -> None:
  """Refuse an unknown task, split, or one with too few sequences.

  Raises:
    ConfigError: one line with the mend.
  """
  if name not in TASKS:
    every = [*TASKS, *SENTENCES]
    raise ConfigError(
      f'data.source=task:{name} is not one of '
      f'{", ".join("task:" + known for known in every)}{closest(name, every)}'
    )
  task = TASKS[name]
  reason = task.refuse(data)
  if reason:
    raise ConfigError(f'task:{name} {reason}')
  if task.sources(data) < _SPARE * data.task_held_out:
    raise ConfigError(f'task:{name} {_too_few(task, data)}')
  longest = max(task.longest(data)) + 1
  if longest > data.max_length:
    raise ConfigError(
      f'task:{name} makes sequences of {longest} tokens, more than '
      f'data.max_length={data.max_length}: raise it or lower '
      'data.task_max_length'
    )


def _lengths(number_B: np.ndarray, data: DataConfig) -> np.ndarray:
  """task_min_length .. task_max_length, each as often."""
  span = data.task_max_length - data.task_min_length + 1
  return data.task_min_length + below(number_B, span)


def _symbols(data: DataConfig) -> list[str]:
  return [str(number) for number in range(data.task_symbols)]


def _sequences(answer: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Task:
  """A task on plain sequences; `answer`(symbols, lengths) is the target."""

  def make(numbers: np.ndarray, data: DataConfig) -> Rows:
    length_B = _lengths(numbers[:, 0], data)
    symbols_BS = below(numbers[:, 1:], data.task_symbols)
    target_BT = answer(symbols_BS, length_B)
    return Rows(symbols_BS, length_B, target_BT, length_B.copy())

  return Task(
    words=_symbols,
    longest=lambda data: (data.task_max_length, data.task_max_length),
    sources=lambda data: sum(
      data.task_symbols**length
      for length in range(data.task_min_length, data.task_max_length + 1)
    ),
    columns=lambda data: data.task_max_length + 1,
    make=make,
  )


def _copied(symbols_BS: np.ndarray, length_B: np.ndarray) -> np.ndarray:
  del length_B
  return symbols_BS.copy()


def _reversed(symbols_BS: np.ndarray, length_B: np.ndarray) -> np.ndarray:
  column_S = np.arange(symbols_BS.shape[1])
  from_BS = np.maximum(length_B[:, None] - 1 - column_S, 0)
  return np.take_along_axis(symbols_BS, from_BS, axis=1)


def _sorted(symbols_BS: np.ndarray, length_B: np.ndarray) -> np.ndarray:
  column_S = np.arange(symbols_BS.shape[1])
  beyond_BS = column_S >= length_B[:, None]
  # What is beyond the end sorts last and is not read.
  last = np.iinfo(symbols_BS.dtype).max
  return np.sort(np.where(beyond_BS, last, symbols_BS), axis=1)


def _recalled(numbers: np.ndarray, data: DataConfig) -> Rows:
  """`k3 5 k1 2 ? k1 k3` -> `2 5`: the value that went with each key.

  The keys of a row differ; as many are asked for, each drawn apart, so that
  one answer says nothing of the next. Values are drawn apart from keys and
  from each other: only the pairs tell.
  """
  N, keys = data.task_max_length, data.task_symbols
  length_B = _lengths(numbers[:, 0], data)
  key_bits, value_bits, asked_bits = np.split(
    numbers[:, 1:], [keys, keys + N], 1
  )
  key_BN = np.argsort(key_bits, axis=1, kind='stable')[:, :N]
  value_BN = below(value_bits, keys)
  asked_BN = below(asked_bits, length_B[:, None])

  # Columns of pairs, then the mark, then the keys that are asked for.
  column_S = np.arange(3 * N + 1)
  after_BS = column_S - 2 * length_B[:, None] - 1
  pair_BS = np.where(
    after_BS < 0,
    np.minimum(column_S // 2, N - 1),
    np.take_along_axis(asked_BN, np.clip(after_BS, 0, N - 1), axis=1),
  )
  source_BS = keys + np.take_along_axis(key_BN, pair_BS, axis=1)
  value_BS = np.take_along_axis(value_BN, pair_BS, axis=1)
  source_BS = np.where(
    (after_BS < 0) & (column_S % 2 == 1), value_BS, source_BS
  )
  source_BS = np.where(after_BS == -1, 2 * keys, source_BS)
  target_BT = np.take_along_axis(value_BN, asked_BN, axis=1)
  return Rows(source_BS, 3 * length_B + 1, target_BT, length_B)


def _recall_refuses(data: DataConfig) -> str:
  if data.task_symbols >= data.task_max_length:
    return ''
  return (
    f'has data.task_symbols={data.task_symbols} keys, too few for '
    f'data.task_max_length={data.task_max_length} different ones in a row: '
    'raise the one or lower the other'
  )


def _looked_back(numbers: np.ndarray, data: DataConfig) -> Rows:
  """`4 7 1 ? 0` -> `7` at distance 2: what stands that far before the mark.

  The mark's place is drawn apart from the symbols, and these from each other:
  no other symbol, and no place alone, tells the answer.
  """
  N, back = data.task_max_length, data.task_distance
  length_B = _lengths(numbers[:, 0], data)
  symbols_BN = below(numbers[:, 2:], data.task_symbols)
  # The mark stands before symbol `mark`, or after the last one.
  mark_B = back + below(numbers[:, 1], length_B - back + 1)
  column_S = np.arange(N + 1)
  from_BS = np.minimum(column_S - (column_S > mark_B[:, None]), N - 1)
  source_BS = np.take_along_axis(symbols_BN, from_BS, axis=1)
  source_BS = np.where(
    column_S == mark_B[:, None], data.task_symbols, source_BS
  )
  target_BT = np.take_along_axis(symbols_BN, (mark_B - back)[:, None], axis=1)
  return Rows(source_BS, length_B + 1, target_BT, np.ones_like(length_B))


def _long_range_refuses(data: DataConfig) -> str:
  if 1 <= data.task_distance <= data.task_min_length:
    return ''
  return (
    f'looks back data.task_distance={data.task_distance} symbols: give 1 to '
    f'data.task_min_length={data.task_min_length}, or raise that'
  )


TASKS: dict[str, Task] = {
  'copy': _sequences(_copied),
  'reverse': _sequences(_reversed),
  'sort': _sequences(_sorted),
  'recall': Task(
    words=lambda data: [
      *_symbols(data),
      *(f'k{number}' for number in range(data.task_symbols)),
      _MARK,
    ],
    longest=lambda data: (3 * data.task_max_length + 1, data.task_max_length),
    sources=lambda data: sum(
      math.perm(data.task_symbols, length)
      * data.task_symbols**length
      * length**length
      for length in range(data.task_min_length, data.task_max_length + 1)
    ),
    columns=lambda data: 1 + data.task_symbols + 2 * data.task_max_length,
    make=_recalled,
    refuse=_recall_refuses,
  ),
  'long_range': Task(
    words=lambda data: [*_symbols(data), _MARK],
    longest=lambda data: (data.task_max_length + 1, 1),
    sources=lambda data: sum(
      data.task_symbols**length * (length - data.task_distance + 1)
      for length in range(data.task_min_length, data.task_max_length + 1)
    ),
    columns=lambda data: 2 + data.task_max_length,
    make=_looked_back,
    refuse=_long_range_refuses,
  ),
}
