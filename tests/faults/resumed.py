"""Killed on two processes, resumed on one: its losses beside one device's.

    python -m tests.faults.resumed --workdir=runs/resumed --steps=200 \\
      --preset=tiny --data.source=files:DIR

One device, unbroken; then two processes with four virtual devices each, one of
which is killed (SIGKILL) when the checkpoint of half the steps is there, gone
on with by one process with eight devices. With --control, the two processes
unbroken as well: that tells what the kill did from what the mesh does, whose
sums are taken in another order. The same command goes on with what is there;
all other flags go to `experiments.train`.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from launch import local
from tests.faults.place import Place, until

HOURS = 3 * 3600  # seconds until a run that does not end fails

# What was measured of a run: its losses by (step, split).
Losses = Mapping[tuple[int, str], float]


def run(
  folder: pathlib.Path,
  words: Sequence[str],
  *,
  processes: int,
  devices: int,
  kill_at: int = 0,
) -> list[int]:
  """Trains; kills the last process once there is a checkpoint of that step.

  Returns:
    The exit code of each process. Their logs lie beside the folder.
  """
  logs = folder.with_name(f'{folder.name}_logs')
  local.open_logs(logs)
  command = [sys.executable, '-m', 'experiments.train', f'--workdir={folder}']
  started: list[subprocess.Popen] = []
  try:
    for rank in local.ranks(
      [*command, *words],
      logs,
      processes=processes,
      devices=devices,
      platform='cpu',
    ):
      started.append(local.start(rank))
    if kill_at:
      place = Place(folder, 0, folder)
      until(started[-1], lambda: place.latest() >= kill_at, HOURS)
      started[-1].kill()
    return [process.wait(timeout=HOURS) for process in started]
  finally:
    for process in started:
      process.kill()
      process.wait()


def losses(folder: pathlib.Path) -> Losses:
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return {
    (line['step'], line['split']): line['smoothed_loss']
    for line in map(json.loads, lines)
  }


def table(runs: Mapping[str, Losses]) -> str:
  """Losses by name of the run; how far each is from the first one."""
  first, *others = runs.values()
  heads = ['step', *runs, *(f'{name}: difference' for name in [*runs][1:])]
  lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
  for at, loss in first.items():
    name = ', '.join(str(part) for part in at if part != 'train')
    apart = [abs(other[at] / loss - 1) for other in others]
    cells = [name, *(f'{own[at]:.7f}' for own in runs.values())]
    lines.append(f'| {" | ".join([*cells, *(f"{x:.0e}" for x in apart)])} |')
  return '\n'.join(lines)


def main(arguments: Sequence[str]) -> int:
  """Trains, kills and resumes, prints the table; 0 when all did as meant."""
  parser = argparse.ArgumentParser('tests.faults.resumed', allow_abbrev=False)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--control', action='store_true')
  options, flags = parser.parse_known_args(arguments)
  steps, folder = options.steps, options.workdir
  kill_at = steps // 2
  words = [
    *flags,
    f'--train.steps={steps}',
    f'--train.save_every={max(1, kill_at // 2)}',
    f'--train.log_every={max(1, steps // 10)}',
    f'--train.evaluate_every={steps}',
  ]
  eight = [*words, '--mesh.fsdp=4', '--mesh.data=2']
  one, killed, whole = (folder / name for name in ('one', 'killed', 'whole'))
  ended = run(one, [*words, '--mesh.data=1'], processes=1, devices=1)
  if not any(ended) and Place(killed, 0, killed).latest() < kill_at:
    fallen = run(killed, eight, processes=2, devices=4, kill_at=kill_at)
    print(f'exit codes of the two, one of them killed: {fallen}', flush=True)
    ended = [*ended, fallen[0] == 0, fallen[1] != -signal.SIGKILL]
  if not any(ended):
    ended = run(killed, eight, processes=1, devices=8)
  if not any(ended) and options.control:
    ended = run(whole, eight, processes=2, devices=4)
  if any(ended):
    print(f'error: {ended}: see the logs in {folder}', file=sys.stderr)
    return 1
  runs = {
    'one device': losses(one),
    f'2 x 4, killed at {kill_at}, then 1 x 8': losses(killed),
  }
  if options.control:
    runs['2 x 4 unbroken'] = losses(whole)
  print(table(runs))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
