"""The step compiled once for each shape of batch, the largest first.

Compiled before it is called, a program says how much memory it will take: a
run that cannot fit ends before its first step, not at the first long batch.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from transformer_jax.config import Config
from transformer_jax.data.batches import Shape
from transformer_jax.data.cache import Batch
from transformer_jax.training import fit, hlo, hosts
from transformer_jax.training.state import State

Compiling = Callable[[], contextlib.AbstractContextManager]


class Steps:
  """A jitted (state, batches, ...) -> (state, metrics), compiled beforehand."""

  def __init__(
    self,
    jitted: Any,
    config: Config,
    compiling: Compiling = contextlib.nullcontext,
  ) -> None:
    """Takes a step.

    Args:
      jitted: of `jax.jit`.
      config: of the run.
      compiling: entered while a program is compiled, which takes minutes.
    """
    self._compiling = compiling
    self._jitted = jitted
    self._config = config
    self._programs: dict[tuple, Any] = {}

  def program(self, *arguments: Any) -> Any:
    """The compiled program that a call with these arguments runs.

    Raises:
      ConfigError: its compiler finds that it does not fit.
    """
    shapes = tuple(x.shape for x in jax.tree.leaves(arguments[1]))
    if shapes not in self._programs:
      try:
        with self._compiling():
          lowered = self._jitted.lower(*arguments)
          self._programs[shapes] = lowered.compile()
          hosts.meet()
      except jax.errors.JaxRuntimeError as error:
        fit.refuse_memory(error, self.room(arguments[0]))
        raise
    return self._programs[shapes]

  def room(self, state: State) -> fit.Room:
    """What a step on this state has to fit into."""
    leaf = jax.tree.leaves(state.params)[0]
    device = min(leaf.sharding.addressable_devices, key=lambda d: d.id)
    mesh = getattr(leaf.sharding, 'mesh', None)
    return fit.Room(
      memory=fit.device_memory(device),
      kind=device.device_kind,
      state=hlo.tree_bytes(fit.on_one(state)),
      mesh={} if mesh is None else mesh.shape,
      config=self._config,
    )

  def __call__(self, *arguments: Any) -> Any:
    return self.program(*arguments)(*arguments)


def largest_batches(config: Config, shapes: Sequence[Shape]) -> Batch:
  """Empty batches of `fit.largest_shape`, as a call has them."""
  rows, *lengths = fit.largest_shape(config, shapes)
  lead = config.data.batches_per_run, rows
  return Batch(*(np.zeros((*lead, length), np.int32) for length in lengths))


def admit(steps: Steps, arguments: tuple[Any, ...]) -> None:
  """Compile for `arguments`, and refuse what the device cannot hold.

  Args:
    steps: they keep the program for their first call.
    arguments: state, batches and the rest of a call; nothing is run.

  Raises:
    ConfigError: names what to change.
  """
  peak = fit.peak(steps.program(*arguments))
  fit.admit(peak, steps.room(arguments[0]))


def use_cache(config: Config) -> None:
  """Programs compiled once on this machine are read back afterwards."""
  folder = os.path.join(os.path.expanduser(config.data.cache_dir), 'programs')
  jax.config.update('jax_compilation_cache_dir', folder)
