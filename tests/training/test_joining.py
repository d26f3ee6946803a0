"""How several processes find each other, and wait for who comes late."""

import os
import pathlib
import socket
import subprocess
import sys
import types

import jax
import pytest
from jax.experimental import multihost_utils

from launch import local
from transformer_jax.config import ConfigError
from transformer_jax.training import hosts

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_a_cluster_is_several_tasks_of_a_step():
  step = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-2]'}
  assert hosts.in_cluster(step | {'SLURM_NTASKS': '2'})
  assert not hosts.in_cluster(step | {'SLURM_NTASKS': '1'})
  assert hosts.in_cluster({'OMPI_COMM_WORLD_SIZE': '4'})
  assert hosts.in_cluster({'TPU_WORKER_HOSTNAMES': 'a,b'})
  assert not hosts.in_cluster({'TPU_WORKER_HOSTNAMES': 'localhost'})


def alone(coordinator, processes, process):
  """The options of one process."""
  values = (coordinator, processes, process, False)
  names = [flag.name for flag in hosts.FLAGS]
  return types.SimpleNamespace(**dict(zip(names, values, strict=True)))


@pytest.mark.parametrize(
  ('coordinator', 'processes', 'process', 'told'),
  [
    ('here:1', 0, -1, 'given together'),
    ('', 2, 0, 'given together'),
    ('here:1', 2, 2, 'count from 0'),
    ('here', 2, 0, 'HOST:PORT'),
    ('here:door', 2, 0, 'HOST:PORT'),
  ],
)
def test_flags_that_do_not_go_together(coordinator, processes, process, told):
  with pytest.raises(ConfigError, match=told):
    hosts.start(alone(coordinator, processes, process))


def test_a_number_of_the_environment_is_one(monkeypatch):
  monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
  with pytest.raises(ConfigError, match='JAX_NUM_PROCESSES=two is not a numb'):
    hosts.start(alone('here:1', 0, 0))


@pytest.mark.parametrize('named', [True, False])
def test_who_is_told_everything_asks_no_scheduler(named, monkeypatch):
  # Of a SLURM step JAX takes one GPU a process, unless it does not ask.
  step = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-2]'}
  step |= {'SLURM_NTASKS': '2', 'SLURM_PROCID': '1', 'SLURM_LOCALID': '0'}
  for name, value in step.items():
    monkeypatch.setenv(name, value)
  given = {}
  monkeypatch.setattr(hosts, 'keep_stdout', lambda: None)
  monkeypatch.setattr(jax.distributed, 'initialize', given.update)
  hosts.start(alone('here:1', 2, 1) if named else alone('', 0, -1))
  if named:
    assert given['cluster_detection_method'] == 'deactivate'
    assert given['coordinator_address'] == 'here:1'
  else:
    assert not {'cluster_detection_method', 'process_id'} & set(given)


# Would wait for two seconds only, and is refused as every program is.
IMPATIENT = """
import sys, types
from transformer_jax.config import ConfigError
from transformer_jax.training import hosts
hosts.WAIT_SECONDS = 2
address, process = sys.argv[1:]
values = (address, 2, int(process), False)
names = [flag.name for flag in hosts.FLAGS]
try:
  hosts.start(types.SimpleNamespace(**dict(zip(names, values))))
except ConfigError as error:
  print(error, file=sys.stderr)
  sys.exit(2)
"""


def impatient(address, process):
  """The end of a process whose other never comes: its code and its lines."""
  ended = subprocess.run(
    [sys.executable, '-c', IMPATIENT, address, str(process)],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  return ended.returncode, ended.stderr.splitlines()


def test_a_taken_port_is_refused():
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]
    code, told = impatient(f'127.0.0.1:{port}', 0)
  assert (code, len(told)) == (2, 1), told
  assert told[0].startswith(f'port {port} of this machine cannot be taken')


def test_who_waits_in_vain_says_for_whom():
  address = f'127.0.0.1:{local.free_port()}'
  code, told = impatient(address, 0)
  assert (code, len(told)) == (1, 2), told
  assert told[0].startswith(f'waiting for all 2 processes at {address}')
  assert 'not all other processes came within 2 s; process 0' in told[1]
  code, told = impatient(address, 1)
  assert (code, len(told)) == (1, 1), told
  assert f'nobody answers at {address} within 2 s' in told[0]


