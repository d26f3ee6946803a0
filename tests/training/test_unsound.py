"""Losses, gradients and parameters that are not numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.conftest import arrays
from tests.training.runs import assert_told, rows, spoilt, steps_of
from transformer_jax.training import loop, setup
from transformer_jax.training.checkpoint import Checkpoints


def test_a_loss_that_is_no_number_ends_the_run(train, tmp_path, monkeypatch):
  train(train__steps=8)
  folder = tmp_path / 'run'
  before = arrays(folder, 8)
  with monkeypatch.context() as patch:
    spoilt(patch, learning_rate=1e30)
    with pytest.raises(loop.TrainingError) as stopped:
      train()
  told = str(stopped.value)
  assert 'the loss of step 10 is not a number' in told
  assert 'checkpoint 8 stands' in told and '\n' not in told
  assert steps_of(folder) == [8] and arrays(folder, 8) == before
  assert all(np.isfinite(row['loss']) for row in rows(folder))
  assert train()[0] == 0


def poisoned(monkeypatch, *steps):
  """The loss of these steps is not a number, whatever their batch is."""
  made = setup.train_steps

  def train_steps(config, model, layout):
    run = made(config, model, layout)

    def call(state, batches, count, key, numbers):
      # The smoothing that makes a loss of NaN, in calls of one step.
      bad = jnp.isin(state.step + 1, jnp.array(steps))
      smoothing = jnp.where(bad, jnp.nan, numbers.label_smoothing)
      numbers = numbers._replace(label_smoothing=smoothing)
      return run(state, batches, count, key, numbers)

    return call

  monkeypatch.setattr(setup, 'train_steps', train_steps)
  monkeypatch.setattr(loop, 'steps_in_call', lambda plan, config, step: 1)


def test_steps_without_a_finite_loss_are_skipped_and_counted(
  train, tmp_path, monkeypatch
):
  poisoned(monkeypatch, 3, 9, 10)
  before = {}
  save = Checkpoints.save

  def remember(self, step, state, *, metric):
    before[step] = jax.device_get(state)
    save(self, step, state, metric=metric)

  monkeypatch.setattr(Checkpoints, 'save', remember)
  limit = dict(train__max_skipped_steps=2, train__save_every=1)
  with pytest.raises(loop.TrainingError) as stopped:
    train(**limit)
  told = str(stopped.value)
  assert 'loss of step 10 is not a number' in told
  assert 'after 2 skipped steps; checkpoint 9 stands' in told
  # Nothing but the count of steps moved; the count of Adam did not.
  for skipped in (3, 9):
    old, new = before[skipped - 1], before[skipped]
    assert new.step == old.step + 1 == skipped
    for x, y in zip(
      jax.tree.leaves(old[1:]), jax.tree.leaves(new[1:]), strict=True
    ):
      assert x.tobytes() == y.tobytes()
  # More may be allowed, and what was skipped stays counted.
  code, err = train(train__max_skipped_steps=3)
  assert code == 0 and 'step 10 skipped: skipped 3' in err
  found = rows(tmp_path / 'run')
  assert [(r['step'], r['skipped']) for r in found if 'skipped' in r] == [
    (3, 1),
    (9, 2),
    (10, 3),
  ]


def test_skipped_steps_are_counted_by_the_first_process(set_up, monkeypatch):
  run = set_up(train__max_skipped_steps=9)
  monkeypatch.setattr(loop.hosts, 'agreed', lambda own: own + 4)
  assert loop.one_more_skipped(run, [(1, 'skipped', {})], '') == 6


def test_parameters_that_are_no_numbers_are_not_saved(
  train, tmp_path, monkeypatch
):
  # The loss of step 1 is good; what its update made is not.
  spoilt(monkeypatch, learning_rate=np.inf)
  with pytest.raises(loop.TrainingError, match='after step 1 are not finite'):
    train(train__save_every=1)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_validation_that_is_no_number_ends_the_run(
  train, tmp_path, monkeypatch
):
  spoilt(monkeypatch, learning_rate=1e30)
  with pytest.raises(loop.TrainingError, match='validation loss of step 1 is'):
    train(train__evaluate_every=1)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.slow
def test_no_number_and_a_full_disk_leave_with_one_line(
  call, tmp_path, monkeypatch, before_step, file_limit
):
  with monkeypatch.context() as patch:
    spoilt(patch, learning_rate=1e30)
    found = call(tmp_path / 'run')
  assert_told(found, 'is not a number')
  before_step(9, lambda: file_limit(8192))
  found = call(tmp_path / 'other')
  file_limit(None)
  assert_told(found, 'File too large')
