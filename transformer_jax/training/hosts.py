"""Several processes as one program: how they start, and who speaks.

All processes run the same program on the same config; arrays are global. Only
the first writes text, metrics and results. JAX is imported where it is used: a
wrong flag is answered at once.
"""

import contextlib
import functools
import io
import itertools
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple

from transformer_jax.config import ConfigError
from transformer_jax.flags import Flag

FLAGS = (
  Flag(
    'distributed.coordinator',
    str,
    '',
    'HOST:PORT of process 0 when there are several; a SLURM step, an MPI run '
    'and a TPU pod on Kubernetes are found without',
  ),
  Flag('distributed.processes', int, 0, 'how many there are'),
  Flag('distributed.process', int, -1, 'the number of this one, from 0'),
  Flag(
    'distributed.detect',
    bool,
    False,
    'ask JAX who the others are, as on the machines of a TPU pod slice, whose '
    'environment does not say that there are any',
  ),
)

# JAX reports a missing process after half of it at the earliest; `peers`
# reports it sooner.
HEARTBEAT_SECONDS = 50
WAIT_SECONDS = 300  # for all processes to have come
MEET_SECONDS = 3600  # for all to have compiled: peers tell of a death sooner
CRASHED = 1  # exit code: one that came late is there at the next attempt

_meetings = itertools.count()


