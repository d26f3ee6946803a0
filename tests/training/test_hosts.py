"""Several processes on loopback do what one does; checkpoints fit any mesh."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import types
from typing import NamedTuple

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1

from launch import local
from tests.faults.place import until
from tests.training.conftest import arrays
from transformer_jax.config import MeshConfig
from transformer_jax.training import hosts, sharding
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.mesh import AXES

STEPS = 6
ROOT = pathlib.Path(__file__).parent.parent.parent


class Said(NamedTuple):
  """Of one process."""

  out: str  # on stdout
  log: str  # on stderr


def begun(words, logs, processes, devices, typed=''):
  """The processes of a program, and where each writes what it says."""
  (logs / 'typed').write_text(typed)
  commands = local.ranks(
    [sys.executable, '-m', *words],
    logs,
    processes=processes,
    devices=devices,
    platform='cpu',
  )
  own = os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  running = []
  for rank, command in enumerate(commands):
    with (
      open(command.log.with_suffix('.out'), 'wb') as out,
      open(command.log, 'wb') as log,
      open(os.devnull if rank else logs / 'typed') as own_in,
    ):
      running.append(
        subprocess.Popen(
          command.words,
          cwd=ROOT,
          env={**own, **command.environment},
          stdin=own_in,
          stdout=out,
          stderr=log,
        )
      )
  return running, [command.log for command in commands]


@pytest.fixture(scope='module')
def launched(config, tmp_path_factory):
  """(workdir, processes, devices, module, *flags, typed) -> what each said."""

  def run(workdir, processes, devices, module, *flags, typed='') -> list[Said]:
    words = [module, f'--workdir={workdir}', *flags]
    words += [f'--data.cache_dir={config.data.cache_dir}']
    running, logs = begun(
      words, tmp_path_factory.mktemp('logs'), processes, devices, typed
    )
    codes = [process.wait(timeout=500) for process in running]
    said = [
      Said(log.with_suffix('.out').read_text(), log.read_text()) for log in logs
    ]
    assert codes == [0] * processes, said
    return said

  return run


def test_what_keeps_stdout_writes_utf8():
  said = 'from transformer_jax.training.hosts import keep_stdout as k; k(); '
  done = subprocess.run(
    [sys.executable, '-c', said + r"print('\ud55c')"],
    cwd=ROOT,
    env=os.environ | {'PYTHONIOENCODING': 'latin-1'},
    stdout=subprocess.PIPE,
    check=True,
  )
  assert done.stdout == '한\n'.encode()


def train(launched, workdir, processes, devices, *flags, steps=STEPS):
  return launched(
    *(workdir, processes, devices, 'experiments.train', '--preset=test'),
    *('--train.save_every=2', '--train.evaluate_every=6'),
    *('--train.log_every=1', f'--train.steps={steps}', *flags),
  )


def losses(workdir) -> list[float]:
  """Of each training step; where a run ended it was validated as well."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = map(json.loads, lines)
  return [row['loss'] for row in rows if row['split'] == 'train']


def taken_up(workdir, step, **sizes) -> dict[str, jax.Array]:
  """Every array of a checkpoint, on a mesh of all devices."""
  stored = v1.metadata(f'{workdir}/checkpoints/{step}/arrays').metadata
  abstract = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in stored.items()
  }
  places = sharding.layout(MeshConfig(**sizes)).at_rest(abstract)
  checkpoints = Checkpoints(workdir / 'checkpoints')
  return checkpoints.restore(sharding.placed(abstract, places), step)


def restored(workdir, step, **sizes) -> dict[str, bytes]:
  """The bytes of every array of a checkpoint, taken up by a mesh here."""
  state = taken_up(workdir, step, **sizes)
  return {name: np.asarray(x).tobytes() for name, x in state.items()}


def digest(part) -> str:
  return hashlib.sha256(np.asarray(part).tobytes()).hexdigest()


def shards(workdir, step, **sizes) -> list[tuple]:
  """(array, its part, digest) of what lies on the devices of this process."""
  return [
    (
      name,
      [at.indices(n)[:2] for at, n in zip(shard.index, x.shape, strict=True)],
      digest(shard.data),
    )
    for name, x in taken_up(workdir, step, **sizes).items()
    for shard in x.addressable_shards
  ]


def numbers(workdir, step) -> np.ndarray:
  """Every float of a checkpoint, one after the other."""
  found = arrays(workdir, step)
  return np.concatenate(
    [np.frombuffer(found[name], np.float32) for name in sorted(found)]
  )


@pytest.fixture(scope='module')
def one(launched, tmp_path_factory):
  """The run of one process on one device."""
  workdir = tmp_path_factory.mktemp('one') / 'run'
  train(launched, workdir, 1, 1)
  return workdir


def scores(launched, workdir, processes, devices, *flags) -> dict:
  module = 'experiments.evaluate'
  said = launched(workdir, processes, devices, module, *flags)
  # One line, whatever libraries print; the others print nothing.
  result = json.loads(said[0].out)
  assert not any(other.out for other in said[1:])
  (path,) = (workdir / 'results').iterdir()
  assert json.loads(path.read_text()) == result
  return result


def assert_scored_alike(found, wanted):
  for name in ('bleu', 'chrf', 'exact', 'tokens', 'sentences', 'accuracy'):
    assert found[name] == wanted[name], name
  np.testing.assert_allclose(found['loss'], wanted['loss'], rtol=1e-5)


