"""One writer for a run's folder: a file lock, and a lease with a heartbeat.

Two witnesses say whether the holder of `FOLDER/lock` lives. The kernel's file
lock (flock) ends with its process, a SIGKILL included, but some shared file
systems keep it to one machine, or have none. So the holder also rewrites the
file each BEAT seconds. Who comes second

- is refused at once where the file lock is held by a run of this machine;
- takes over at once where it is free and the holder was on this very machine
  and mount: there the kernel's word is enough, and a killed run starts again
  without waiting;
- else watches: a heart that beats is a refusal, one that stood still for STALE
  seconds by the file system's own clock was a process that died elsewhere.
  Between machines a file lock proves nothing: a server may keep the lock of a
  dead node.

No process numbers: they mean nothing on another machine and are used again on
this one. A holder that slept through its lease (a suspended machine) finds
another name in the file at its next beat, and leaves before it writes more.
"""

import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from transformer_jax.config import ConfigError
from transformer_jax.training import hosts
from transformer_jax.training.guard import repeating

NAME = 'lock'
BEAT, STALE = 10.0, 60.0  # seconds
# Until a file server shows a new file to the other machines.
SEEN = 10.0
LOST = 1  # exit code of a process whose lease was taken over: a crash
SIZE = 512  # bytes of the file, always: a beat allocates nothing on a full disk


def _machine() -> str:
  """One start of one kernel; where that is not told, the host's name."""
  with contextlib.suppress(OSError):
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  return socket.gethostname()


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Who wrote last; None for a lock that is free or half written."""
  try:
    body = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return None
  whole = isinstance(body, dict) and {'owner', 'host'} <= set(body)
  return body if whole else None


def _write(descriptor: int, body: dict[str, Any]) -> None:
  os.pwrite(descriptor, json.dumps(body).encode().ljust(SIZE), 0)
  os.fsync(descriptor)


def _open(path: pathlib.Path) -> int:
  """A descriptor of the file that is under this name now."""
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with contextlib.suppress(FileNotFoundError):
      if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
        return descriptor
    os.close(descriptor)


def _flock(descriptor: int) -> str:
  """'mine', 'held', or 'none' where the file system has no file locks."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return 'held'
  except OSError:
    return 'none'
  return 'mine'


def _locks(holder: dict[str, Any]) -> bool:
  """Whether a file lock that is held is held by this holder, a live one."""
  here = holder.get('machine') == _machine()
  # One without ('none') took over from a dead holder whose lock a server kept.
  return here and holder.get('flock') != 'none'


def _age(path: pathlib.Path) -> float:
  """Seconds since the file was written, by the clock of its file system."""
  beside = path.with_name(f'{NAME}.{secrets.token_hex(4)}.clock')
  try:
    beside.write_bytes(b'.')
    return beside.stat().st_mtime - path.stat().st_mtime
  finally:
    beside.unlink(missing_ok=True)


def _refuse(folder: pathlib.Path, holder: dict[str, Any] | None) -> ConfigError:
  host = holder['host'] if holder else 'another process'
  return ConfigError(
    f'{folder} is being written by a run on {host}: wait for it, stop it, or '
    'take another --workdir'
  )


def _await_end(
  folder: pathlib.Path, holder: dict[str, Any], *, stale: float, watch: bool
) -> None:
  """Returns when the holder's heart has stood still for `stale` seconds.

  Raises:
    ConfigError: it beats; or, without `watch`, it may.
    FileNotFoundError: the holder has ended, and taken its lock along.
  """
  path = folder / NAME
  told = False
  while _age(path) < stale:
    if not watch:
      raise _refuse(folder, holder)
    if not told:
      print(
        f'{folder} was last written by a run on {holder["host"]}: watching '
        f'up to {stale:.0f} s whether it lives',
        file=sys.stderr,
        flush=True,
      )
      told = True
    time.sleep(min(1.0, stale / 20))
    now = _read(path)
    if now is not None and now != holder:
      raise _refuse(folder, now)


