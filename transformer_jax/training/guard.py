"""What asks a run to stop, and what stops one that no longer moves."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from transformer_jax.training import hosts

FINISHED, PREEMPTED = 0, 75  # exit codes of the public contract
STUCK = 70  # of the watchdog: a crash, as every code but 0, 2 and 75

Answer = TypeVar('Answer')

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedError(Exception):
  """A signal came where work can be left unfinished and done again."""


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], int]]:
  """Number of the signal that asked to stop, 0 if none did.

  SIGTERM and SIGUSR1 come before a preemption, SIGINT from a keyboard: the
  loop saves and leaves. A second signal of the same kind does what it would do
  without this. Of several processes one may get it: all of them hear of it at
  the same call.
  """
  # A Ctrl-C is not meant for a shell's job in the background.
  meant = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
  signals = (*SIGNALS, signal.SIGINT) if meant else SIGNALS
  if hosts.several():
    # JAX's own service takes SIGTERM and tells the others.
    with _handled(lambda _: signal.raise_signal(signal.SIGTERM), signals[1:]):
      yield hosts.preemption()
    return
  caught = [0]

  def note(number: int) -> None:
    if not caught[0]:
      caught[0] = number
      # Not print: the signal may have come in the middle of one.
      os.write(2, b'signal: saving, then leaving\n')

  with _handled(note, signals):
    yield lambda: caught[0]


@contextlib.contextmanager
def leave_on_signal() -> Iterator[Callable[[], None]]:
  """For programs with nothing to save: SIGTERM and SIGUSR1 leave with 75.

  The same command does the work; it writes its results whole or not at all.
  One process leaves at once. Several leave together, at the same call of the
  function that this yields; all of them make the same calls.
  """

  def leave(number: int) -> None:
    del number
    if hosts.first():
      os.write(2, b'signal: leaving, run the same command again\n')
    sys.exit(PREEMPTED)

  if not hosts.several():
    with _handled(leave):
      yield lambda: None
    return
  with stop_signal() as stop:

    def check() -> None:
      if number := stop():
        leave(number)

    yield check


@contextlib.contextmanager
def _handled(
  act: Callable[[int], None], signals: Sequence[signal.Signals] = SIGNALS
) -> Iterator[None]:
  """`act` gets the first signal of each kind.

  Later ones go to the handler that was there before. Of each kind: a Ctrl-C
  reaches all processes of a terminal, and whoever started them then sends
  another signal, which must not kill them.
  """
  before = {}

  def handle(number: int, _: Any) -> None:
    signal.signal(number, before[number])
    act(number)

  try:
    for number in signals:
      before[number] = signal.signal(number, handle)
  except ValueError:  # Not the main thread: signals are its business.
    pass
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def repeating(
  act: Callable[[], bool | None], *, seconds: float, name: str
) -> Iterator[None]:
  """A thread that acts each `seconds`, until the end or until it says True."""
  ended = threading.Event()

  def live() -> None:
    while not ended.wait(seconds) and not act():
      pass

  thread = threading.Thread(target=live, name=name, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


class Watchdog:
  """Ends a process that was silent for too long, with all its stacks.

  A device or another process that never answers looks like a long step; only
  the one who waits can tell. Seconds are counted by a thread that has to be
  awake for them, so a suspended machine is not a stuck one.
  """

  def __init__(
    self, seconds: int, *, leave: Callable[[int], Any] = os._exit
  ) -> None:
    """Counts once entered.

    Args:
      seconds: of silence before the process is ended; 0: it never is.
      leave: called with the exit code then.
    """
    self._seconds = seconds
    self._leave = leave
    self._silent = 0.0
    self._ended = threading.Event()
    self._thread = threading.Thread(
      target=self._watch, name='watchdog', daemon=True
    )

  def beat(self) -> None:
    """Something was done."""
    self._silent = 0.0

  def hears(self, ask: Callable[[], Answer]) -> Callable[[], Answer]:
    """`ask`, with each call of it a sign of life."""

    def heard() -> Answer:
      self.beat()
      return ask()

    return heard

  def busy(self) -> contextlib.AbstractContextManager[None]:
    """Beats by itself while the block runs: a compiler may need minutes."""
    self.beat()
    return repeating(self.beat, seconds=1.0, name='busy')

  def __enter__(self) -> 'Watchdog':
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    if self._seconds:
      self._thread.join()

  def _watch(self) -> None:
    slice_ = min(1.0, self._seconds / 20)
    while not self._ended.wait(slice_):
      self._silent += slice_
      if self._silent >= self._seconds:
        faulthandler.dump_traceback(file=2, all_threads=True)
        line = (
          f'nothing was done for {self._seconds} s: stuck where the stacks '
          'above say (--train.step_timeout_seconds)\n'
        )
        os.write(2, line.encode())
        self._leave(STUCK)
        return
