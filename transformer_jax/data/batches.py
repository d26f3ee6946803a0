"""The batch plan: which rows make batch (seed, step), padded to what.

A plan depends on the lengths of the pairs only. The sequence of shapes is the
same for all seeds and comes in runs of one shape, so that a run goes to the
device in one call and replicas keep step; the seed picks the rows. Nothing
else is state: a run resumes from the step alone.
"""

import itertools
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from transformer_jax.config import DataConfig
from transformer_jax.data.cache import Batch, Pairs
from transformer_jax.data.corpus import EndlessPairs

_ROWS = 8  # batches hold a multiple of it
_ORDER = 1 << 63  # key of the order of runs; a seed is below it
_HELD_OUT_TOKENS = 8192  # of the longer side of a batch
_GRID = 32  # lengths of a side that the first search looks at
_MOVES = (-2, -1, 0, 1, 2)
_KEPT_BYTES = 1 << 28  # of permutations, when several seeds train at once


class Shape(NamedTuple):
  """A batch is `rows` x `source_length` and `rows` x `target_length`."""

  rows: int
  source_length: int
  target_length: int

  @property
  def slots(self) -> int:
    return self.rows * (self.source_length + self.target_length)


def random_bits(n: int, *key: int) -> np.ndarray:
  """n numbers, uint64, that are a function of two numbers.

  An order is made by sorting by them: numpy promises to keep the raw bits of
  Philox, and makes no such promise for its own shuffle.
  """
  return np.random.Philox(key=key).random_raw(n)


class _Lengths(NamedTuple):
  """How many pairs have at most source_S[i] and target_T[j] tokens."""

  source_S: np.ndarray
  target_T: np.ndarray
  covered_ST: np.ndarray

  @classmethod
  def of(cls, source_n: np.ndarray, target_n: np.ndarray) -> '_Lengths':
    source_S = np.flatnonzero(np.bincount(source_n))
    target_T = np.flatnonzero(np.bincount(target_n))
    at_n = np.searchsorted(source_S, source_n) * len(target_T)
    at_n += np.searchsorted(target_T, target_n)
    cells = len(source_S) * len(target_T)
    count_ST = np.bincount(at_n, minlength=cells).reshape(len(source_S), -1)
    return cls(source_S, target_T, count_ST.cumsum(0).cumsum(1))

  def shape(self, place: tuple[int, int], max_tokens: int) -> Shape:
    s, t = int(self.source_S[place[0]]), int(self.target_T[place[1]])
    rows = max_tokens // max(s, t) // _ROWS * _ROWS
    return Shape(max(rows, _ROWS), s, t)


def _best_chain(lengths: _Lengths, buckets: int) -> list[tuple[int, int]]:
  """Nested places in `lengths` that pad least, on a coarse grid.

  Dynamic programme over the number of lengths: the least padded area of all
  pairs inside p is that inside an earlier q and the rest at the size of p.
  """
  s_G, t_G = _coarse(lengths.source_S), _coarse(lengths.target_T)
  s_P, t_P = (grid.ravel() for grid in np.meshgrid(s_G, t_G, indexing='ij'))
  covered_P = lengths.covered_ST[s_P, t_P]
  width_P = lengths.source_S[s_P] + lengths.target_T[t_P]
  outside_PQ = (s_P[:, None] < s_P) | (t_P[:, None] < t_P)
  rest_PQ = width_P[:, None] * (covered_P[:, None] - covered_P)
  rest_PQ[outside_PQ] = np.iinfo(np.int64).max // 2
  area_P = covered_P * width_P
  before = []
  for _ in range(buckets - 1):
    through_PQ = area_P + rest_PQ
    before.append(through_PQ.argmin(1))
    area_P = through_PQ.min(1)
  chain = [len(s_P) - 1]
  for before_P in reversed(before):
    chain.append(int(before_P[chain[-1]]))
  return [(int(s_P[p]), int(t_P[p])) for p in reversed(chain)]


def _coarse(length_L: np.ndarray) -> np.ndarray:
  """At most _GRID places in ascending lengths, in equal ratios."""
  wanted = np.geomspace(length_L[0], length_L[-1], _GRID)
  return np.unique(np.searchsorted(length_L, wanted.round()))


