"""The step: what it computes does not depend on how it is called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.data.cache import Batch
from transformer_jax.fields import override
from transformer_jax.training import loop, setup, state
from transformer_jax.training.state import State, loss_chunk, numbers, run_key


@pytest.fixture
def run(set_up):
  return set_up()


@pytest.fixture
def steps(run):
  """The program that the loop runs, of two steps at most."""
  return jax.jit(setup.train_steps(run.config, run.model), donate_argnums=0)


@pytest.fixture
def start(run):
  initial = jax.jit(setup.initial_state(run.config, run.model))
  return jax.device_get(initial(run_key(run.config)))


def call(steps, run, state, count=1, batches=None, **changes):
  """(state, metrics) after `count` steps from numpy to numpy."""
  if batches is None:
    batches = loop.stacked(run.plan, run.config, int(state.step), count)
  traced = numbers(run.config)._replace(**changes)
  key = run_key(run.config)
  state = jax.device_put(state, jax.local_devices()[0])
  return jax.device_get(steps(state, batches, jnp.int32(count), key, traced))


def twice(batch):
  return Batch(*(np.stack([side, side]) for side in batch))


def same(tree, other):
  return all(
    x.tobytes() == y.tobytes()
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
  )


def test_where_calls_are_cut_changes_no_bit(run, steps, start):
  ends, losses = [], []
  for cuts in ([1, 1, 1, 1], [2, 2], [1, 2, 1]):
    now, found = start, []
    for count in cuts:
      now, metrics = call(steps, run, now, count)
      found.append(jax.tree.map(lambda m, count=count: m[:count], metrics))
    ends.append(now)
    losses.append(jax.tree.map(lambda *m: np.concatenate(m), *found))
  assert int(ends[0].step) == 4
  assert same(ends[0], ends[1]) and same(ends[0], ends[2])
  assert same(losses[0], losses[1]) and same(losses[0], losses[2])


def test_numbers_are_traced(run, steps, start):
  before = call(steps, run, start)
  compiled = steps._cache_size()
  changes: list[dict] = [
    dict(learning_rate=0.5),
    dict(label_smoothing=0.3),
    dict(dropout=0.4),
  ]
  for change in changes:
    after = call(steps, run, start, **change)
    assert not same(after, before), change
  assert steps._cache_size() == compiled == 1


def test_warmup_is_traced_too():
  # The schedule of the other tests is flat.
  assert isinstance(numbers(loop.Config()).warmup_steps, float)


def test_a_step_changes_every_parameter(run, steps, start):
  after, metrics = call(steps, run, start)
  paths = jax.tree_util.tree_leaves_with_path(start.params)
  changed = jax.tree.leaves(
    jax.tree.map(lambda x, y: (x != y).any(), start.params, after.params)
  )
  still = [
    path for (path, _), moved in zip(paths, changed, strict=True) if not moved
  ]
  assert not still
  assert metrics.gradient_norm[0] > 0
  assert int(after.step) == 1


def test_another_step_or_key_drops_other_units(run, steps, start):
  batches = loop.stacked(run.plan, run.config, 0, 1)
  first = call(steps, run, start, batches=batches)[1].losses.smoothed[0]
  later = start._replace(step=np.int32(1))
  second = call(steps, run, later, batches=batches)[1].losses.smoothed[0]
  assert first != second
  still = [
    call(steps, run, now, batches=batches, dropout=0.0)[1].losses.smoothed[0]
    for now in (start, later)
  ]
  assert still[0] == still[1]


def test_rows_of_weight_zero_move_nothing(run, steps, start):
  batches = jax.tree.map(
    np.zeros_like, loop.stacked(run.plan, run.config, 0, 1)
  )
  after, metrics = call(steps, run, start, batches=batches)
  assert int(after.step) == 1
  assert same(after.params, start.params)
  moments = [x for x in jax.tree.leaves(after.optimizer) if x.ndim]
  assert moments and not any(x.any() for x in moments)
  np.testing.assert_array_equal(metrics.losses.tokens, 0)


def test_rows_of_weight_zero_change_no_gradient(run, steps, start):
  whole = loop.stacked(run.plan, run.config, 0, 1)
  half = jax.tree.map(np.copy, whole)
  other = jax.tree.map(np.copy, whole)
  rows = whole.source_BS.shape[1]
  for side in half:
    side[:, rows // 2 :] = 0
  for one, two in zip(half, other, strict=True):
    two[:] = one[:, ::-1]
  found, again = (
    call(steps, run, start, batches=batches, dropout=0.0)[1]
    for batches in (half, other)
  )
  np.testing.assert_allclose(
    found.gradient_norm[0], again.gradient_norm[0], rtol=1e-5
  )
  for x, y in zip(found.losses, again.losses, strict=True):
    np.testing.assert_allclose(x[0], y[0], rtol=1e-5)


def test_accumulation_is_the_whole_batch(run, steps, start):
  config = override(run.config, {'optim.accumulate': 4, 'model.dropout': 0.0})
  batches = loop.stacked(run.plan, run.config, 0, 1)
  # Parts of very different token counts: a mean of means would show.
  batches.target_BT[:, :8, 1:] = 0
  parts = jax.jit(state.train_step(config, run.model))
  batch = Batch(*(side[0] for side in batches))
  after, metrics = jax.device_get(
    parts(start, batch, run_key(config), numbers(config))
  )
  whole, whole_metrics = call(steps, run, start, batches=batches, dropout=0.0)
  # Adam's first step is the sign of the gradient: its first moment says more.
  for x, y in zip(
    jax.tree.leaves(after.optimizer),
    jax.tree.leaves(whole.optimizer),
    strict=True,
  ):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
  for x, y in zip(
    jax.tree.leaves(metrics), jax.tree.leaves(whole_metrics), strict=True
  ):
    np.testing.assert_allclose(x, y[0], rtol=1e-5)


def test_one_batch_is_learnt_by_heart(run, steps, start):
  batches = loop.stacked(run.plan, run.config, 0, 1)
  now: State = start
  for _ in range(150):
    now, metrics = call(
      steps,
      run,
      now,
      2,
      batches=batches,
      dropout=0.0,
      label_smoothing=0.0,
      learning_rate=1e-2,
    )
    loss = metrics.losses.plain[1] / metrics.losses.tokens[1]
    if loss < 0.1:
      break
  assert loss < 0.1
  assert metrics.losses.correct[1] > 0.97 * metrics.losses.tokens[1]


@pytest.mark.parametrize(
  ('tokens', 'vocabulary', 'parts'),
  [(2048, 10_000, 2), (32, 12, 1), (25_000, 37_000, 108), (1, 5, 1)],
)
def test_the_loss_is_made_in_even_parts(tokens, vocabulary, parts):
  size = loss_chunk(tokens, vocabulary)
  assert size % 8 == 0
  assert -(-tokens // size) == parts
