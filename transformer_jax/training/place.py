"""Where the members of a population are, and how they go through a program."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.training import fit


def in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
  """Members one after the other: each is bitwise the lone call."""
  return lambda *members: jax.lax.map(lambda one: function(*one), members)


# How a platform's members go through one program.
MAPS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
  'cpu': in_turn
}


@dataclasses.dataclass(frozen=True)
class Place:
  """Where members are.

  platform: that the program is written for, a key of MAPS or another.
  devices: that share out the members, the same number each.
  pairs: `implementations.shared_pairs` of all that they are compared with.
  """

  platform: str
  devices: tuple[Any, ...]
  pairs: int = 0

  def room(self, members: int) -> int:
    """Replicas for so many members: each device has as many."""
    return -(-members // len(self.devices)) * len(self.devices)

  @property
  def by_members(self) -> Any:
    """Of arrays with a leading R."""
    if len(self.devices) == 1:
      return jax.sharding.SingleDeviceSharding(self.devices[0])
    return NamedSharding(self._mesh(), P('replica'))

  def mapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function over a leading R of all its arguments."""
    own = MAPS.get(self.platform, jax.vmap)(function)
    if len(self.devices) == 1:
      return own
    cut = P('replica')
    return jax.shard_map(
      own, mesh=self._mesh(), in_specs=cut, out_specs=cut, check_vma=False
    )

  def _mesh(self) -> Mesh:
    return Mesh(np.array(self.devices), ('replica',))


def on(devices: Sequence[Any], *, pairs: int = 0) -> Place:
  """Members on these devices, in the way of their platform."""
  return Place(devices[0].platform, tuple(devices), pairs)


def free_memory(place: Place) -> int:
  """Bytes that each of the devices could give now; 0: unknown."""
  stats = [device.memory_stats() for device in place.devices]
  known = [own for own in stats if own and 'bytes_limit' in own]
  if known:
    return min(own['bytes_limit'] - own.get('bytes_in_use', 0) for own in known)
  try:
    with open('/proc/meminfo', encoding='ascii') as file:
      lines = dict(line.split(':') for line in file)
    free = int(lines['MemAvailable'].split()[0]) * 1024
  except (OSError, KeyError, ValueError):
    free = fit.host_memory()
  # What of a CPU is called devices has one memory.
  return min(free, fit.host_memory()) // len(place.devices)