def _count_batches(
  counts: list[int], shapes: list[Shape]
) -> tuple[list[int], list[Shape]]:
  """Batches of each bucket in an epoch, and the shapes they then have.

  A bucket's rows that fill no batch move to the next wider bucket. So only
  the widest has empty rows, and its batches are evened out to have few.
  """
  batches, left = [], 0
  for count, shape in zip(counts, shapes, strict=True):
    full, left = divmod(count + left, shape.rows)
    batches.append(full)
  if left:
    pairs = batches[-1] * shapes[-1].rows + left
    batches[-1] += 1
    rows = -(-pairs // (batches[-1] * _ROWS)) * _ROWS
    shapes = [*shapes[:-1], shapes[-1]._replace(rows=rows)]
  return batches, shapes


def _slots(batches: list[int], shapes: list[Shape]) -> int:
  """Places for tokens in an epoch, both sides."""
  return sum(
    total * shape.slots for total, shape in zip(batches, shapes, strict=True)
  )


def choose_shapes(
  source_n: np.ndarray,
  target_n: np.ndarray,
  *,
  buckets: int,
  max_tokens: int,
) -> list[Shape]:
  """Nested shapes for pairs of these lengths, narrow to wide.

  A pair belongs to the first shape that covers it. That shapes are nested
  pads no more than free ones on real text (both sides grow together), and
  lets the rows that fill no batch move up. The best chain on a coarse grid is
  settled by small moves that save slots of a whole epoch.

  Args:
    source_n: source tokens of each pair.
    target_n: target tokens of each pair.
    buckets: most shapes to return.
    max_tokens: rows x the longer padded side, at most.

  Returns:
    At most `buckets` shapes; the last covers every pair.
  """
  lengths = _Lengths.of(source_n, target_n)

  def cost(chain: list[tuple[int, int]]) -> int:
    covered = [int(lengths.covered_ST[place]) for place in chain]
    counts = [b - a for a, b in zip([0, *covered], covered, strict=False)]
    shapes = [lengths.shape(place, max_tokens) for place in chain]
    return _slots(*_count_batches(counts, shapes))

  chain = _best_chain(lengths, buckets)
  least = cost(chain)
  moved = True
  while moved:
    moved = False
    for k, ds, dt in itertools.product(range(buckets - 1), _MOVES, _MOVES):
      place = chain[k][0] + ds, chain[k][1] + dt
      tried = [*chain[:k], place, *chain[k + 1 :]]
      if _nested(tried) and (slots := cost(tried)) < least:
        chain, least, moved = tried, slots, True
  unique = sorted(set(chain))
  return [lengths.shape(place, max_tokens) for place in unique]


def _nested(chain: list[tuple[int, int]]) -> bool:
  pairs = itertools.pairwise([(0, 0), *chain])
  return all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairs)


class Layout(NamedTuple):
  """Buckets from narrow to wide."""

  shapes: list[Shape]
  members: list[np.ndarray]  # pairs of each bucket, int32
  batches: list[int]  # of each bucket in an epoch


def lay_out(pairs: Pairs, *, buckets: int, max_tokens: int) -> Layout:
  """Deal `pairs` out to buckets and count their batches."""
  source_n, target_n = pairs.lengths
  shapes = choose_shapes(
    source_n, target_n, buckets=buckets, max_tokens=max_tokens
  )
  # The first shape that covers both sides.
  bucket_n = np.maximum(
    np.searchsorted([shape.source_length for shape in shapes], source_n),
    np.searchsorted([shape.target_length for shape in shapes], target_n),
  )
  members = [
    np.flatnonzero(bucket_n == bucket).astype(np.int32)
    for bucket in range(len(shapes))
  ]
  batches, shapes = _count_batches([*map(len, members)], shapes)
  return Layout(shapes, members, batches)


def deal(layout: Layout, bits_n: np.ndarray) -> list[np.ndarray]:
  """Rows [batches, rows] of each bucket, in the order of `bits_n`.

  Rows left over after the full batches are mixed with those of the next
  bucket; in the last, -1 stands where a batch stays part empty.
  """
  left = np.zeros(0, np.int32)
  dealt = []
  for shape, members, total in zip(*layout, strict=True):
    rows = np.concatenate([left, members])
    rows = rows[np.argsort(bits_n[rows], kind='stable')]
    here, left = rows[: total * shape.rows], rows[total * shape.rows :]
    empty = np.full(total * shape.rows - len(here), -1, np.int32)
    here = np.concatenate([here, empty])
    dealt.append(here.reshape(total, shape.rows))
  return dealt


