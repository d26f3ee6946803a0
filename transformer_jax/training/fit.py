"""Will it fit, and how fast can it be: from a compiled step (pure).

A device has a memory, a rate of products, a rate of memory and a rate of
network. A step can be no faster than the slowest of what it asks of these:
that is its roofline.
"""

import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from transformer_jax.config import Config, ConfigError
from transformer_jax.data.batches import Shape
from transformer_jax.training import hlo, hosts

GIB = 2**30
# What a container may use of its machine: bytes, or `max`.
CONTAINER = pathlib.Path('/sys/fs/cgroup/memory.max')


class Device(NamedTuple):
  """One chip; bytes and seconds.

  memory: bytes that programs can use.
  flops: bfloat16 products a second, at its peak.
  memory_rate: bytes a second between chip and memory.
  network_rate: bytes a second that it sends in a ring over its neighbours.
  """

  name: str
  memory: float
  flops: float
  memory_rate: float
  network_rate: float


# By JAX's name of the kind. TPU: docs.cloud.google.com/tpu/docs, pages v5e,
# v5p and v6e; a ring runs along one axis of the torus in both directions, so
# it has that axis' share of the chip's links, each one way. GPU: NVIDIA's data
# sheets (SXM); NVLink one way, within one host.
DEVICES = {
  'TPU v5 lite': Device('v5e', 16e9, 197e12, 819e9, 400e9 / 4),
  'TPU v5': Device('v5p', 95 * GIB, 459e12, 2765e9, 1200e9 / 6),
  'TPU v6 lite': Device('v6e', 32e9, 918e12, 1638e9, 800e9 / 4),
  'NVIDIA A100-SXM4-80GB': Device('A100', 80e9, 312e12, 2039e9, 300e9),
  'NVIDIA H100 80GB HBM3': Device('H100', 80e9, 989e12, 3350e9, 450e9),
  'NVIDIA H200': Device('H200', 141e9, 989e12, 4800e9, 450e9),
}


class Estimate(NamedTuple):
  """What one training step asks of one device, in bytes, FLOPs and seconds.

  params, optimizer: bytes of the state.
  activations: bytes beside the state while the step runs.
  peak: bytes at the worst moment.
  flops: of matrix products.
  moved: bytes between chip and memory (`hlo.moved`).
  exchanges: {kind: (times, bytes sent)}.
  """

  params: int
  optimizer: int
  activations: int
  peak: int
  flops: float
  moved: float
  exchanges: dict[str, tuple[int, float]]

  @property
  def sent(self) -> float:
    return sum(sent for _, sent in self.exchanges.values())


class Roofline(NamedTuple):
  """Seconds that a step needs at least, and of what."""

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    """The longest of the three: they can overlap."""
    return max(self)

  @property
  def bound(self) -> str:
    """What it is bound by."""
    return max(zip(self, self._fields, strict=True))[1]


def largest_shape(config: Config, shapes: Sequence[Shape]) -> Shape:
  """Of batches, the one whose step takes the most memory.

  Estimated by what a layer keeps: D + F numbers a token, and one weight for
  each head and pair of tokens.
  """
  model = config.model

  def kept(shape: Shape) -> int:
    width = model.d_model + model.d_ff
    longest = max(shape.source_length, shape.target_length)
    return shape.slots * (width + model.heads * longest)

  return max(shapes, key=kept)


def peak(compiled: Any) -> int:
  """Bytes that a compiled program holds on one device at its worst moment.

  0 where its compiler does not say.
  """
  memory = compiled.memory_analysis()
  if memory is None:
    return 0
  # Arguments that are given away are overwritten by the results.
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )


