"""Killed on two processes, resumed on one: its losses beside two unbroken runs.

    python -m tests.faults.resumed --workdir=runs/resumed --steps=200 \\
      --preset=tiny --data.source=files:DIR

One device; two processes with four virtual devices each, to the end; the same
two, one of which is killed (SIGKILL) when the checkpoint of half the steps is
there, gone on with by one process with eight devices. All flags but the first
two go to `experiments.train`. The unbroken run on eight devices tells what the
kill did from what the mesh does, whose sums are taken in another order.
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

ALONE = ('--mesh.data=1',)
EIGHT = ('--mesh.fsdp=4', '--mesh.data=2')
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
      started.append(local.start(rank, shown=False))
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


def table(one: Losses, whole: Losses, killed: Losses, *, kill_at: int) -> str:
  """Losses of each step and how far the killed run is from the two others."""
  heads = [
    'step',
    'one device',
    '2 x 4 devices, unbroken',
    f'2 x 4, killed after {kill_at}, then 1 x 8',
    'unbroken to one device',
    'killed to one device',
    'killed to unbroken',
  ]
  lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
  for (step, split), loss in one.items():
    name = f'{step}' if split == 'train' else f'{step}, {split}'
    other, third = whole[step, split], killed[step, split]
    apart = [
      abs(other / loss - 1),
      abs(third / loss - 1),
      abs(third / other - 1),
    ]
    cells = [name, *(f'{x:.7f}' for x in (loss, other, third))]
    lines.append(f'| {" | ".join([*cells, *(f"{x:.0e}" for x in apart)])} |')
  return '\n'.join(lines)


def main(arguments: Sequence[str]) -> int:
  """Trains all three and prints the table; 0 when each did what it should."""
  parser = argparse.ArgumentParser('tests.faults.resumed', allow_abbrev=False)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--steps', type=int, default=200)
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
  names = ('one', 'unbroken', 'killed')
  one, whole, killed = (folder / name for name in names)
  two = dict(processes=2, devices=4)
  codes = {
    'one device': run(one, [*words, *ALONE], processes=1, devices=1),
    '2 x 4': run(whole, [*words, *EIGHT], **two),
    '2 x 4, killed': run(killed, [*words, *EIGHT], **two, kill_at=kill_at),
    '1 x 8': run(killed, [*words, *EIGHT], processes=1, devices=8),
  }
  print('exit codes:', codes)
  found = [losses(place) for place in (one, whole, killed)]
  print(table(*found, kill_at=kill_at))
  *ended, (other, victim), last = codes.values()
  well = not any(sum(ended, last)) and other and victim == -signal.SIGKILL
  return 0 if well else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
