"""launch.local: who is started, who is stopped, what is tried again."""

import importlib.metadata
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import local

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def commands(tmp_path):
  """(code of rank 0, of rank 1, ...) -> processes that run this Python."""

  (tmp_path / 'logs').mkdir()

  def make(*codes):
    return [
      local.Command(
        [sys.executable, '-c', code], {}, tmp_path / 'logs' / f'{rank}.log'
      )
      for rank, code in enumerate(codes)
    ]

  return make


def once(commands, grace=60.0, stop=None):
  return local.run_once(
    commands, stop or local.Stop(), grace=grace, shown=False
  )


def test_all_end_well_and_each_has_a_log(commands, tmp_path):
  assert once(commands('print(3)', 'print(4)')) == 0
  logs = tmp_path / 'logs'
  assert [(logs / f'{n}.log').read_text() for n in (0, 1)] == ['3\n', '4\n']


def test_one_that_fails_ends_the_others(commands):
  sleeper = 'import time; time.sleep(600)'
  start = time.monotonic()
  assert once(commands(sleeper, 'raise SystemExit(3)'), grace=0.2) == 3
  assert once(commands('import os; os.abort()', sleeper), grace=0.2) == -6
  assert time.monotonic() - start < 60


def test_the_others_have_time_to_leave_by_themselves(commands, tmp_path):
  waits = 'import time; time.sleep(0.5); print("left")'
  assert once(commands('raise SystemExit(75)', waits)) == 75
  assert (tmp_path / 'logs' / '1.log').read_text() == 'left\n'


def test_the_last_words_of_the_first_are_waited_for(
  commands, tmp_path, monkeypatch, capfd
):
  copy = local._copy
  late = lambda *own: (time.sleep(0.2), copy(*own))  # noqa: E731
  monkeypatch.setattr(local, '_copy', late)
  said = commands('import sys; print("last", file=sys.stderr)')
  assert local.run_once(said, local.Stop(), grace=60.0, shown=True) == 0
  assert (tmp_path / 'logs' / '0.log').read_text() == 'last\n'
  assert capfd.readouterr().err == 'last\n'


@pytest.mark.parametrize('lost', ['terminal', 'log'])
def test_what_takes_no_more_holds_nobody_up(lost, commands, capfd):
  # More than a pipe holds.
  (command,) = commands('import sys; sys.stderr.write("x" * 300_000)')
  if lost == 'log':
    command = command._replace(log=pathlib.Path('/dev/full'))
  kept, (reader, gone) = os.dup(2), os.pipe()
  os.close(reader)
  try:
    if lost == 'terminal':
      os.dup2(gone, 2)
    process, copying = local.start_shown(command)
    assert process.wait(timeout=60) == 0
    copying.join(60)
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(gone)
  err = capfd.readouterr().err
  heard = command.log.read_text() if lost == 'terminal' else err
  assert heard == 'x' * 300_000


def attempts(*codes, retries=9):
  """Exit code and number of attempts of a program with these exit codes."""
  left = list(codes)
  code = local.retrying(
    lambda: left.pop(0), local.Stop(), retries=retries, what='it', pause=0.001
  )
  return code, len(codes) - len(left)


def test_what_is_tried_again(capsys):
  assert attempts(0) == (0, 1)
  assert attempts(2, 0) == (2, 1)
  assert attempts(75, 1, -9, 0) == (0, 4)
  told = capsys.readouterr().err
  assert 'it: preempted and saved (75); again in 0.001 s (1 of 9)' in told
  assert 'it: killed by SIGKILL; again in 0.004 s (3 of 9)' in told
  assert attempts(1, 1, 1, 1, retries=2) == (1, 3)
  assert attempts(-9, retries=0) == (137, 1)


def test_ranks_find_each_other_and_their_own_devices(tmp_path):
  made = local.ranks([], tmp_path, processes=2, devices=4, platform='cpu')
  first, second = (command.environment for command in made)
  assert first['JAX_COORDINATOR_ADDRESS'] == second['JAX_COORDINATOR_ADDRESS']
  assert first['JAX_COORDINATOR_ADDRESS'].startswith('127.0.0.1:')
  assert [e['JAX_PROCESS_ID'] for e in (first, second)] == ['0', '1']
  assert first['JAX_NUM_PROCESSES'] == '2'
  assert first['JAX_NUM_CPU_DEVICES'] == '4'
  alone = local.ranks([], tmp_path, processes=1, devices=2, platform='cpu')
  assert 'JAX_NUM_PROCESSES' not in alone[0].environment


