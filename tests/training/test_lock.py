"""One writer a folder: refused, taken over, watched, lost."""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from transformer_jax.config import ConfigError
from transformer_jax.training import hosts, lock

# Holds the folder until it is told to end by a line on its input.
HOLDER = """
import pathlib, sys
from transformer_jax.training import lock
with lock.held(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
  """A process that holds the folder."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path)],
    cwd=pathlib.Path(__file__).parent.parent.parent,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None and process.stdin is not None
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()
  # What it did not read any more is nobody's loss.
  with contextlib.suppress(BrokenPipeError):
    process.stdin.close()


def test_the_second_is_refused_until_a_clean_end(holder, tmp_path):
  with (
    pytest.raises(ConfigError, match='is being written by a run on') as told,
    lock.held(tmp_path),
  ):
    pass
  assert '\n' not in str(told.value)
  holder.communicate('end\n', timeout=60)
  assert os.listdir(tmp_path) == []
  with lock.held(tmp_path):
    assert os.listdir(tmp_path) == ['lock']
  assert os.listdir(tmp_path) == []


def test_a_killed_holder_here_makes_nobody_wait(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert os.listdir(tmp_path) == ['lock']
  with lock.held(tmp_path, stale=1e9):
    pass
  assert os.listdir(tmp_path) == []


def test_an_error_frees_the_folder(tmp_path):
  with pytest.raises(KeyError), lock.held(tmp_path):
    raise KeyError
  assert os.listdir(tmp_path) == []


def elsewhere(folder: pathlib.Path, **changes) -> dict:
  """What a run on another machine left in the folder."""
  body = dict(owner='1', host='node7', machine='x', mount=1, flock='mine')
  body |= dict(beats=0) | changes
  (folder / 'lock').write_text(json.dumps(body))
  return body


def test_a_holder_elsewhere_that_died_is_waited_for(tmp_path, capsys):
  elsewhere(tmp_path)
  start = time.monotonic()
  with lock.held(tmp_path, stale=0.5):
    assert time.monotonic() - start >= 0.4
  text = capsys.readouterr().err
  assert 'last written by a run on node7: watching' in text
  assert text.count('\n') == 1


def test_a_holder_elsewhere_dead_for_long_makes_nobody_wait(tmp_path, capsys):
  elsewhere(tmp_path)
  hour_ago = time.time() - 3600
  os.utime(tmp_path / 'lock', (hour_ago, hour_ago))
  with lock.held(tmp_path):
    pass
  assert capsys.readouterr().err == ''


def test_a_holder_elsewhere_that_lives_refuses(tmp_path, capsys):
  elsewhere(tmp_path)
  beat = threading.Timer(0.2, lambda: elsewhere(tmp_path, beats=1))
  beat.start()
  with (
    pytest.raises(ConfigError, match='written by a run on node7'),
    lock.held(tmp_path, stale=4),
  ):
    pass
  beat.join()
  assert json.loads((tmp_path / 'lock').read_text())['beats'] == 1


def test_a_holder_elsewhere_that_ends_while_watched_makes_way(tmp_path):
  elsewhere(tmp_path)
  end = threading.Timer(0.2, (tmp_path / 'lock').unlink)
  end.start()
  with lock.held(tmp_path, stale=4):
    end.join()
    assert json.loads((tmp_path / 'lock').read_text())['owner'] != '1'
  assert os.listdir(tmp_path) == []


def test_who_comes_back_later_does_not_watch(tmp_path, capsys):
  elsewhere(tmp_path)
  with (
    pytest.raises(ConfigError, match='written by a run on node7'),
    lock.held(tmp_path, stale=2, watch=False),
  ):
    pass
  assert capsys.readouterr().err == ''
  a_while_ago = time.time() - 3
  os.utime(tmp_path / 'lock', (a_while_ago, a_while_ago))
  with lock.held(tmp_path, stale=2, watch=False):
    pass


@pytest.fixture
def kept(tmp_path):
  """A file lock that a server keeps for a node that crashed."""
  path = tmp_path / 'lock'
  path.touch()
  with path.open() as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@pytest.mark.usefixtures('kept')
@pytest.mark.parametrize(
  'holder',
  [
    {},
    # Who took over from that node, on this machine, was killed as well.
    dict(machine=lock._machine(), flock='none'),
  ],
)
def test_a_dead_node_whose_file_lock_is_kept_is_waited_for(tmp_path, holder):
  elsewhere(tmp_path, **holder)
  start = time.monotonic()
  with lock.held(tmp_path, stale=0.5):
    assert time.monotonic() - start >= 0.4
    assert json.loads((tmp_path / 'lock').read_text())['flock'] == 'none'
  assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures('kept')
@pytest.mark.parametrize('beats', [False, True])
def test_a_live_holder_of_the_file_lock_refuses(tmp_path, beats):
  # Here, the lock alone says so; elsewhere, the heart.
  elsewhere(tmp_path, **({} if beats else dict(machine=lock._machine())))
  beat = threading.Timer(0.2, lambda: elsewhere(tmp_path, beats=1))
  if beats:
    beat.start()
  with (
    pytest.raises(ConfigError, match='written by a run on node7'),
    lock.held(tmp_path, stale=4 if beats else 0.1),
  ):
    pass
  if beats:
    beat.join()
  assert json.loads((tmp_path / 'lock').read_text())['owner'] == '1'


@pytest.fixture
def no_file_locks(monkeypatch):
  def none(*_):
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr(fcntl, 'flock', none)


@pytest.mark.usefixtures('no_file_locks')
def test_without_file_locks_the_lease_alone_decides(tmp_path):
  with lock.held(tmp_path, beat=0.05, stale=1):
    assert json.loads((tmp_path / 'lock').read_text())['flock'] == 'none'
    with (
      pytest.raises(ConfigError, match='is being written'),
      lock.held(tmp_path, stale=4),
    ):
      pass


@pytest.mark.usefixtures('no_file_locks')
def test_of_two_that_begin_at_once_the_last_to_write_stays(
  tmp_path, monkeypatch
):
  write = lock._write

  def both(descriptor, body):
    write(descriptor, body)
    elsewhere(tmp_path, flock='none')

  monkeypatch.setattr(lock, '_write', both)
  with (
    pytest.raises(ConfigError, match='written by a run on node7'),
    lock.held(tmp_path, stale=1),
  ):
    pass
  assert json.loads((tmp_path / 'lock').read_text())['owner'] == '1'


def test_who_lost_the_lease_leaves(tmp_path, capfd):
  gone = threading.Event()
  codes = []

  def lost(code):
    codes.append(code)
    gone.set()

  with lock.held(tmp_path, beat=0.02, lost=lost):
    elsewhere(tmp_path)
    assert gone.wait(30)
  assert codes == [lock.LOST]
  assert 'was taken over by node7: leaving' in capfd.readouterr().err
  # The other's lock is not this one's to remove.
  assert (tmp_path / 'lock').exists()


def test_a_half_written_lock_is_free(tmp_path):
  (tmp_path / 'lock').write_text('{"owner": "1"')
  with lock.held(tmp_path):
    pass


@pytest.fixture
def second(monkeypatch):
  """This process is the second of two; the first holds a folder as '1'."""
  met = []
  monkeypatch.setattr(hosts, 'several', lambda: True)
  monkeypatch.setattr(hosts, 'first', lambda: False)
  monkeypatch.setattr(hosts, 'published', {lock.NAME: '1'}.__getitem__)
  monkeypatch.setattr(hosts, 'meet', lambda: met.append(True))
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  monkeypatch.setattr(lock, 'SEEN', 0.2)
  return met


@pytest.mark.parametrize('own', [None, '2'])
def test_a_folder_of_each_ones_own_is_refused(second, tmp_path, own):
  if own:
    elsewhere(tmp_path, owner=own)
  told = rf'{tmp_path} is not the same folder on process 1 \(.+\): take one'
  with pytest.raises(ConfigError, match=told):
    lock.admit_shared(tmp_path)
  assert not second


def test_a_folder_that_all_see_is_taken_though_late(second, tmp_path):
  shown = threading.Timer(0.05, lambda: elsewhere(tmp_path))
  shown.start()
  lock.admit_shared(tmp_path)
  shown.join()
  assert second


def test_the_first_says_by_what_name_it_holds_the_folder(tmp_path, monkeypatch):
  said = {}
  monkeypatch.setattr(hosts, 'several', lambda: True)
  monkeypatch.setattr(hosts, 'publish', said.__setitem__)
  monkeypatch.setattr(hosts, 'published', said.__getitem__)
  monkeypatch.setattr(hosts, 'meet', lambda: None)
  with lock.held(tmp_path):
    lock.admit_shared(tmp_path)
    owner = json.loads((tmp_path / 'lock').read_text())['owner']
  assert said == {lock.NAME: owner}
