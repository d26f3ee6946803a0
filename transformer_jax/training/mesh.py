"""The devices as a grid: its axes, its sizes, and who has a use for which."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from transformer_jax.config import ConfigError, MeshConfig

AXES = ('replica', 'data', 'fsdp', 'tensor', 'sequence')


def mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
  """Sizes of AXES for a number of devices.

  Raises:
    ConfigError: they do not multiply to it.

  >>> mesh_sizes(MeshConfig(fsdp=4), 8)
  (1, 2, 4, 1, 1)
  """
  sizes = dataclasses.asdict(config)
  text = ' '.join(f'--mesh.{axis}={size}' for axis, size in sizes.items())
  open_axes = [axis for axis, size in sizes.items() if size == -1]
  if any(size < 1 for size in sizes.values() if size != -1):
    raise ConfigError(f'{text}: sizes are at least 1, or -1 for what is left')
  if len(open_axes) > 1:
    raise ConfigError(f'{text}: only one of them can take what is left (-1)')
  taken = math.prod(size for size in sizes.values() if size != -1)
  if open_axes and devices % taken == 0:
    sizes[open_axes[0]] = devices // taken
  found = tuple(sizes[axis] for axis in AXES)
  if math.prod(found) not in (1, devices):
    raise ConfigError(
      f'{text} do not multiply to the {devices} devices there are'
    )
  return found


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
  """The grid of all devices, those of a host side by side.

  Raises:
    ConfigError: the sizes do not multiply to the devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, len(devices))
  if math.prod(sizes) < len(devices):
    if jax.process_count() > 1:
      raise ConfigError('--mesh.data=1: one device cannot serve all processes')
    devices = devices[:1]
  return jax.make_mesh(
    sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
  )


def of_one_run(mesh: Mesh) -> Mesh:
  """The mesh, if it has no axis that only a population has a use for.

  Raises:
    ConfigError: it has.
  """
  if mesh.shape['replica'] > 1:
    raise ConfigError(
      f'--mesh.replica={mesh.shape["replica"]}: one run has no members to '
      'share out, a population has; take --mesh.replica=1'
    )
  return mesh


def of_a_population(mesh: Mesh) -> list[Any]:
  """The devices of the mesh, if it has no axis that only one run has a use for.

  Members are small: each is whole on one device.

  Raises:
    ConfigError: it has.
  """
  for axis in ('fsdp', 'tensor', 'sequence'):
    if mesh.shape[axis] > 1:
      raise ConfigError(
        f'--mesh.{axis}={mesh.shape[axis]}: a population shares out its '
        f'members over the devices, each whole on one; take --mesh.{axis}=1'
      )
  return mesh.devices.flatten().tolist()
