"""Who of several processes died, in one line, on each of the others.

JAX notices a dead process after its heartbeat's time-out, and aborts the
others with pages that name nobody a person knows. Here every process keeps a
connection to process 0. The kernel closes the connections of a process that
dies, however it dies, so the others know within the moment: process 0 tells
them which it was, and its own end needs no telling. A process that leaves for
a reason of its own (a refused config, a full disk) says so, and the others
leave with the same exit code. One that is frozen or cut off closes nothing:
all send signs of life, and a long silence is as good as a death.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any

from transformer_jax.config import ConfigError

CRASHED, REFUSED = 1, 2  # exit codes
ENDED, ALIVE = 'ended', 'alive'
START_SECONDS = 60  # for a connection to process 0 to come about
ALIVE_SECONDS = 2  # between two signs of life
# Without one, as good as dead. A call into C that keeps Python's lock delays
# the signs.
SILENT_SECONDS = 20
DOUBT_SECONDS = 10  # in which an error is explained by a process that died
ADDRESS = 'transformer_jax/peers'


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """While inside, a process that dies takes the others along, with its name.

  With one process it does nothing.
  """
  jax = sys.modules.get('jax')
  if jax is None or jax.process_count() == 1:
    yield
    return
  # Neither the store nor the address has a public name.
  from jax._src import distributed

  rank = jax.process_index()
  try:
    peer = _connected(distributed.global_state, rank)
  except OSError as error:
    line = f'process {rank} has no connection to process 0 ({error})'
    os.write(2, f'error: {line}; process {rank} leaves\n'.encode())
    os._exit(CRASHED)
  try:
    yield
  except ConfigError as error:
    text = ' '.join(str(error).split())
    print('error:', text, file=sys.stderr, flush=True)
    peer.leave_badly(REFUSED, text)
    os._exit(REFUSED)
  except SystemExit:
    # All leave alike: they agreed to.
    peer.end()
    raise
  except Exception as error:
    # A collective that fails is often the first that is known of a death;
    # then this process leaves from here.
    peer.wait_for_news(DOUBT_SECONDS)
    traceback.print_exc()
    peer.leave_badly(CRASHED, type(error).__name__)
    # Not by raising: JAX would wait for the others at its own end, and abort.
    os._exit(CRASHED)
  else:
    peer.end()


def _connected(joined: Any, rank: int) -> 'Peer':
  """This process of those that JAX has joined.

  Raises:
    OSError: it does not reach process 0, or cannot be reached as that.
  """
  peer = Peer(rank)
  # An address of IPv6 stands in brackets before its port.
  host = str(joined.coordinator_address).rsplit(':', 1)[0].strip('[]')
  if rank == 0:
    port, token = peer.serve(host)
    joined.client.key_value_set(ADDRESS, f'{port} {token}')
  else:
    found = joined.client.blocking_key_value_get(ADDRESS, START_SECONDS * 1000)
    port, token = found.split()
    peer.connect(host, int(port), token)
  return peer


def _listening(host: str) -> socket.socket:
  """A server on a free port of this machine, which others know as `host`."""
  if host == '::1':
    return socket.create_server((host, 0), family=socket.AF_INET6)
  if host == 'localhost' or host.startswith('127.'):
    return socket.create_server(('127.0.0.1', 0))
  if not socket.has_dualstack_ipv6():
    return socket.create_server(('', 0))
  return socket.create_server(
    ('', 0), family=socket.AF_INET6, dualstack_ipv6=True
  )


class Peer:
  """This process's connections: to all others of process 0, else to it."""

  def __init__(
    self, rank: int, *, leave: Callable[[int], Any] = os._exit
  ) -> None:
    self._rank = rank
    self._leave = leave
    self._ended = threading.Event()
    self._lines: list[socket.socket] = []
    self._server: socket.socket | None = None
    self._lock = threading.Lock()

  def serve(self, host: str) -> tuple[int, str]:
    """Of process 0: takes connections; returns their port and password."""
    token = secrets.token_hex(16)
    self._server = _listening(host)
    self._thread(self._accept, self._server, token)
    self._thread(self._live)
    return self._server.getsockname()[1], token

  def connect(self, host: str, port: int, token: str) -> None:
    """Of the others: one connection, to process 0."""
    line = socket.create_connection((host, port), timeout=START_SECONDS)
    line.settimeout(SILENT_SECONDS)
    self._lines.append(line)
    name = f'process {self._rank} ({socket.gethostname()})'
    _send(line, f'{token} {name}')
    self._thread(self._hear, line.makefile('rb'), 'process 0 (the coordinator)')
    self._thread(self._live)

  def end(self) -> None:
    """A good end: nobody misses this process."""
    if not self._ended.is_set():
      self._ended.set()
      self._tell(ENDED)

  def leave_badly(self, code: int, why: str) -> None:
    """A bad end of this process's own: the others leave with its code."""
    if not self._ended.is_set():
      self._ended.set()
      self._tell(f'{code} process {self._rank} left: {why}')

  def wait_for_news(self, seconds: float) -> None:
    """Until a process is known to have died; this one leaves then."""
    self._ended.wait(seconds)

  def _thread(self, target: Callable[..., None], *args: Any) -> None:
    threading.Thread(
      target=target, args=args, name='peers', daemon=True
    ).start()

  def _tell(self, text: str) -> None:
    with self._lock:
      for line in self._lines:
        with contextlib.suppress(OSError):
          _send(line, text)

  def _accept(self, server: socket.socket, token: str) -> None:
    while not self._ended.is_set():
      with contextlib.suppress(OSError):
        line, _ = server.accept()
        self._thread(self._admit, line, token)

  def _live(self) -> None:
    """Signs of life, as long as this process is not leaving."""
    while not self._ended.wait(ALIVE_SECONDS):
      self._tell(ALIVE)

  def _admit(self, line: socket.socket, token: str) -> None:
    """Someone connected: a process of this run has the password."""
    line.settimeout(SILENT_SECONDS)
    lines = line.makefile('rb')
    said, _, name = (_receive(lines) or '').partition(' ')
    if said != token:
      lines.close()
      line.close()
      return
    with self._lock:
      self._lines.append(line)
    self._hear(lines, name)

  def _hear(self, lines: IO[bytes], name: str) -> None:
    """Listens to one process until it ends."""
    while (said := _receive(lines)) == ALIVE:
      pass
    if said == ENDED or self._ended.is_set():
      return
    self._ended.set()
    silent = f'has not answered for {SILENT_SECONDS} s'
    code, _, what = (said or '').partition(' ')
    what = what or f'{name} {silent if said is None else "died"}'
    number = int(code or CRASHED)
    os.write(2, f'error: {what}; process {self._rank} leaves\n'.encode())
    # Of process 0: the others know of nobody but it.
    self._tell(f'{number} {what}')
    self._leave(number)


def _send(line: socket.socket, text: str) -> None:
  line.sendall(text.encode() + b'\n')


def _receive(lines: IO[bytes]) -> str | None:
  """A line of text; '' when the other side is gone, None when it is silent."""
  try:
    data = lines.readline()
  except TimeoutError:
    return None
  except (OSError, ValueError):
    data = b''
  return data.decode(errors='replace').strip() if data.endswith(b'\n') else ''
