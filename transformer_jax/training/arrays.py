"""Trees of arrays on disk, leaf by leaf. The one file that knows Orbax."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transformer_jax.config import ConfigError
from transformer_jax.training import orbax_logs

Place = str | os.PathLike[str]


def _orbax() -> Any:
  # Imported late: it takes a second that reading a config need not wait for.
  from orbax.checkpoint import v1

  orbax_logs.keep_out()
  return v1


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by dotted path: {'params.decoder.w_q_NDHK': ...}.

  Containers of no leaves leave no trace, and a tuple's members are named as
  its fields are, so a stored step does not depend on container types.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in leaves
  }


def _kind(leaf: Any) -> str:
  return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'


def refuse_difference(
  stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str
) -> None:
  """ConfigError with the first few leaves that are not as wanted."""
  differences = [
    f'{name} is {_kind(stored[name])}, wanted {_kind(wanted[name])}'
    for name in wanted
    if name in stored and _kind(stored[name]) != _kind(wanted[name])
  ]
  differences += [f'{name} is missing' for name in wanted if name not in stored]
  differences += [f'{name} is extra' for name in stored if name not in wanted]
  if differences:
    more = len(differences) - 4
    shown = '; '.join(differences[:4]) + (f'; {more} more' * (more > 0))
    raise ConfigError(f'checkpoint {where} is of another model: {shown}')


def _on_device(leaf: Any) -> jax.ShapeDtypeStruct:
  """As `leaf`, with a place: its own sharding, or the first device."""
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def save(place: Place, tree: Any) -> None:
  """Writes a tree and returns when it is on disk."""
  _orbax().save(place, by_path(tree))


def save_async(place: Place, tree: Any) -> Any:
  """Copies a tree to the host; the answer's `result()` waits for the disk."""
  ocp = _orbax()
  # Noise does not compress: 7 % smaller files for half as much time again.
  context = ocp.Context()
  context.array.saving.use_compression = False
  with context:
    return ocp.save_async(place, by_path(tree))


def stored(place: Place) -> dict[str, Any]:
  """Shape and dtype of what is there, by path; reads no array."""
  return dict(_orbax().metadata(place).metadata)


def load(place: Place, abstract: Any) -> Any:
  """All that is there, as `abstract` is; its shardings say where."""
  wanted = by_path(abstract)
  return _load(
    place, {name: _on_device(leaf) for name, leaf in wanted.items()}, abstract
  )


def load_part(place: Place, abstract: Any, there: Mapping[str, Any]) -> Any:
  """Some of what is `there`, as arrays of the host; reads no other leaf."""
  places: dict[str, Any] = dict.fromkeys(there, _orbax().PLACEHOLDER)
  for name, leaf in by_path(abstract).items():
    places[name] = np.empty(leaf.shape, leaf.dtype)
  return _load(place, places, abstract)


def _load(place: Place, places: dict[str, Any], like: Any) -> Any:
  leaves = _orbax().load(place, places)
  structure = jax.tree.structure(like)
  return structure.unflatten([leaves[name] for name in by_path(like)])
