"""The plan: every pair once an epoch, the same shapes for every seed."""

import hashlib
import itertools
import pathlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from experiments.presets import PRESETS
from transformer_jax.config import Config, DataConfig
from transformer_jax.data import batches
from transformer_jax.data.batches import held_out_batches, make_plan
from transformer_jax.data.cache import Batch, StoredPairs
from transformer_jax.data.tokens import EOS
from transformer_jax.fields import override

MULTI30K = pathlib.Path(__file__).parent / 'multi30k_lengths.csv'
DATA = DataConfig(max_length=64, max_tokens=512, buckets=5, batches_per_run=3)


def stored(lengths: list[tuple[int, int]]) -> StoredPairs:
  """Pairs of these lengths; the tokens of pair i say i, side and place."""

  def row(number: int, side: int, length: int) -> np.ndarray:
    row_L = 1000 * number + 100 * side + np.arange(length) + 4
    row_L[-1] = EOS
    return row_L[None].astype(np.int32)

  return StoredPairs.of(
    Batch(row(number, 0, s), row(number, 1, t))
    for number, (s, t) in enumerate(lengths)
  )


@pytest.fixture(scope='module')
def lengths() -> list[tuple[int, int]]:
  # Integer arithmetic only: the same on every machine and numpy.
  both = []
  for number in range(1003):
    s = 3 + number * 7919 % 23 + number * 104729 % 31 // 5 * (number % 3)
    both.append((s, max(2, s + number * 31 % 9 - 4)))
  return both


@pytest.fixture(scope='module')
def pairs(lengths) -> StoredPairs:
  return stored(lengths)


@pytest.fixture(scope='module')
def plan(pairs) -> batches.Plan:
  found = make_plan(pairs, DATA)
  assert isinstance(found, batches.Plan)
  return found


def epochs(plan, seed: int, count: int) -> list[list[np.ndarray]]:
  n = plan.steps_per_epoch
  return [
    [plan.ids(seed, step) for step in range(epoch * n, epoch * n + n)]
    for epoch in range(count)
  ]


def test_each_pair_exactly_once_an_epoch_in_another_order(plan, pairs):
  orders = []
  for epoch in epochs(plan, 7, 3):
    ids = np.concatenate(epoch)
    assert Counter(ids[ids >= 0].tolist()) == Counter(range(len(pairs)))
    orders.append(ids.tolist())
  assert orders[0] != orders[1] != orders[2] != orders[0]


def test_golden(plan):
  """A run that resumes under a later version must meet the same batches."""
  ids = np.concatenate([i for epoch in epochs(plan, 7, 3) for i in epoch])
  assert ids.dtype == np.int64
  found = hashlib.sha256(ids.astype('<i8').tobytes()).hexdigest()
  assert found == (
    'fbc33a17f5f978453be3f5782a2c2600aa5509dae64a39fbde9fcf95d97951db'
  )


def test_a_batch_depends_on_seed_and_step_alone(pairs, plan):
  steps = plan.steps_per_epoch
  wanted = [plan.ids(1, step) for step in (0, steps - 1, 2 * steps + 3)]
  fresh = make_plan(pairs, DATA)
  assert isinstance(fresh, batches.Plan)
  # Another order of questions, other seeds between, nothing kept.
  fresh._orders_kept = 1
  for step, ids in zip(
    (2 * steps + 3, steps - 1, 0), wanted[::-1], strict=True
  ):
    fresh.ids(2, step)
    np.testing.assert_array_equal(fresh.ids(1, step), ids)


def test_shapes_come_in_the_same_sequence_for_every_seed(plan):
  for step in range(2 * plan.steps_per_epoch):
    shape = plan.shape(step)
    for seed in (0, 1, 2):
      batch = plan.batch(seed, step)
      assert batch.source_BS.shape == (shape.rows, shape.source_length)
      assert batch.target_BT.shape == (shape.rows, shape.target_length)
  first = [plan.ids(0, step).tolist() for step in range(5)]
  assert first != [plan.ids(1, step).tolist() for step in range(5)]


def test_the_order_of_shapes_differs_between_epochs(plan):
  n = plan.steps_per_epoch
  first, second = (
    [plan.shape(e * n + step) for step in range(n)] for e in (0, 1)
  )
  assert first != second
  assert Counter(first) == Counter(second)


def test_runs(plan):
  epoch = plan.steps_per_epoch
  total = 3 * epoch
  step = 0
  lengths = []
  while step < total:
    left = plan.left_in_run(step)
    lengths.append(left)
    for inside in range(left):
      assert plan.left_in_run(step + inside) == left - inside
      assert plan.shape(step + inside) == plan.shape(step)
      assert (step + inside) // epoch == step // epoch
    step += left
  assert step == total
  assert set(lengths) <= {1, 2, 3}
  # Short runs only where a shape's batches end.
  assert sum(n < 3 for n in lengths) <= 3 * len(plan.shapes)