def _claim(
  folder: pathlib.Path, descriptor: int, *, stale: float, watch: bool
) -> dict[str, Any]:
  """Makes the lock this process's; what it has written there.

  Raises:
    ConfigError: another process writes here.
    FileNotFoundError: another one did, and has ended: open the lock again.
  """
  path = folder / NAME
  kind = _flock(descriptor)
  holder = _read(path)
  if kind == 'held':
    if holder is None or _locks(holder):
      raise _refuse(folder, holder)
    kind = 'none'
  mine = dict(
    owner=secrets.token_hex(8),
    host=socket.gethostname(),
    machine=_machine(),
    mount=os.fstat(descriptor).st_dev,
    flock=kind,
    beats=0,
  )
  same = ('machine', 'mount', 'flock')
  here = holder is not None and all(
    holder.get(key) == mine[key] for key in same
  )
  if holder is not None and not (here and kind == 'mine'):
    _await_end(folder, holder, stale=stale, watch=watch)
  _write(descriptor, mine)
  if kind == 'none' or (holder is not None and not here):
    # Two processes may have found the same dead holder, or, without file
    # locks, no holder at all: the last to write its name stays.
    time.sleep(min(1.0, stale / 20))
    now = _read(path)
    if now is None or now['owner'] != mine['owner']:
      raise _refuse(folder, now)
  return mine


@contextlib.contextmanager
def held(
  folder: pathlib.Path,
  *,
  beat: float = BEAT,
  stale: float = STALE,
  watch: bool = True,
  lost: Callable[[int], Any] = os._exit,
) -> Iterator[None]:
  """Holds a run's folder for writing; a clean end frees it at once.

  Args:
    folder: of the run; it exists.
    beat: seconds between signs of life.
    stale: seconds without any after which a holder elsewhere is dead.
    watch: whether to wait for a sign of life of a holder elsewhere; if not,
      the folder is refused as long as that holder may live.
    lost: called with the exit code when another took the folder over.

  Raises:
    ConfigError: another process writes here.
  """
  path = folder / NAME
  mine: dict[str, Any] | None = None
  with contextlib.ExitStack() as opened:
    while mine is None:
      descriptor = _open(path)
      opened.callback(os.close, descriptor)
      # Another ended while it was watched: its lock is under no name now.
      with contextlib.suppress(FileNotFoundError):
        mine = _claim(folder, descriptor, stale=stale, watch=watch)
    try:
      heart = _heart(path, descriptor, mine, lost)
      with repeating(heart, seconds=beat, name='lock'):
        yield
    finally:
      if (_read(path) or mine)['owner'] == mine['owner']:
        path.unlink(missing_ok=True)


def admit_shared(folder: pathlib.Path) -> None:
  """Refuses a folder that is not the one which the first process holds.

  All processes of a run call it, the first inside `held`.

  Raises:
    ConfigError: on those that see another folder under this name.
  """
  if not hosts.several():
    return
  path = folder / NAME
  if hosts.first():
    hosts.publish(NAME, (_read(path) or {'owner': ''})['owner'])
  owner, limit = hosts.published(NAME), time.monotonic() + SEEN
  while (_read(path) or {'owner': None})['owner'] != owner:
    if time.monotonic() > limit:
      import jax

      raise ConfigError(
        f'--workdir={folder} is not the same folder on process '
        f'{jax.process_index()} ({socket.gethostname()}): take one that all see'
      )
    time.sleep(SEEN / 20)
  # Nothing is written before all have seen it.
  hosts.meet()


def _heart(
  path: pathlib.Path,
  descriptor: int,
  mine: dict[str, Any],
  lost: Callable[[int], Any],
) -> Callable[[], bool]:
  """Each call writes a sign of life; True once the lease is another's."""
  count = itertools.count(1)

  def beat() -> bool:
    # Saving reports a disk in trouble; the lease runs on.
    with contextlib.suppress(OSError):
      now = _read(path)
      if now is None and path.exists():
        return False
      if now is None or now['owner'] != mine['owner']:
        host = now['host'] if now else 'someone'
        line = f'{path.parent} was taken over by {host}: leaving\n'
        os.write(2, line.encode())
        lost(LOST)
        return True
      _write(descriptor, mine | {'beats': next(count)})
    return False

  return beat
