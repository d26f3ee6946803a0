"""Processes that miss each other; here as objects on one machine."""

import contextlib
import os
import queue
import socket
import time
import types

import jax
import pytest
from jax._src import distributed

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


def has_ipv6():
  with contextlib.suppress(OSError):
    socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    return True
  return False


@pytest.fixture
def second(monkeypatch):
  """(coordinator, port, token) -> this process is the second of two."""

  def be(coordinator, port, token):
    found = types.SimpleNamespace(
      coordinator_address=coordinator,
      client=types.SimpleNamespace(
        blocking_key_value_get=lambda *_: f'{port} {token}'
      ),
    )
    monkeypatch.setattr(distributed, 'global_state', found)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)

  return be


@pytest.mark.parametrize(
  ('known_as', 'coordinator'),
  [
    ('127.0.0.1', '127.0.0.1:1'),
    ('localhost', 'localhost:1'),
    ('::1', '[::1]:1'),
    # Known to others by an address of either kind.
    ('node7', '127.0.0.1:1'),
    ('node7', '[::1]:1'),
  ],
)
def test_the_first_is_reached_by_any_address(
  known_as, coordinator, second, monkeypatch
):
  if '::1' in coordinator and not has_ipv6():
    pytest.skip('no IPv6 here')
  both = [Peer(0), Peer(1)]
  monkeypatch.setattr(peers_lib, 'Peer', both.__getitem__)
  port, token = both[0].serve(known_as)
  second(coordinator, port, token)
  with watched():
    while not both[0]._lines:
      time.sleep(0.001)
  both[0].end()
  shut(both[0])
  for peer in both:
    for line in peer._lines:
      line.close()


def test_who_does_not_reach_the_first_says_so(second, monkeypatch, capfd):
  def leave(code):
    raise SystemExit(code)

  monkeypatch.setattr(os, '_exit', leave)
  with socket.create_server(('127.0.0.1', 0)) as closed:
    port = closed.getsockname()[1]
  second('127.0.0.1:1', port, 'token')
  with pytest.raises(SystemExit) as left, watched():
    pass
  told = capfd.readouterr().err
  assert left.value.code == 1 and told.count('\n') == 1
  assert told.startswith('error: process 1 has no connection to process 0 (')


def test_one_process_has_nobody_to_watch():
  with watched():
    pass
