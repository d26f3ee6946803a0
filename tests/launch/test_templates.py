"""Scripts and manifests: rendered, linted, and run against false clusters."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

from launch import render
from transformer_jax.config import ConfigError

ROOT = pathlib.Path(__file__).parent.parent.parent
LAUNCH = ROOT / 'launch'
SCRIPTS = [*LAUNCH.glob('*/*.sh'), *LAUNCH.glob('*/*.sbatch')]
MANIFESTS = sorted((LAUNCH / 'kubernetes').glob('*.yaml'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
  subprocess.run(['bash', '-n', script], check=True)
  if shutil.which('shellcheck'):
    subprocess.run(['shellcheck', script], check=True)


def rendered(path: pathlib.Path) -> dict:
  values = dict.fromkeys(render.names(path.read_text()), '3')
  values |= {
    name: name for name in ('name', 'image', 'claim') if name in values
  }
  values['command'] = "'experiments.train', '--workdir=/runs/x'"
  return yaml.safe_load(render.render(path, values))


# What may stand in an object, by the API's own reference, as far as it is
# used here: a field that is spelt wrong is dropped by a server without a word.
ENV = {'name': str, 'value': str, 'valueFrom': {'fieldRef': {'fieldPath': str}}}
CONTAINER = {
  'name': str,
  'image': str,
  'command': [str],
  'args': [str],
  'env': [ENV],
  'ports': [{'containerPort': int}],
  'resources': {'limits': {'nvidia.com/gpu': int}},
  'volumeMounts': [{'name': str, 'mountPath': str}],
}
POD = {
  'restartPolicy': str,
  'terminationGracePeriodSeconds': int,
  'containers': [CONTAINER],
  'volumes': [
    {
      'name': str,
      'persistentVolumeClaim': {'claimName': str},
      'emptyDir': {'medium': str},
    }
  ],
}
CODES = {'containerName': str, 'operator': str, 'values': [int]}
JOB = {
  'completionMode': str,
  'completions': int,
  'parallelism': int,
  'backoffLimit': int,
  'backoffLimitPerIndex': int,
  'maxFailedIndexes': int,
  'podFailurePolicy': {
    'rules': [
      {'action': str, 'onExitCodes': CODES, 'onPodConditions': [{'type': str}]}
    ]
  },
  'template': {'spec': POD},
}
SET = {
  'network': {'enableDNSHostnames': bool},
  'failurePolicy': {
    'maxRestarts': int,
    'rules': [{'name': str, 'action': str, 'onJobFailureReasons': [str]}],
  },
  'replicatedJobs': [{'name': str, 'replicas': int, 'template': {'spec': JOB}}],
}
KINDS = {
  ('batch/v1', 'Job'): JOB,
  ('jobset.x-k8s.io/v1alpha2', 'JobSet'): SET,
}


def wrong(value, schema, path='') -> list[str]:
  """The paths of a value that a schema does not know."""
  if isinstance(schema, dict):
    if not isinstance(value, dict):
      return [path]
    return [
      name
      for key, inner in value.items()
      for name in (
        wrong(inner, schema[key], f'{path}.{key}')
        if key in schema
        else [f'{path}.{key}']
      )
    ]
  if isinstance(schema, list):
    if not isinstance(value, list):
      return [path]
    return [
      name
      for n, inner in enumerate(value)
      for name in wrong(inner, schema[0], f'{path}[{n}]')
    ]
  return [] if type(value) is schema else [path]


def jobs(found: dict) -> list[dict]:
  """The specs of the jobs in an object."""
  if found['kind'] == 'Job':
    return [found['spec']]
  return [job['template']['spec'] for job in found['spec']['replicatedJobs']]


@pytest.mark.parametrize('path', MANIFESTS, ids=lambda path: path.name)
def test_manifests_have_known_fields_of_the_right_types(path):
  found = rendered(path)
  assert set(found) == {'apiVersion', 'kind', 'metadata', 'spec'}
  schema = KINDS[found['apiVersion'], found['kind']]
  assert wrong(found['spec'], schema) == []
  found['spec']['compeltions'] = 3
  assert wrong(found['spec'], schema) == ['.compeltions']


@pytest.mark.parametrize('path', MANIFESTS, ids=lambda path: path.name)
def test_manifests_respect_exit_codes(path):
  for job in jobs(rendered(path)):
    pod = job['template']['spec']
    assert job['completionMode'] == 'Indexed'
    assert job['completions'] == job['parallelism']
    # Else the kubelet restarts a container and no policy sees its exit code.
    assert pod['restartPolicy'] == 'Never'
    rules = job['podFailurePolicy']['rules']
    by_code = {
      code: rule['action']
      for rule in rules
      for code in rule.get('onExitCodes', {}).get('values', [])
    }
    assert by_code == {2: 'FailJob', 75: 'Ignore'}
    containers = {container['name'] for container in pod['containers']}
    mounted = {
      mount['name']
      for container in pod['containers']
      for mount in container['volumeMounts']
    }
    assert mounted == {volume['name'] for volume in pod['volumes']}
    for rule in rules:
      if 'onExitCodes' in rule:
        assert rule['onExitCodes']['containerName'] in containers


def test_a_crash_of_all_hosts_of_a_jobset_is_one_restart():
  found = rendered(LAUNCH / 'kubernetes' / 'train.yaml')
  (job,) = jobs(found)
  # Each pod of them fails: a limit above 0 would count them one by one.
  assert job['backoffLimit'] == 0
  assert found['spec']['failurePolicy']['maxRestarts'] == 3


def test_the_hosts_of_a_jobset_find_the_first(monkeypatch):
  found = rendered(LAUNCH / 'kubernetes' / 'train.yaml')
  (job,) = found['spec']['replicatedJobs']
  (container,) = job['template']['spec']['template']['spec']['containers']
  env = {entry['name']: entry.get('value') for entry in container['env']}
  name = found['metadata']['name']
  port = container['ports'][0]['containerPort']
  first = f'{name}-{job["name"]}-0-0.{name}:{port}'
  assert env['JAX_COORDINATOR_ADDRESS'] == first
  assert env['JAX_NUM_PROCESSES'] == '3'
  assert set(env) == {
    'JAX_COORDINATOR_ADDRESS',
    'JAX_NUM_PROCESSES',
    'JAX_PROCESS_ID',
  }


def test_an_image_has_nothing_that_git_ignores():
  ignored = (LAUNCH / 'Dockerfile.dockerignore').read_text().split()
  for line in (ROOT / '.gitignore').read_text().split():
    # Git means any folder unless a pattern begins with /; Docker, the root.
    name = line.strip('/')
    assert (name if line.startswith('/') else f'**/{name}') in ignored
  assert '.git' in ignored


def test_a_template_is_filled_in_whole_or_not_at_all(tmp_path, capsys):
  path = tmp_path / 'template'
  path.write_text('a $one b $$(TWO)\n')
  assert render.main([str(path), 'one=1']) == 0
  assert capsys.readouterr().out == 'a 1 b $(TWO)\n'
  for values, words in [({}, 'needs one'), ({'one': '', 'x': ''}, 'ask for x')]:
    with pytest.raises(ConfigError, match=words):
      render.render(path, values)
  assert render.main([str(path), 'one']) == 2
  assert render.main([str(tmp_path / 'none'), 'one=1']) == 2


@pytest.fixture
def cluster(tmp_path):
  """False srun, scontrol, gcloud: (script, words, environment) -> its end.

  srun and gcloud leave with CODES, one after another; all write down what
  they were called with.
  """
  false = tmp_path / 'bin'
  false.mkdir()
  log = tmp_path / 'calls'
  told = 'cpus=${SRUN_CPUS_PER_TASK:-} gpus=${JAX_LOCAL_DEVICE_IDS:-}'
  say = f'echo "$(basename "$0") $* {told}" >> {log}\n'
  ends = (
    f'echo >> {log}.n; exit "$(cut -d, -f"$(wc -l < {log}.n)" <<< "$CODES")"'
  )
  for name, body in [('srun', ends), ('gcloud', ends), ('scontrol', '')]:
    (false / name).write_text(f'#!/usr/bin/env bash\n{say}{body}\n')
    (false / name).chmod(0o755)

  def run(script, *words, codes, **environment):
    for path in tmp_path.glob('calls*'):
      path.unlink()
    ended = subprocess.run(
      ['bash', LAUNCH / script, *words],
      env=os.environ
      | {'PATH': f'{false}:{os.environ["PATH"]}', 'CODES': codes, 'PAUSE': '0'}
      | {'SLURM_SUBMIT_DIR': str(tmp_path)}
      | environment,
      capture_output=True,
      text=True,
      timeout=60,
    )
    calls = log.read_text().splitlines() if log.exists() else []
    return ended.returncode, calls

  return run


@pytest.mark.parametrize(
  ('codes', 'last_again', 'counted'),
  [
    ('0', False, False),
    ('2', False, False),
    ('1 137', True, True),
    # Preemptions are none of the crashes that RETRIES speaks of.
    ('75 75 75 75 75 1', True, True),
    ('1 75 1 75', True, True),
    ('1 75 1 1', False, False),
    ('1 0', False, False),
  ],
)
@pytest.mark.parametrize('name', ['train', 'study'])
def test_slurm_queues_again_what_may_be(
  cluster, tmp_path, name, codes, last_again, counted
):
  wanted = 'scontrol requeue ' + {'train': '7', 'study': '7_11'}[name]
  *before, last = codes.split()
  for count, code in enumerate([*before, last]):
    ended, calls = cluster(
      f'slurm/{name}.sbatch',
      *('--workdir=a b', '--preset=tiny'),
      codes=code,
      RETRIES='2',
      SLURM_JOB_ID='7',
      SLURM_ARRAY_JOB_ID='7',
      SLURM_ARRAY_TASK_ID='11',
      SLURM_ARRAY_TASK_MIN='10',
      SLURM_ARRAY_TASK_COUNT='4',
      SLURM_RESTART_COUNT=str(count),
    )
    assert ended == int(code)
    assert '--workdir=a b --preset=tiny' in calls[0]
    again = last_again or count < len(before)
    assert [call.startswith(wanted) for call in calls[1:]] == [True] * again
    if name == 'study':
      assert '-m experiments.ablate --shard=1/4 ' in calls[0]
  kept = {'train': '.crashes-7', 'study': '.crashes-7_11'}[name]
  assert (tmp_path / kept).exists() == counted


@pytest.mark.parametrize(
  ('environment', 'gpus'),
  [
    ({}, '0,1,2,3'),
    # All are seen by every task: JAX gives each the one of its number.
    (dict(SLURM_NTASKS_PER_NODE='4'), ''),
    # Each task sees its own alone, which is the first to it.
    (dict(SLURM_NTASKS_PER_NODE='4', SLURM_GPUS_PER_TASK='1'), '0'),
    (dict(SLURM_NTASKS_PER_NODE='2', SLURM_GPUS_PER_TASK='a100:2'), '0,1'),
    (dict(SLURM_GPUS_ON_NODE=''), ''),
  ],
)
def test_a_slurm_task_takes_all_gpus_that_it_sees(cluster, environment, gpus):
  own = dict(SLURM_JOB_ID='7', SLURM_GPUS_ON_NODE='4') | environment
  _, calls = cluster('slurm/train.sbatch', codes='0', **own)
  assert calls[0].endswith(f' gpus={gpus}')


@pytest.mark.parametrize('name', ['train', 'study'])
def test_a_slurm_task_has_the_cpus_that_sbatch_was_asked_for(cluster, name):
  own = dict(SLURM_JOB_ID='7', SLURM_ARRAY_JOB_ID='7', SLURM_CPUS_PER_TASK='6')
  own |= {f'SLURM_ARRAY_TASK_{of}': '1' for of in ('ID', 'MIN', 'COUNT')}
  _, calls = cluster(f'slurm/{name}.sbatch', codes='0', **own)
  assert ' cpus=6 ' in calls[0]


@pytest.mark.parametrize(
  ('codes', 'end', 'starts'),
  [('0', 0, 1), ('2', 2, 1), ('75,75,1,0', 0, 4), ('1,1,1,1,1', 1, 4)],
)
def test_a_tpu_pod_is_kept_alive(cluster, codes, end, starts):
  names = dict(TPU_NAME='slice', TPU_ZONE='zone')
  words = ['run', 'experiments.train', '--workdir=/runs/a b']
  ended, calls = cluster('tpu/pod.sh', *words, codes=codes, **names)
  assert (ended, len(calls)) == (end, starts)
  assert 'ssh slice --zone=zone --worker=all' in calls[0]
  assert (
    r'experiments.train --distributed.detect --workdir=/runs/a\ b' in calls[0]
  )


def test_stopping_a_tpu_pod_spares_the_shell_that_does_it(cluster):
  names = dict(TPU_NAME='slice', TPU_ZONE='zone')
  ended, (call,) = cluster('tpu/pod.sh', 'stop', codes='0', **names)
  command = call.partition('--command=')[2]
  pattern = command.split("'")[1]
  assert ended == 0 and command.startswith('pkill --signal TERM --full ')
  assert re.search(pattern, '.venv/bin/python -m experiments.train --workdir=x')
  assert not re.search(pattern, f'bash -c {command}')


def test_a_tpu_pod_wants_to_be_named(cluster):
  assert cluster('tpu/pod.sh', 'run', codes='0')[0] != 0
  names = dict(TPU_NAME='slice', TPU_ZONE='zone')
  assert cluster('tpu/pod.sh', 'start', codes='0', **names) == (2, [])
