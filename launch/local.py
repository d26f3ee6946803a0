"""One program as several processes on this machine, started again as needed.

    python -m launch.local --processes=2 --devices=4 \\
      experiments.train --workdir=runs/two --preset=tiny --mesh.fsdp=8

Each process sees its own devices, with --platform=cuda of those that
CUDA_VISIBLE_DEVICES shows, and finds the others on the loopback interface.
What rank 0 says goes to the terminal; every rank has a log in
--logs. They live and die together: when one ends badly the others have
--grace_seconds to leave by themselves, then they are killed, which costs
nothing but the steps since the last save. Preempted (75) and crashed runs are
started again, after 1, 2, 4 ... seconds, up to --retries times; 0 and 2 are
final. SIGTERM, SIGUSR1, SIGINT and SIGHUP go to all processes and end the
retries.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformer_jax.config import ConfigError
from transformer_jax.training.guard import FINISHED, PREEMPTED

REFUSED = 2  # exit code: something has to be corrected first
LONGEST_PAUSE = 60.0  # seconds between two attempts
LAST_WORDS_SECONDS = 5.0
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Command(NamedTuple):
  """A process to be: its words, its own environment, its log."""

  words: Sequence[str]
  environment: Mapping[str, str]
  log: pathlib.Path


class Stop:
  """The signal that asked this program to end, and who hears of it."""

  def __init__(self) -> None:
    self.number = 0
    self.asked = threading.Event()
    self._running: list[subprocess.Popen] = []

  def listen(self) -> None:
    for number in FORWARDED:
      # Under nohup a terminal that closes is no reason to end.
      if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):
        signal.signal(number, self._hear)

  def add(self, processes: Sequence[subprocess.Popen]) -> None:
    self._running += processes
    if self.number:
      self._tell(processes)

  def remove(self, processes: Sequence[subprocess.Popen]) -> None:
    self._running = [p for p in self._running if p not in processes]

  def _hear(self, number: int, _: object) -> None:
    self.number = number
    self.asked.set()
    self._tell(self._running)

  def _tell(self, processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
      if process.poll() is None:
        # A terminal's signals do not reach them; SIGTERM is what they know.
        process.send_signal(
          signal.SIGUSR1 if self.number == signal.SIGUSR1 else signal.SIGTERM
        )


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def devices_of(rank: int, devices: int, platform: str) -> dict[str, str]:
  """The environment in which a rank has its own devices and no others.

  Of the GPUs that this program itself may see, where CUDA_VISIBLE_DEVICES says.

  Raises:
    ConfigError: there are too few of them.
  """
  if platform == 'cpu':
    return {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
  ends = rank * devices, (rank + 1) * devices
  own = [str(number) for number in range(*ends)]
  given = os.environ.get('CUDA_VISIBLE_DEVICES')
  if given is not None:
    seen = [name for name in given.split(',') if name.strip()]
    own = seen[slice(*ends)]
    if len(own) < devices:
      raise ConfigError(
        f'CUDA_VISIBLE_DEVICES={given} shows {len(seen)} GPUs, and {ends[1]} '
        'are asked for: ask for fewer, or show more'
      )
  # Else JAX falls back to the CPU where CUDA does not come up.
  return {'JAX_PLATFORMS': 'cuda', 'CUDA_VISIBLE_DEVICES': ','.join(own)}


def admit_platform(platform: str, processes: int, devices: int) -> None:
  """Refuses devices that the processes could not have.

  Raises:
    ConfigError: JAX has no CUDA here, or too few GPUs may be seen.
  """
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  if platform == 'cuda' and not any('cuda' in one.value for one in plugins):
    raise ConfigError(
      "--platform=cuda: JAX has no CUDA here, pip install 'jax[cuda12]'"
    )
  devices_of(processes - 1, devices, platform)


def admit_module(name: str) -> None:
  """Refuses what `python -m` would not find: it ends as a crash does.

  Raises:
    ConfigError: there is no such module, or it is a package without a program.
  """
  why = 'is it spelt right, and is this the folder of the code?'
  try:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
      spec = importlib.util.find_spec(f'{name}.__main__')
  except (ImportError, ValueError) as error:
    spec, why = None, str(error)
  if spec is None:
    raise ConfigError(f'no module {name} that can be run: {why}')


def ranks(
  words: Sequence[str],
  logs: pathlib.Path,
  *,
  processes: int,
  devices: int,
  platform: str,
) -> list[Command]:
  """The processes of one run; a new port each time."""
  address = f'127.0.0.1:{free_port()}'
  commands = []
  for rank in range(processes):
    environment = devices_of(rank, devices, platform)
    if processes > 1:
      environment |= dict(
        JAX_COORDINATOR_ADDRESS=address,
        JAX_NUM_PROCESSES=str(processes),
        JAX_PROCESS_ID=str(rank),
      )
    commands.append(Command(words, environment, logs / f'rank{rank}.log'))
  return commands


def open_logs(folder: pathlib.Path) -> None:
  """Makes the folder, and tries to write there.

  Raises:
    ConfigError: it cannot be made, or written to.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    raise ConfigError(
      f'no logs can be written to {folder}, {error.strerror}: name another'
    ) from error