def test_budget_and_rows(plan):
  for shape in plan.shapes:
    assert shape.rows % 8 == 0
    longer = max(shape.source_length, shape.target_length)
    assert shape.rows * longer <= DATA.max_tokens
  assert len(plan.shapes) <= DATA.buckets
  for narrow, wide in itertools.pairwise(plan.shapes):
    assert narrow.source_length <= wide.source_length
    assert narrow.target_length <= wide.target_length


def test_batches_hold_the_rows_they_name(plan, lengths):
  for step in range(plan.steps_per_epoch):
    ids_B, batch = plan.ids(3, step), plan.batch(3, step)
    for number, source_S, target_T in zip(ids_B, *batch, strict=True):
      if number < 0:
        assert not source_S.any() and not target_T.any()
        continue
      for row_L, side, length in zip(
        (source_S, target_T), (0, 1), lengths[number], strict=True
      ):
        start = 1000 * number + 100 * side + 4
        assert row_L[: length - 1].tolist() == list(
          range(start, start + length - 1)
        )
        assert row_L[length - 1] == EOS and not row_L[length:].any()


def test_padding_counts_every_slot(plan, pairs):
  slots = real = 0
  for step in range(plan.steps_per_epoch):
    for rows in plan.batch(0, step):
      slots += rows.size
      real += np.count_nonzero(rows)
  assert plan.padding == pytest.approx(1 - real / slots)
  assert plan.padding < 0.25
  one = make_plan(pairs, replace(DATA, buckets=1))
  assert len(one.shapes) == 1 and one.padding > plan.padding + 0.1


def test_multi30k_is_padded_by_a_tenth_at_most():
  # Counts of lengths of its training set en-de, tokenised as `tiny` has it, in
  # 10,000 pieces and with the end; no sentence is here.
  table = np.loadtxt(MULTI30K, np.int64, delimiter=',', skiprows=1)
  pairs = stored(np.repeat(table[:, :2], table[:, 2], axis=0).tolist())
  assert len(pairs) == 29_000
  tiny = override(Config(), PRESETS['tiny'].overrides).data
  assert (tiny.max_tokens, tiny.vocabulary_size) == (4096, 10_000)
  assert make_plan(pairs, tiny).padding <= 0.10


def test_shapes_are_near_the_best_of_all():
  """Against every way of cutting, where that can be tried."""
  lengths = [(s, t) for s in range(2, 14) for t in (s, s + s % 3)] * 40
  source_n, target_n = np.array(lengths).T
  found = batches.choose_shapes(source_n, target_n, buckets=3, max_tokens=240)

  def area(shapes) -> int:
    return sum(
      min(s + t for s, t in shapes if s >= a and t >= b) for a, b in lengths
    )

  places = [(s, t) for s in range(2, 14) for t in range(s, s + 3)]
  best = min(
    area([*two, (13, 14)]) for two in itertools.combinations(places, 2)
  )
  assert area([shape[1:] for shape in found]) <= 1.02 * best


@pytest.mark.parametrize('count', [1, 7, 9, 63])
def test_a_few_pairs(count):
  pairs = stored([(5 + n % 4, 3 + n % 6) for n in range(count)])
  plan = make_plan(pairs, DATA)
  for ids in (np.concatenate(epoch) for epoch in epochs(plan, 0, 2)):
    assert sorted(ids[ids >= 0]) == list(range(count))
    assert len(ids) < count + 8 * plan.steps_per_epoch


def test_held_out_pairs_come_exactly_once(pairs, lengths):
  found = held_out_batches(pairs, DATA, 1024)
  ids = np.concatenate([ids_B for ids_B, _ in found])
  assert sorted(ids[ids >= 0]) == list(range(len(lengths)))
  for ids_B, batch in found:
    assert len(ids_B) % 8 == 0
    source_n = (batch.source_BS > 0).sum(1)
    wanted = [lengths[i][0] if i >= 0 else 0 for i in ids_B]
    assert source_n.tolist() == wanted
  shapes = {b.source_BS.shape + b.target_BT.shape for _, b in found}
  assert len(shapes) <= DATA.buckets


def test_held_out_pairs_longer_than_any_budget_are_kept():
  pairs = stored([(5, 5)] * 20 + [(900, 3)])
  found = held_out_batches(pairs, DATA, 256)
  ids = np.concatenate([ids_B for ids_B, _ in found])
  assert 20 in ids
  assert max(batch.source_BS.shape[1] for _, batch in found) == 900


def test_only_pairs_that_are_wanted():
  pairs = stored([(3, 4), (9, 2), (5, 5), (2, 6), (5, 1)])
  short = pairs.only(np.maximum(*pairs.lengths) <= 5)
  assert len(short) == 3
  assert [n.tolist() for n in short.lengths] == [[3, 5, 5], [4, 5, 1]]
  batch = short.gather(np.array([2, -1, 0]), 6, 5)
  assert batch.source_BS[0].tolist() == [4004, 4005, 4006, 4007, EOS, 0]
  assert not batch.source_BS[1].any()
  assert pairs.only(np.full(5, True)) is pairs
  again = short.only(np.array([False, True, False]))
  assert [n.tolist() for n in again.lengths] == [[5], [5]]