def test_two_processes_train_save_restore_and_decode_as_one(
  launched, one, tmp_path
):
  two = tmp_path / 'run'
  mesh = ('--mesh.data=-1', '--mesh.fsdp=2')
  said = train(launched, two, 2, 2, *mesh, steps=4)
  assert 'finished at step 4' in said[0].log
  devices = 'devices: 4 x cpu, 2 processes, data 2 x fsdp 2\n'
  assert devices in said[0].log and devices not in said[1].log
  assert 'step' not in said[1].log.split()
  # What four devices of two processes saved, one takes up, and eight.
  assert restored(two, 4, data=1) == arrays(two, 4)
  assert restored(two, 4, data=1, fsdp=4, tensor=2) == arrays(two, 4)
  # Now on one process, where what was saved is read.
  said = train(launched, two, 1, 2, *mesh)
  assert 'resumed at step 4' in said[0].log
  np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
  assert_scored_alike(scores(launched, two, 2, 1), scores(launched, one, 1, 1))


@pytest.mark.slow
def test_two_processes_translate_as_one(launched, one):
  lines = 's1 s2 s3\n\ns4 s2\n' * 5

  def translation(processes, devices, *flags):
    module = 'experiments.translate'
    said = launched(one, processes, devices, module, *flags, typed=lines)
    assert not any(other.out for other in said[1:])
    return said[0].out

  wanted = translation(1, 1)
  assert wanted.count('\n') == 15
  assert translation(2, 2, '--mesh.data=-1', '--mesh.fsdp=2') == wanted
  assert translation(1, 4, '--mesh.data=2', '--mesh.tensor=2') == wanted


def assert_taken_up(launched, workdir, step, processes, devices, **sizes):
  """Each of several processes restores its parts, to the bit."""
  words = [f'--{name}={n}' for name, n in dict(step=step, **sizes).items()]
  module = 'tests.training.test_hosts'
  said = launched(workdir, processes, devices, module, *words)
  whole, cut = taken_up(workdir, step, data=1), 0
  for process in said:
    parts = json.loads(process.out)
    # Of each array one on every device.
    assert len(parts) == devices * len(whole)
    for name, ends, found in parts:
      x = np.asarray(whole[name])
      part = x[tuple(slice(*pair) for pair in ends)]
      assert found == digest(part), (name, ends)
      cut += part.size < x.size
  assert cut


@pytest.mark.slow
def test_four_processes_and_back(launched, one, tmp_path):
  run = tmp_path / 'run'
  train(launched, run, 4, 2, '--mesh.data=-1', '--mesh.tensor=2', steps=2)
  train(launched, run, 2, 4, '--mesh.sequence=2', '--mesh.fsdp=4', steps=4)
  assert restored(run, 4, data=1) == arrays(run, 4)
  assert restored(run, 4, data=1, fsdp=4, tensor=2) == arrays(run, 4)
  # On half as many devices.
  assert_taken_up(launched, run, 4, 2, 2, data=-1, fsdp=2)
  halved = ('--mesh.data=-1', '--mesh.fsdp=2')
  said = train(launched, run, 2, 2, *halved, steps=5)
  assert 'resumed at step 4' in said[0].log
  said = train(launched, run, 1, 1)
  assert 'resumed at step 5' in said[0].log
  np.testing.assert_allclose(losses(run), losses(one), rtol=1e-5)
  np.testing.assert_allclose(numbers(run, 6), numbers(one, 6), atol=1e-4)
  four = scores(launched, run, 4, 1, '--mesh.data=4')
  assert_scored_alike(four, scores(launched, run, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('module', 'number', 'code', 'told'),
  [
    ('evaluate', signal.SIGTERM, 75, 'signal: leaving, run the same command'),
    ('translate', signal.SIGUSR1, 75, 'signal: leaving, run the same command'),
    pytest.param(
      *('evaluate', signal.SIGINT, 75),
      'signal: leaving, run the same command',
      marks=pytest.mark.skipif(
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        reason='a job in the background hears no Ctrl-C',
      ),
    ),
    ('evaluate', signal.SIGKILL, 1, 'error: process 1 ('),
  ],
)
def test_what_stops_one_that_decodes_stops_both(
  one, config, tmp_path, module, number, code, told
):
  lines = 's1 s2 s3 s4\n' * 4000
  (tmp_path / 'text').write_text(lines)
  files = [f'--{side}={tmp_path}/text' for side in ('source', 'reference')]
  words = [f'experiments.{module}', f'--workdir={one}', '--mesh.data=2']
  words += [f'--data.cache_dir={config.data.cache_dir}']
  words += ['--decode.max_tokens=128', *files * (module == 'evaluate')]
  running, logs = begun(words, tmp_path, 2, 1, typed=lines)
  try:
    started = ' of 4,000'
    until(running[0], lambda: started in logs[0].read_text())
    running[1].send_signal(number)
    ended = [process.wait(timeout=120) for process in running]
  finally:
    for process in running:
      process.kill()
      process.wait()
  said = [log.read_text() for log in logs]
  assert ended == [code, -9 if number == signal.SIGKILL else code], said
  assert told in said[0] and not logs[0].with_suffix('.out').read_text()
  # Only the first speaks.
  assert started not in said[1] and 'leaving, run' not in said[1]


if __name__ == '__main__':
  # One of several processes; see `assert_taken_up`.
  given = dict(word[2:].split('=') for word in sys.argv[1:])
  own = {flag.name: flag.default for flag in hosts.FLAGS}
  hosts.start(types.SimpleNamespace(**own))
  mesh = {axis: int(given.get(axis, 1)) for axis in AXES}
  workdir = pathlib.Path(given['workdir'])
  print(json.dumps(shards(workdir, int(given['step']), **mesh)), flush=True)