def _copy(source: int, log: pathlib.Path) -> None:
  """What a process says: to its log, and to this program's stderr.

  Where one of them takes no more, the other does, and the process is not held
  up by a pipe that nobody empties.
  """
  with open(log, 'ab') as file:
    while data := os.read(source, 1 << 16):
      for sink in (file.fileno(), 2):
        with contextlib.suppress(OSError):
          _put(sink, data)
  os.close(source)


def _put(sink: int, data: bytes) -> None:
  """All of it: a write may take a part."""
  while data:
    data = data[os.write(sink, data) :]


def start(command: Command) -> subprocess.Popen:
  """A process that writes to its log alone."""
  with open(command.log, 'ab') as log:
    return subprocess.Popen(
      command.words,
      env=os.environ | command.environment,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      start_new_session=True,
    )


def start_shown(
  command: Command,
) -> tuple[subprocess.Popen, threading.Thread]:
  """A process, and who copies what it says to its log and the terminal."""
  reader, writer = os.pipe()
  process = subprocess.Popen(
    command.words,
    env=os.environ | command.environment,
    stderr=writer,
    start_new_session=True,
  )
  os.close(writer)
  copying = threading.Thread(
    target=_copy, args=(reader, command.log), daemon=True
  )
  copying.start()
  return process, copying


def _wait(processes: Sequence[subprocess.Popen], grace: float) -> int:
  """The exit code of the first that failed, when all have ended; or 0."""
  failed: list[int] = []
  changed = threading.Event()

  def watch(process: subprocess.Popen) -> None:
    if process.wait() != FINISHED:
      failed.append(process.returncode)
      changed.set()
    elif all(other.poll() is not None for other in processes):
      changed.set()

  watchers = [threading.Thread(target=watch, args=(p,)) for p in processes]
  for watcher in watchers:
    watcher.start()
  changed.wait()
  limit = time.monotonic() + grace
  for watcher in watchers:
    watcher.join(max(0.0, limit - time.monotonic()) if failed else None)
  for process in processes:
    if process.poll() is None:
      process.kill()
  for watcher in watchers:
    watcher.join()
  return failed[0] if failed else FINISHED


def run_once(
  commands: Sequence[Command], stop: Stop, *, grace: float, shown: bool
) -> int:
  """All of them, to their end: 0, or the exit code of the first that failed."""
  processes: list[subprocess.Popen] = []
  copying = None
  try:
    for rank, command in enumerate(commands):
      if shown and rank == 0:
        process, copying = start_shown(command)
      else:
        process = start(command)
      processes.append(process)
    stop.add(processes)
    return _wait(processes, grace)
  finally:
    stop.remove(processes)
    for process in processes:
      if process.poll() is None:
        process.kill()
      process.wait()
    if copying is not None:
      # What it said last; longer, and a child of it holds the pipe.
      copying.join(LAST_WORDS_SECONDS)


def meaning(code: int) -> str:
  """An exit code in words.

  >>> meaning(-9)
  'killed by SIGKILL'
  """
  if code < 0:
    return f'killed by {signal.Signals(-code).name}'
  known = {PREEMPTED: 'preempted and saved (75)', REFUSED: 'refused (2)'}
  return known.get(code, f'crashed ({code})')


def retrying(
  attempt, stop: Stop, *, retries: int, what: str, pause: float = 1.0
) -> int:
  """Calls `attempt() -> exit code` until it is 0 or 2, or retries are spent."""
  for count in range(retries + 1):
    code = attempt()
    if code in (FINISHED, REFUSED) or stop.number or count == retries:
      break
    seconds = min(pause * 2**count, LONGEST_PAUSE)
    print(
      f'{what}: {meaning(code)}; again in {seconds:g} s '
      f'({count + 1} of {retries})',
      file=sys.stderr,
      flush=True,
    )
    if stop.asked.wait(seconds):
      return PREEMPTED
  if code != FINISHED:
    print(f'{what}: {meaning(code)}', file=sys.stderr, flush=True)
  # A shell's way to say which signal it was.
  return code if code >= 0 else 128 - code


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='launch.local', description=__doc__, allow_abbrev=False
  )
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--devices', type=int, default=1, help='of a process')
  parser.add_argument('--platform', choices=('cpu', 'cuda'), default='cpu')
  parser.add_argument('--logs', default='logs', help='folder of rank0.log ...')
  parser.add_argument('--retries', type=int, default=3)
  parser.add_argument('--grace_seconds', type=float, default=30.0)
  parser.add_argument('module', help='such as experiments.train')
  parser.add_argument('flags', nargs=argparse.REMAINDER)
  options = parser.parse_args(arguments)
  if options.processes < 1 or options.devices < 1 or options.retries < 0:
    parser.error('--processes and --devices are at least 1, --retries 0')
  return options


def main(arguments: Sequence[str]) -> int:
  options = parse(arguments)
  logs = pathlib.Path(options.logs)
  try:
    admit_module(options.module)
    admit_platform(options.platform, options.processes, options.devices)
    open_logs(logs)
  except ConfigError as error:
    print('error:', error, file=sys.stderr)
    return REFUSED
  stop = Stop()
  stop.listen()
  words = [sys.executable, '-m', options.module, *options.flags]

  def attempt() -> int:
    commands = ranks(
      words,
      logs,
      processes=options.processes,
      devices=options.devices,
      platform=options.platform,
    )
    return run_once(commands, stop, grace=options.grace_seconds, shown=True)

  what = f'{options.module}, logs in {logs}'
  return retrying(attempt, stop, retries=options.retries, what=what)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
