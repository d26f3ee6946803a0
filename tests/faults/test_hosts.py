"""One of two processes killed or stopped: the other leaves, nothing is lost."""

import random
import signal

import pytest

from tests.faults import hosts, resumed
from tests.faults.place import Place, same_run
from transformer_jax.training import peers


@pytest.mark.slow
def test_a_lost_process_is_named_and_leaves_no_trace(tmp_path):
  cache = tmp_path / 'cache'
  place = Place(tmp_path / 'run', 40, cache)
  met = hosts.lose_one(place, random.Random(0), 16)
  assert met.killed == -signal.SIGKILL
  assert met.other == 1 and met.named
  assert met.seconds < hosts.LEAVE_SECONDS
  assert hosts.finish(place)
  # Finished: at once, and on both.
  assert hosts.finish(place)
  unbroken = place._replace(folder=tmp_path / 'unbroken')
  assert hosts.finish(unbroken)
  assert same_run(place, unbroken)


@pytest.mark.slow
def test_a_frozen_process_is_named(tmp_path):
  place = Place(tmp_path / 'run', 400, tmp_path / 'cache')
  met = hosts.lose_one(place, random.Random(0), 4, signal.SIGSTOP)
  assert met.killed == -signal.SIGKILL
  assert met.other == 1 and met.named
  assert peers.SILENT_SECONDS - 4 < met.seconds < hosts.LEAVE_SECONDS


@pytest.mark.slow
def test_a_stop_of_one_process_stops_both_at_one_step(tmp_path):
  cache = tmp_path / 'cache'
  place = Place(tmp_path / 'run', 80, cache)
  before = 9
  for rank, number in ((1, signal.SIGTERM), (0, signal.SIGUSR1)):
    assert hosts.stop_one(place, rank, before + 1, number) == [75, 75]
    stopped = place.latest()
    assert before < stopped < 80
    said = hosts.log(place, 0).read_text()
    assert f'stopped by a signal, saved at step {stopped}' in said
    before = stopped
  assert hosts.finish(place)
  assert f'resumed at step {stopped}' in hosts.log(place, 0).read_text()
  unbroken = place._replace(folder=tmp_path / 'unbroken')
  assert hosts.finish(unbroken)
  assert same_run(place, unbroken)


def test_the_table_of_a_run_killed_and_resumed_shows_how_far_it_is():
  one = {(5, 'train'): 2.0, (5, 'validation'): 4.0}
  killed = {(5, 'train'): 2.00002, (5, 'validation'): 4.002}
  lines = resumed.table({'one': one, 'killed': killed}).splitlines()
  assert lines == [
    '| step | one | killed | killed: difference |',
    '|---|---|---|---|',
    '| 5 | 2.0000000 | 2.0000200 | 1e-05 |',
    '| 5, validation | 4.0000000 | 4.0020000 | 5e-04 |',
  ]


@pytest.mark.slow
def test_killed_on_two_processes_and_resumed_on_one(tmp_path):
  words = ['--preset=test', f'--data.cache_dir={tmp_path}']
  asked = [f'--workdir={tmp_path / "run"}', '--steps=4', *words]
  assert resumed.main(asked) == 0
  one, killed = (
    resumed.losses(tmp_path / 'run' / name) for name in ('one', 'killed')
  )
  assert list(killed) == list(one) and len(one) == 5
  assert list(killed.values()) == pytest.approx(list(one.values()), rel=1e-5)