def start(options: types.SimpleNamespace) -> None:
  """Joins the other processes, if flags or environment speak of any.

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say the same
  as the flags. Call it before anything touches a device.

  Raises:
    ConfigError: the flags name some of address, number and count only, or
      JAX cannot find out what they would say, or the port is taken.
  """
  asked = _asked(options)
  detect = vars(options)['distributed.detect'] or in_cluster(os.environ)
  if asked is None and not detect:
    return
  keep_stdout()
  if asked and asked.process == 0:
    _try_port(asked.port)
    print(
      f'waiting for all {asked.processes} processes at {asked.coordinator}, '
      f'at most {WAIT_SECONDS} s',
      file=sys.stderr,
      flush=True,
    )
  import jax

  own: dict[str, Any] = {}
  if asked:
    own = dict(
      coordinator_address=asked.coordinator,
      num_processes=asked.processes,
      process_id=asked.process,
      # Else JAX, inside a SLURM step or an MPI run, takes one GPU of those it
      # sees, the one of the task's number.
      cluster_detection_method='deactivate',
    )
  waited = threading.Timer(WAIT_SECONDS, _leave, (asked,))
  waited.daemon = True
  waited.start()
  try:
    jax.distributed.initialize(
      **own,
      # JAX itself would abort: this process leaves before, and says why.
      initialization_timeout=2 * WAIT_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except ValueError as error:
    raise ConfigError(
      f'JAX does not find the other processes, {str(error).rstrip(".")}: say '
      'who they are by --distributed.coordinator, --distributed.processes and '
      '--distributed.process'
    ) from error
  finally:
    waited.cancel()
  if several():
    publish(f'host of {jax.process_index()}', socket.gethostname())


class _Asked(NamedTuple):
  """What flags or environment say of the processes."""

  coordinator: str  # HOST:PORT
  processes: int
  process: int

  @property
  def port(self) -> int:
    return int(self.coordinator.rpartition(':')[2])


def _asked(options: types.SimpleNamespace) -> _Asked | None:
  """Who the processes are, by flags or environment; None: they do not say.

  Raises:
    ConfigError: they say it in part, or what cannot be.
  """
  given = vars(options)
  coordinator = given['distributed.coordinator'] or os.environ.get(
    'JAX_COORDINATOR_ADDRESS', ''
  )
  processes = given['distributed.processes'] or _number('JAX_NUM_PROCESSES', 0)
  process = given['distributed.process']
  if process < 0:
    process = _number('JAX_PROCESS_ID', -1)
  named = bool(coordinator), processes > 0, process >= 0
  if not any(named):
    return None
  if not all(named):
    raise ConfigError(
      '--distributed.coordinator, .processes and .process are given together'
    )
  port = coordinator.rpartition(':')[2] if ':' in coordinator else ''
  if process >= processes or not port.isdecimal():
    raise ConfigError(
      f'--distributed.process={process} of {processes} at {coordinator}: '
      'processes count from 0, and the address is HOST:PORT'
    )
  return _Asked(coordinator, processes, process)


def _number(name: str, default: int) -> int:
  """A number of the environment."""
  text = os.environ.get(name, str(default))
  try:
    return int(text)
  except ValueError:
    raise ConfigError(f'{name}={text} is not a number') from None


def _try_port(port: int) -> None:
  """Refuses a port that JAX could not listen at: it would crash there."""
  if 'JAX_COORDINATOR_BIND_ADDRESS' in os.environ:
    return
  both = socket.has_dualstack_ipv6()
  with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as probe:
    # A port that an earlier run has just closed can be taken.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if both:
      probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
      probe.bind(('', port))
    except (OSError, OverflowError) as error:
      why = getattr(error, 'strerror', None) or error
      raise ConfigError(
        f'port {port} of this machine cannot be taken by process 0 ({why}): '
        'give all processes another one in --distributed.coordinator'
      ) from error


def _leave(asked: _Asked | None) -> None:
  """Ends this process, which waited in vain, and says for whom."""
  line = f'not all other processes came within {WAIT_SECONDS} s'
  if asked and asked.process > 0:
    host = asked.coordinator.rpartition(':')[0]
    try:
      socket.create_connection((host.strip('[]'), asked.port), 5).close()
    except OSError as error:
      line = (
        f'nobody answers at {asked.coordinator} within {WAIT_SECONDS} s '
        f'({error})'
      )
  name = f'process {asked.process}' if asked else 'this process'
  os.write(2, f'error: {line}; {name} leaves\n'.encode())
  os._exit(CRASHED)


def keep_stdout() -> None:
  """Python alone writes to stdout from here on; libraries, to stderr.

  Gloo prints a greeting on file 1 when a group of devices first talks: it would
  come between the lines of a program's output.
  """
  sys.stdout.flush()
  own, before = os.dup(1), sys.stdout
  os.dup2(2, 1)
  sys.stdout = os.fdopen(own, 'w', encoding='utf-8', errors=before.errors)


def in_cluster(environment: Mapping[str, str]) -> bool:
  """Whether a scheduler started this process as one of several.

  A shell inside an allocation is not: what srun, mpirun or a TPU pod sets for
  each task has to be there.

  >>> in_cluster({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2'})
  False
  """
  slurm = 'SLURM_STEP_NODELIST' in environment
  tasks = environment.get('SLURM_NTASKS', '1') if slurm else '1'
  ranks = environment.get('OMPI_COMM_WORLD_SIZE', '1')
  workers = environment.get('TPU_WORKER_HOSTNAMES', '').split(',')
  return int(tasks) > 1 or int(ranks) > 1 or len(workers) > 1


def several() -> bool:
  """Whether there are other processes."""
  # Not imported for this: `start` did, if there are any.
  jax = sys.modules.get('jax')
  return jax is not None and jax.process_count() > 1


def first() -> bool:
  """Whether this is the process that writes."""
  jax = sys.modules.get('jax')
  return jax is None or jax.process_index() == 0


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
  """What the other processes print on stdout goes nowhere."""
  if first():
    yield
    return
  with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
    yield


def say(text: str, end: str = '\n') -> None:
  """A line on stderr, from the first process."""
  if first():
    print(text, end=end, file=sys.stderr, flush=True)


def agreed(value: int) -> int:
  """The first process decides for all of them."""
  if not several():
    return value
  meet_once()
  import numpy as np
  from jax.experimental import multihost_utils

  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def meet() -> None:
  """All processes come here before one of them goes on.

  Each compiles at its own pace, one from the cache and another not, and the
  first collective of a group of CPUs waits no longer than 30 s for anyone.
  """
  if several():
    _service().wait_at_barrier(
      f'meeting {next(_meetings)}', MEET_SECONDS * 1000
    )


def _service() -> Any:
  """What all processes reach without a device; it has no public name."""
  from jax._src import distributed

  return distributed.global_state.client


def publish(name: str, text: str) -> None:
  """Says something to all processes, under a name of its own."""
  _service().key_value_set(f'transformer_jax/{name}', text)


def published(name: str) -> str:
  """What a process says under a name; waits until it does."""
  return _service().blocking_key_value_get(
    f'transformer_jax/{name}', MEET_SECONDS * 1000
  )


@functools.cache
def on_this_host() -> int:
  """How many of the processes are on this machine, this one included."""
  if not several():
    return 1
  import jax

  names = [published(f'host of {n}') for n in range(jax.process_count())]
  return names.count(socket.gethostname())


@functools.cache
def meet_once() -> None:
  """Before the first collective of all; in later ones all are waited for."""
  meet()


def shared(file: IO[bytes]) -> IO[bytes]:
  """The file, which the first process alone reads when there are several."""
  if not several():
    return file
  import numpy as np
  from jax.experimental import multihost_utils

  data = file.read() if first() else b''
  size = agreed(len(data))
  own = np.frombuffer(data if first() else bytes(size), np.uint8)
  whole = multihost_utils.broadcast_one_to_all(own) if size else own
  return io.BytesIO(np.asarray(whole).tobytes())


def preemption() -> Callable[[], int]:
  """Number of the signal that asked to stop, 0 if none did yet.

  To be called by all processes alike: one of them gets the signal, and all
  are told at the same call.
  """
  from jax.experimental import multihost_utils

  calls, caught = itertools.count(1), [0]

  def stop() -> int:
    if multihost_utils.reached_preemption_sync_point(next(calls)):
      caught[0] = int(signal.SIGTERM)
    return caught[0]

  return stop


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
  """The first process goes through the block, then the others do.

  What it made on disk they find made.
  """
  if not first():
    agreed(0)
  try:
    yield
  finally:
    if first():
      agreed(0)


def fetch(tree: Any) -> Any:
  """Arrays of the host, whole, on every process."""
  import jax

  if several():
    from jax.experimental import multihost_utils

    tree = multihost_utils.process_allgather(tree, tiled=True)
  return jax.device_get(tree)
