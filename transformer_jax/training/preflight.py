"""The real training step, compiled before any device is asked for.

For the devices at hand, or for a TPU slice that is not there: XLA's TPU
compiler comes with libtpu and needs no TPU.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.config import Config, ConfigError
from transformer_jax.data.cache import Batch
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import fit, hlo, products, ring, sharding
from transformer_jax.training.mesh import make_mesh, of_one_run
from transformer_jax.training.state import (
  admit_parts,
  initial_state,
  numbers,
  train_step,
)

TOPOLOGIES = 'v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x1, v6e:4x4'


class Prediction(NamedTuple):
  """What a step on these devices will need.

  tokens: of the longer side in a batch, padding included.
  device: rates and memory; None for a kind without published rates.
  room: what the step has to fit into.
  """

  estimate: fit.Estimate
  tokens: int
  device: fit.Device | None
  room: fit.Room


def topology_devices(name: str) -> list[Any]:
  """The chips of a TPU slice that need not exist, such as v5e:4x4.

  Raises:
    ConfigError: libtpu is not installed, or there is no such slice.
  """
  from jax.experimental import topologies

  # Without these libtpu looks for the machine's own TPU, and reports at length
  # that there is none.
  for variable, value in {
    'TPU_SKIP_MDS_QUERY': '1',
    # Nothing is run: two processes may compile at once.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  }.items():
    os.environ.setdefault(variable, value)
  _keep_flags_from_libtpu()
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name)
  except Exception as error:  # Of whatever class libtpu and JAX raise.
    text = (str(error) or type(error).__name__).splitlines()[0][:120]
    raise ConfigError(
      f'--topology={name} cannot be used ({text}); take one such as '
      f"{TOPOLOGIES}; it needs pip install 'transformer_jax[tpu]'"
    ) from None
  return list(found.devices)


def _keep_flags_from_libtpu() -> None:
  """It reads XLA_FLAGS as well, and dies of one that only JAX knows."""
  jax.devices('cpu')  # JAX has read them by then.
  if os.environ.pop('XLA_FLAGS', '').strip():
    print(
      "XLA_FLAGS is not given to the TPU's compiler: LIBTPU_INIT_ARGS is what "
      'it reads',
      file=sys.stderr,
      flush=True,
    )


def batch_shape(config: Config, length: int) -> tuple[int, int]:
  """Rows and length of the batch of sentences this long."""
  rows = config.data.max_tokens // length // 8 * 8
  if rows < 8:
    raise ConfigError(
      f'data.max_tokens={config.data.max_tokens} does not hold 8 sentences '
      f'of {length} tokens'
    )
  return rows, length


def predict(
  config: Config, *, vocabulary: int, length: int, devices: Sequence[Any]
) -> Prediction:
  """Compiles the step for `devices` and reads what it needs.

  Args:
    config: with its mesh.
    vocabulary: pieces, of both sides.
    length: tokens of a sentence in the batch, on both sides.
    devices: at hand, or of a topology.

  Raises:
    ConfigError: the mesh does not suit the devices or the model, or the
      compiler finds that the step does not fit.
  """
  first = devices[0]
  mesh = make_mesh(config.mesh, devices)
  layout = sharding.Layout(of_one_run(mesh))
  model = Transformer(
    config.model,
    vocabulary,
    vocabulary,
    ring.serve(config.model, layout, platform=first.platform).attend,
    layout.wrap_layer,
  )
  rows, length = batch_shape(config, length)
  parts = config.optim.accumulate
  admit_parts(config, rows)
  whole = layout.place('')
  key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=whole)
  state = jax.eval_shape(initial_state(config, model), key)
  state = sharding.placed(state, layout.at_rest(state))
  side: Any = jax.ShapeDtypeStruct(
    layout.padded(rows, length, parts), jnp.int32, sharding=layout.place('BT')
  )
  traced = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((), jnp.float32, sharding=whole),
    numbers(config),
  )
  arguments = state, Batch(side, side), key, traced
  step = train_step(config, model, layout)
  jitted = jax.jit(step, donate_argnums=0, **layout.outputs(state))
  room = fit.Room(
    memory=fit.device_memory(first),
    kind=first.device_kind,
    state=hlo.tree_bytes(fit.on_one(state)),
    mesh=mesh.shape,
    config=config,
  )
  lowered = jitted.lower(*arguments)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    fit.refuse_memory(error, room)
    raise
  return Prediction(
    fit.estimate(
      compiled,
      params=fit.on_one(state.params),
      optimizer=fit.on_one(state.optimizer),
      flops=products.flops(step, *arguments) / room.devices,
    ),
    tokens=rows * length,
    device=fit.DEVICES.get(first.device_kind),
    room=room,
  )