class Plan:
  """Batches of stored pairs by (seed, step)."""

  def __init__(self, pairs: Pairs, data: DataConfig):
    self._pairs = pairs
    self._layout = lay_out(
      pairs, buckets=data.buckets, max_tokens=data.max_tokens
    )
    layout = self._layout
    runs = [
      (bucket, start, min(data.batches_per_run, total - start))
      for bucket, total in enumerate(layout.batches)
      for start in range(0, total, data.batches_per_run)
    ]
    self._runs_M3 = np.array(runs, np.int64)
    self.steps_per_epoch = sum(layout.batches)
    used = zip(layout.shapes, layout.batches, strict=True)
    self.shapes = [shape for shape, total in used if total]
    tokens = sum(int(length_n.sum(dtype=int)) for length_n in pairs.lengths)
    self.padding = 1 - tokens / _slots(layout.batches, layout.shapes)
    self._sequences: OrderedDict[int, np.ndarray] = OrderedDict()
    self._orders: OrderedDict[tuple[int, int], list[np.ndarray]] = OrderedDict()
    self._orders_kept = max(2, _KEPT_BYTES // (4 * len(pairs)))

  def _place(self, step: int) -> tuple[int, int, int]:
    """(bucket, number of the batch in it, batches left in the run)."""
    epoch, at = divmod(step, self.steps_per_epoch)
    if epoch not in self._sequences:
      bits_M = random_bits(len(self._runs_M3), _ORDER, epoch)
      runs = self._runs_M3[np.argsort(bits_M, kind='stable')]
      bucket, start, length = np.repeat(runs, runs[:, 2], axis=0).T
      first = np.repeat(np.cumsum(runs[:, 2]) - runs[:, 2], runs[:, 2])
      inside = np.arange(self.steps_per_epoch) - first
      sequence = np.stack([bucket, start + inside, length - inside], axis=1)
      _remember(self._sequences, epoch, sequence, kept=2)
    bucket, number, left = self._sequences[epoch][at]
    return int(bucket), int(number), int(left)

  def shape(self, step: int) -> Shape:
    return self._layout.shapes[self._place(step)[0]]

  def left_in_run(self, step: int) -> int:
    """Batches of this shape still to come in its run, this one included."""
    return self._place(step)[2]

  def ids(self, seed: int, step: int) -> np.ndarray:
    """Rows of batch (seed, step), int64; -1 marks an empty row."""
    bucket, number, _ = self._place(step)
    key = seed, step // self.steps_per_epoch
    if key not in self._orders:
      bits_n = random_bits(len(self._pairs), *key)
      dealt = deal(self._layout, bits_n)
      _remember(self._orders, key, dealt, kept=self._orders_kept)
    return self._orders[key][bucket][number].astype(np.int64)

  def batch(self, seed: int, step: int) -> Batch:
    shape = self.shape(step)
    return self._pairs.gather(
      self.ids(seed, step), shape.source_length, shape.target_length
    )


def _remember(store: OrderedDict, key, value, *, kept: int) -> None:
  """Keep `value` and forget the oldest beyond `kept`."""
  store[key] = value
  while len(store) > kept:
    store.popitem(last=False)


class EndlessPlan:
  """Batches of a task that is generated for ever: one shape, no epochs."""

  padding: float
  steps_per_epoch = 0  # There is no end.

  def __init__(self, pairs: EndlessPairs, data: DataConfig):
    self._pairs = pairs
    self._batches_per_run = data.batches_per_run
    rows = data.max_tokens // max(pairs.longest) // _ROWS * _ROWS
    self._shape = Shape(max(rows, _ROWS), *pairs.longest)
    self.shapes = [self._shape]
    sample = self.batch(0, 0)
    tokens = sum(int(np.count_nonzero(rows)) for rows in sample)
    # Of the first batch: there is no epoch to take it over.
    self.padding = 1 - tokens / self._shape.slots

  def shape(self, step: int) -> Shape:
    del step
    return self._shape

  def left_in_run(self, step: int) -> int:
    return self._batches_per_run - step % self._batches_per_run

  def ids(self, seed: int, step: int) -> np.ndarray:
    rows = self._shape.rows
    return self._pairs.ids(seed, step * rows, rows)

  def batch(self, seed: int, step: int) -> Batch:
    return self._pairs.gather(self.ids(seed, step), *self._shape[1:])


def make_plan(
  pairs: Pairs | EndlessPairs, data: DataConfig
) -> Plan | EndlessPlan:
  """The plan of training on `pairs`, which is Corpus.train."""
  if isinstance(pairs, EndlessPairs):
    return EndlessPlan(pairs, data)
  return Plan(pairs, data)


def held_out_batches(
  pairs: Pairs, data: DataConfig, max_tokens: int = _HELD_OUT_TOKENS
) -> list[tuple[np.ndarray, Batch]]:
  """Each pair exactly once, in few shapes: (ids, batch) for evaluation.

  Rows are a multiple of 8, filled with empty rows whose id is -1.
  """
  layout = lay_out(pairs, buckets=data.buckets, max_tokens=max_tokens)
  in_order_n = np.arange(len(pairs))
  batches = []
  for shape, rows_MB in zip(
    layout.shapes, deal(layout, in_order_n), strict=True
  ):
    for rows_B in rows_MB:
      ids_B = rows_B.astype(np.int64)
      batch = pairs.gather(ids_B, shape.source_length, shape.target_length)
      batches.append((ids_B, batch))
  return batches