@pytest.mark.parametrize(
  ('given', 'own'),
  [(None, '2,3'), ('4,5,6,7', '6,7'), ('GPU-1a,GPU-2b,0, 3', '0, 3')],
)
def test_ranks_share_out_the_gpus_that_may_be_seen(given, own, monkeypatch):
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  if given is not None:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
  second = local.devices_of(1, 2, 'cuda')
  assert second == {'JAX_PLATFORMS': 'cuda', 'CUDA_VISIBLE_DEVICES': own}


@pytest.fixture
def refused(tmp_path, capsys):
  """(words) -> what the launcher says, having started and written nothing."""

  def run(*words):
    assert local.main([f'--logs={tmp_path}/logs', *words]) == local.REFUSED
    assert list(tmp_path.iterdir()) == []
    told = capsys.readouterr().err
    assert told.startswith('error: ') and told.count('\n') == 1
    return told

  return run


@pytest.mark.parametrize('given', ['', '4,5,6'])
def test_gpus_that_may_not_be_seen_are_refused(given, refused, monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
  points = [importlib.metadata.EntryPoint('cuda', 'p.xla_cuda12', 'g')]
  monkeypatch.setattr(importlib.metadata, 'entry_points', lambda group: points)
  words = ['--platform=cuda', '--processes=2', '--devices=2', 'this']
  count = len(given.split(',')) if given else 0
  told = f'CUDA_VISIBLE_DEVICES={given} shows {count} GPUs, and 4 are asked for'
  assert told in refused(*words)


def test_a_jax_without_cuda_is_refused_to_who_asks_for_it(refused, monkeypatch):
  monkeypatch.setattr(importlib.metadata, 'entry_points', lambda group: [])
  assert "pip install 'jax[cuda12]'" in refused('--platform=cuda', 'this')


@pytest.mark.parametrize(
  'name', ['experiments.trian', 'experimentz.train', 'experiments', '.train']
)
def test_a_module_that_is_not_there_is_refused(name, refused):
  assert f'no module {name} that can be run: ' in refused(name)


# Says that it is there, leaves with 75 when it is asked to; with 1 on Ctrl-C.
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
print('ready', file=sys.stderr, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
  ('send', 'number'),
  [
    (os.kill, signal.SIGTERM),
    # As a terminal does it: to the launcher's whole process group.
    (os.killpg, signal.SIGINT),
    (os.killpg, signal.SIGHUP),
  ],
)
def test_a_signal_goes_to_all_and_ends_the_retries(tmp_path, send, number):
  (tmp_path / 'polite.py').write_text(POLITE)
  path = os.pathsep.join([str(ROOT), str(tmp_path)])
  launcher = subprocess.Popen(
    [
      *(sys.executable, '-m', 'launch.local', '--processes=2'),
      *('--logs', str(tmp_path / 'logs'), 'polite'),
    ],
    env=os.environ | {'PYTHONPATH': path},
    stderr=subprocess.PIPE,
    start_new_session=True,
  )
  assert launcher.stderr is not None
  try:
    assert launcher.stderr.readline() == b'ready\n'
    second = tmp_path / 'logs' / 'rank1.log'
    limit = time.monotonic() + 60
    while not (second.exists() and second.read_text()):
      assert time.monotonic() < limit
      threading.Event().wait(0.01)
    send(launcher.pid, number)
    rest = launcher.communicate(timeout=60)[1].decode()
    assert launcher.returncode == 75
  finally:
    launcher.kill()
    launcher.wait()
    launcher.stderr.close()
  assert 'preempted and saved (75)' in rest and 'again' not in rest


def test_a_folder_that_takes_no_logs_is_refused(tmp_path, capsys):
  (tmp_path / 'file').touch()
  assert local.main([f'--logs={tmp_path}/file/logs', 'this']) == 2
  told = capsys.readouterr().err
  assert told.startswith('error: no logs can be written to ')
  assert told.count('\n') == 1


def test_wrong_words_are_refused():
  for words in ([], ['--processes=0', 'x'], ['--platform=abacus', 'x']):
    with pytest.raises(SystemExit) as left:
      local.parse(words)
    assert left.value.code == 2
  options = local.parse(['--devices=2', 'experiments.train', '--workdir=w'])
  assert options.module == 'experiments.train'
  assert options.flags == ['--workdir=w']
