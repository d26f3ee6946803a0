"""A study by many workers: processes here, a SLURM array, or pods.

    python -m launch.sweep --on=local --workers=4 --study=NAME --workdir=W
    python -m launch.sweep --on=slurm --workers=32 --study=NAME --workdir=W
    python -m launch.sweep --on=kubernetes --workers=32 --image=IMAGE \\
      --claim=CLAIM --study=NAME --workdir=W

Worker i of n runs `experiments.ablate --shard=i/n`, i from 0. A worker that is
preempted or crashes is started again; the cells that it has done stay done.
--dry_run prints what would be run. How often is RETRIES in the environment for
SLURM, and in the manifest for pods (3). Flags that are not named here go to
experiments.ablate.
"""

import argparse
import concurrent.futures
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

from launch import local, render
from transformer_jax.config import ConfigError

HERE = pathlib.Path(__file__).parent


def ablate(options: argparse.Namespace, shard: str) -> list[str]:
  """The words of one worker, without the interpreter's."""
  return [
    'experiments.ablate',
    f'--study={options.study}',
    f'--workdir={options.workdir}',
    f'--shard={shard}',
    *options.flags,
  ]


def on_local(options: argparse.Namespace) -> int:
  """Every worker a process of its own, each started again by itself."""
  local.admit_platform(options.platform, options.workers, 1)
  stop = local.Stop()
  stop.listen()
  logs = pathlib.Path(options.workdir).expanduser() / 'logs'
  local.open_logs(logs)

  def worker(number: int) -> int:
    words = ablate(options, f'{number}/{options.workers}')
    command = local.Command(
      [sys.executable, '-m', *words],
      local.devices_of(number, 1, options.platform),
      logs / f'worker{number}.log',
    )
    return local.retrying(
      lambda: local.run_once([command], stop, grace=30.0, shown=False),
      stop,
      retries=options.retries,
      what=f'worker {number}, log in {command.log}',
    )

  with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
    codes = list(pool.map(worker, range(options.workers)))
  # What has to be corrected is said before what may be tried again.
  return local.REFUSED if local.REFUSED in codes else max(codes)


def slurm_words(options: argparse.Namespace) -> list[str]:
  return [
    'sbatch',
    f'--array=0-{options.workers - 1}',
    str(HERE / 'slurm' / 'study.sbatch'),
    f'--study={options.study}',
    f'--workdir={options.workdir}',
    *options.flags,
  ]


def submitted(words: Sequence[str], text: str = '') -> int:
  """The exit code of a cluster's own program, which reads a text.

  Raises:
    ConfigError: this machine does not have it.
  """
  try:
    return subprocess.run(words, input=text.encode(), check=False).returncode
  except FileNotFoundError as error:
    raise ConfigError(
      f'{words[0]} is not found: run this on a machine that has it, or see by '
      '--dry_run what it would be given'
    ) from error


def on_slurm(options: argparse.Namespace) -> int:
  return submitted(slurm_words(options))


def manifest(options: argparse.Namespace) -> str:
  """The Kubernetes object of a study."""
  shard = f'$(JOB_COMPLETION_INDEX)/{options.workers}'
  words = ', '.join(repr(word) for word in ablate(options, shard))
  return render.render(
    HERE / 'kubernetes' / 'study.yaml',
    dict(
      name=options.study.replace('_', '-'),
      workers=str(options.workers),
      image=options.image,
      claim=options.claim,
      gpus=str(options.gpus),
      command=words,
    ),
  )


def on_kubernetes(options: argparse.Namespace) -> int:
  return submitted(['kubectl', 'apply', '--filename', '-'], manifest(options))


PLACES = {
  'local': on_local,
  'slurm': on_slurm,
  'kubernetes': on_kubernetes,
}
# The flags that one place alone reads, and what they are unless given.
OWN = {
  'local': {'platform': 'cpu', 'retries': 3},
  'slurm': {},
  'kubernetes': {'image': '', 'claim': '', 'gpus': 1},
}


def would_run(options: argparse.Namespace) -> str:
  """What --dry_run prints."""
  if options.on == 'slurm':
    return shlex.join(slurm_words(options))
  if options.on == 'kubernetes':
    return manifest(options).rstrip()
  count = options.workers
  return '\n'.join(
    shlex.join(['python', '-m', *ablate(options, f'{number}/{count}')])
    for number in range(count)
  )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='launch.sweep', description=__doc__, allow_abbrev=False
  )
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument('--on', choices=PLACES, required=True)
  parser.add_argument('--workers', type=int, required=True)
  parser.add_argument('--study', required=True)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--platform', choices=('cpu', 'cuda'), help='local: cpu')
  parser.add_argument('--retries', type=int, help='local: of a worker, 3')
  parser.add_argument('--image', help='kubernetes: of the pods')
  parser.add_argument('--claim', help='kubernetes: volume claim of the pods')
  parser.add_argument('--gpus', type=int, help='kubernetes: of a pod, 1')
  parser.add_argument('--dry_run', action='store_true')
  options, options.flags = parser.parse_known_args(arguments)
  if options.workers < 1:
    parser.error('--workers is at least 1')
  for place, flags in OWN.items():
    for name, default in flags.items():
      if getattr(options, name) is None:
        setattr(options, name, default)
      elif place != options.on:
        parser.error(f'--on={options.on} does not read --{name}')
  if options.retries < 0 or options.gpus < 0:
    parser.error('--retries and --gpus are at least 0')
  if options.on == 'kubernetes' and not (options.image and options.claim):
    parser.error('--on=kubernetes needs --image and --claim')
  return options


def main(arguments: Sequence[str]) -> int:
  options = parse(arguments)
  if options.dry_run:
    print(would_run(options))
    return 0
  try:
    return PLACES[options.on](options)
  except ConfigError as error:
    print('error:', error, file=sys.stderr)
    return local.REFUSED


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
