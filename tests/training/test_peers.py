"""Processes that miss each other; here as objects on one machine."""

import queue
import time

import pytest

from transformer_jax.training import peers as peers_lib
from transformer_jax.training.peers import Peer, watched


@pytest.fixture
def peers():
  """Three peers that are connected; what each left with, in a queue."""
  codes = [queue.SimpleQueue() for _ in range(3)]
  made = [Peer(rank, leave=codes[rank].put) for rank in range(3)]
  port, token = made[0].serve('127.0.0.1')
  for peer in made[1:]:
    peer.connect('127.0.0.1', port, token)
  while len(made[0]._lines) < 2:
    time.sleep(0.001)
  yield made, codes
  for peer in made:
    peer._ended.set()
    for line in peer._lines:
      line.close()
  shut(made[0])


def shut(peer):
  assert peer._server is not None
  peer._server.close()


def die(peer):
  """As the kernel does it: every connection is closed, without a word."""
  peer._ended.set()
  for line in peer._lines:
    line.shutdown(2)


def test_a_dead_process_is_named_to_all(peers, capfd):
  made, codes = peers
  die(made[2])
  assert [codes[rank].get(timeout=30) for rank in (0, 1)] == [1, 1]
  text = capfd.readouterr().err
  for rank in (0, 1):
    assert f'died; process {rank} leaves' in text
  assert text.count('error: process 2 (') == 2


def test_the_death_of_the_first_needs_no_telling(peers, capfd):
  made, codes = peers
  die(made[0])
  assert [codes[rank].get(timeout=30) for rank in (1, 2)] == [1, 1]
  text = capfd.readouterr().err
  assert text.count('error: process 0 (the coordinator) died; process') == 2


@pytest.mark.parametrize('rank', [0, 1])
def test_who_leaves_for_a_reason_gives_it(peers, rank, capfd):
  made, codes = peers
  made[rank].leave_badly(2, 'no room')
  others = [n for n in range(3) if n != rank]
  assert [codes[n].get(timeout=30) for n in others] == [2, 2]
  text = capfd.readouterr().err
  assert text.count(f'error: process {rank} left: no room; process') == 2


@pytest.fixture
def hasty(monkeypatch):
  """Before any peer is made: silence is noticed soon."""
  monkeypatch.setattr(peers_lib, 'ALIVE_SECONDS', 0.05)
  monkeypatch.setattr(peers_lib, 'SILENT_SECONDS', 2)


@pytest.mark.parametrize('rank', [0, 2])
def test_a_silent_process_is_named_to_all(hasty, peers, rank, capfd):
  made, codes = peers
  made[rank]._ended.set()  # As when frozen: it says and closes nothing.
  others = [n for n in range(3) if n != rank]
  assert [codes[n].get(timeout=30) for n in others] == [1, 1]
  text = capfd.readouterr().err
  assert text.count(f'error: process {rank} (') == 2
  assert text.count(') has not answered for 2 s; process ') == 2


def test_signs_of_life_are_no_news(hasty, peers, capfd):
  _, codes = peers
  time.sleep(2.5)
  assert all(code.empty() for code in codes)
  assert capfd.readouterr().err == ''


def test_a_good_end_is_no_news(peers, capfd):
  made, codes = peers
  for peer in made[::-1]:
    peer.end()
  die(made[1])
  assert all(code.empty() for code in codes)
  assert capfd.readouterr().err == ''


def test_a_stranger_is_not_heard(capfd):
  left = queue.SimpleQueue()
  first = Peer(0, leave=left.put)
  port, _ = first.serve('127.0.0.1')
  stranger = Peer(1, leave=left.put)
  stranger.connect('127.0.0.1', port, 'guess')
  # The door is closed on it: for the stranger that is an end of process 0.
  assert left.get(timeout=30) == 1
  assert first._lines == []
  first._ended.set()
  shut(first)
  for line in stranger._lines:
    line.close()


def test_one_process_has_nobody_to_watch():
  with watched():
    pass