@pytest.mark.parametrize(
  ('environment', 'flags'),
  [
    # As Open MPI 5 has it: without the address that JAX looks for.
    ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'}, []),
    ({}, ['--distributed.detect']),
  ],
)
def test_who_is_not_found_is_asked_for(environment, flags, tmp_path):
  words = [sys.executable, '-m', 'experiments.train', '--preset=test']
  ended = subprocess.run(
    [*words, f'--workdir={tmp_path}/run', *flags],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment},
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2
  assert ended.stderr.count('\n') == 1
  assert 'does not find the other processes' in ended.stderr
  assert '.coordinator, --distributed.processes and --dist' in ended.stderr


def both(words, *environments, code=0):
  """Two processes to their ends: what each said, once both left alike."""
  own = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1'}
  running = [
    subprocess.Popen(
      [sys.executable, *words],
      cwd=ROOT,
      env=own | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for environment in environments
  ]
  try:
    said = [process.communicate(timeout=300) for process in running]
  finally:
    for process in running:
      process.kill()
      process.wait()
  assert [process.returncode for process in running] == [code] * 2, said
  return said


@pytest.mark.slow
def test_a_slurm_step_is_joined_without_a_flag(tmp_path):
  # JAX's port is one of the job's number.
  step = {'SLURM_JOB_ID': str(os.getpid()), 'SLURM_NTASKS': '2'}
  step |= {'SLURM_STEP_NODELIST': 'localhost', 'SLURM_STEP_NUM_NODES': '1'}
  tasks = [{'SLURM_PROCID': n, 'SLURM_LOCALID': n} for n in '01']
  words = ['-m', 'experiments.train', f'--workdir={tmp_path}/run']
  words += ['--preset=test', '--train.steps=2', '--mesh.data=2']
  words += [f'--data.cache_dir={tmp_path}/cache']
  first, second = both(words, *(step | task for task in tasks))
  assert 'devices: 2 x cpu, 2 processes, data 2\n' in first[1]
  assert 'finished at step 2\n' in first[1] and 'finished' not in second[1]


@pytest.mark.slow
def test_a_workdir_of_each_ones_own_is_refused(tmp_path):
  ranks = local.ranks([], tmp_path, processes=2, devices=1, platform='cpu')
  words = ['-m', 'experiments.train', '--preset=test', '--workdir=~/run']
  words += [f'--data.cache_dir={tmp_path}/cache', '--mesh.data=2']
  homes = [{'HOME': str(tmp_path / name)} for name in ('one', 'other')]
  said = both(
    words,
    *(
      {**rank.environment, **home}
      for rank, home in zip(ranks, homes, strict=True)
    ),
    code=2,
  )
  told = f'--workdir={tmp_path}/other/run is not the same folder on process 1 ('
  assert all(told in err for _, err in said), said
  # Nothing is learned, or begun.
  assert not [*tmp_path.glob('cache/*'), *tmp_path.glob('*/run/[!l]*')]


# A first process whose work alone takes longer than a collective waits.
LATE = """
import time, types
from transformer_jax.training import hosts
own = {flag.name: flag.default for flag in hosts.FLAGS}
hosts.start(types.SimpleNamespace(**own))
with hosts.first_alone():
  time.sleep(35 * hosts.first())
print(hosts.agreed(7 * hosts.first()))
"""


@pytest.mark.slow
def test_who_comes_late_to_the_first_collective_is_waited_for(tmp_path):
  ranks = local.ranks([], tmp_path, processes=2, devices=1, platform='cpu')
  said = both(['-c', LATE], *(rank.environment for rank in ranks))
  assert [out for out, _ in said] == ['7\n', '7\n']


def test_all_meet_once_before_the_first_collective(monkeypatch):
  done = []
  monkeypatch.setattr(hosts, 'several', lambda: True)
  monkeypatch.setattr(hosts, 'meet', lambda: done.append('meet'))
  broadcast = lambda x: done.append('collective') or x  # noqa: E731
  monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', broadcast)
  hosts.meet_once.cache_clear()
  try:
    with hosts.first_alone():
      assert hosts.agreed(7) == 7
  finally:
    hosts.meet_once.cache_clear()
  assert done == ['meet', 'collective', 'collective']
