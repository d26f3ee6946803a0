"""One of two processes killed: the other names it, and nothing is lost."""

import random
import signal

import pytest

from tests.faults import hosts
from tests.faults.place import Place, same_run


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