def on_one(tree: Any) -> Any:
  """The part of each array that lies on one device, as shapes."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.sharding.shard_shape(leaf.shape), leaf.dtype
    ),
    tree,
  )


def estimate(
  compiled: Any, *, params: Any, optimizer: Any, flops: float
) -> Estimate:
  """Reads a compiled step.

  Args:
    compiled: of `jax.jit(step).lower(...).compile()`, for any platform.
    params: abstract arrays as one device holds them.
    optimizer: likewise.
    flops: of the whole step on one device (`products.flops` over devices).

  Returns:
    Estimate.

  Raises:
    hlo.HloError: the program's text cannot be read.
    ConfigError: its compiler is not the one that this JAX can read.
  """
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    first = str(error).splitlines()[0][:120]
    raise ConfigError(
      f'JAX cannot read the compiled program ({first}): take the libtpu that '
      "it asks for, pip install 'transformer_jax[tpu]'"
    ) from error
  peak_bytes = peak(compiled)
  state = hlo.tree_bytes(params), hlo.tree_bytes(optimizer)
  return Estimate(
    *state,
    activations=max(peak_bytes - sum(state), 0),
    peak=peak_bytes,
    flops=flops,
    moved=float(hlo.moved(text)),
    exchanges=hlo.total(hlo.collectives(text)),
  )


def roofline(found: Estimate, device: Device) -> Roofline:
  """Seconds of a step, were each resource used at its peak.

  >>> need = Estimate(0, 0, 0, 0, flops=394e12, moved=0, exchanges={})
  >>> roofline(need, DEVICES['TPU v5 lite'])
  Roofline(compute=2.0, memory=0.0, network=0.0)
  """
  return Roofline(
    found.flops / device.flops,
    found.moved / device.memory_rate,
    found.sent / device.network_rate,
  )


def host_memory() -> int:
  """Bytes that this machine has, or that its container is given of it."""
  own = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  try:
    return min(own, int(CONTAINER.read_text(encoding='ascii')))
  except (OSError, ValueError):
    return own


def device_memory(device: Any) -> float:
  """Bytes that a program may use on a device, at hand or of a topology.

  Without end for a device at hand that does not say: its compiler will.

  Raises:
    ConfigError: a topology's kind is not in the table.
  """
  if device.platform == 'cpu':
    # What its machine has, shared by the virtual devices on it.
    devices = jax.local_device_count() * hosts.on_this_host()
    return host_memory() / max(1, devices)
  at_hand = device in device.client.local_devices()
  limit = (device.memory_stats() or {}) if at_hand else {}
  if 'bytes_limit' in limit:
    return float(limit['bytes_limit'])
  if device.device_kind in DEVICES:
    return DEVICES[device.device_kind].memory
  if at_hand:
    return math.inf
  raise ConfigError(
    f'the memory of a {device.device_kind} is not known here; known are '
    f'{", ".join(DEVICES)}'
  )


class Room(NamedTuple):
  """What a step has to fit into.

  memory: bytes that one device has.
  kind: of device.
  state: bytes of parameters and optimizer on one device.
  mesh: {axis: size}; empty for one device.
  config: of the run.
  """

  memory: float
  kind: str
  state: float
  mesh: Mapping[str, int]
  config: Config

  @property
  def devices(self) -> int:
    return math.prod(self.mesh.values())


def admit(peak: float, room: Room) -> None:
  """Nothing, or an error that says what to change, the cheapest first.

  Args:
    peak: bytes that a step needs on one device.
    room: that it has.

  Raises:
    ConfigError: it does not fit.
  """
  if peak > room.memory:
    raise _too_large(peak, room)


# Bytes in the words of the TPU's compiler: of all that a program holds, or of
# what it holds beside its arguments.
_USED = re.compile(r'Ran out of memory in memory space hbm. Used ([\d.]+)G')
_TEMPORARIES = re.compile(r'HLO temporaries \(([\d.]+)G\) exceeds')


def refuse_memory(error: Exception, room: Room) -> None:
  """Nothing, unless a compiler's error is that its program does not fit.

  Raises:
    ConfigError: then, with what to change.
  """
  used, beside = _USED.search(str(error)), _TEMPORARIES.search(str(error))
  if used:
    raise _too_large(float(used[1]) * GIB, room) from error
  if beside:
    needed = float(beside[1]) * GIB + room.state
    raise _too_large(needed, room) from error
  if 'RESOURCE_EXHAUSTED' in str(error):
    raise _too_large(math.inf, room) from error


def _too_large(peak: float, room: Room) -> ConfigError:
  """The refusal; a peak without end is one that is not known."""
  need = (
    f'a step needs {peak / GIB:.2f} GiB of the {room.memory / GIB:.2f} of a '
    f'{room.kind}'
    if math.isfinite(peak) and math.isfinite(room.memory)
    else f'a step does not fit into the memory of a {room.kind}'
  )
  return ConfigError(f'{need}: ' + '; '.join(_advice(peak, room)))


def _advice(peak: float, room: Room) -> list[str]:
  """What makes a step smaller, and is not done yet."""
  model, optim, mesh = room.config.model, room.config.optim, room.config.mesh
  advice = []
  # What the other axes leave, as far as it divides the width.
  rows = room.mesh.get('data', 1) * room.mesh.get('fsdp', 1)
  fsdp = math.gcd(rows, model.d_model)
  if room.state > peak / 2 and fsdp > room.mesh.get('fsdp', 1):
    own = f'--mesh.data={rows // fsdp} ' if mesh.data != -1 else ''
    advice.append(f'{own}--mesh.fsdp={fsdp} cuts the state over the devices')
  if optim.accumulate < 8 and model.norm != 'batch':
    advice.append('--optim.accumulate=8 cuts the batch into parts')
  if model.remat == 'none':
    advice.append('--model.remat=layer keeps one layer of activations')
  return [*advice, 'a smaller --data.max_tokens']
