"""The real training step, compiled before any device is asked for.

For the devices at hand, or for a TPU slice that is not there: XLA's TPU
compiler comes with libtpu and needs no TPU.
"""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.config import Config, ConfigError
from transformer_jax.data.batches import Batch
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import fit, program, ring, sharding
from transformer_jax.training.state import initial_state, numbers, train_step

TOPOLOGIES = 'v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x1, v6e:4x4'


class Prediction(NamedTuple):
  """What a step on these devices will need.

  tokens: of the longer side in a batch, padding included.
  device: rates and memory; None for a kind without published rates.
  memory: bytes that one device has.
  """

  estimate: fit.Estimate
  tokens: int
  devices: int
  kind: str
  device: fit.Device | None
  memory: float


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
    # Nothing is run: two that compile at once are in nobody's way.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  }.items():
    os.environ.setdefault(variable, value)
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name)
  except Exception as error:  # Of whatever class libtpu and JAX raise.
    text = (str(error) or type(error).__name__).splitlines()[0][:120]
    raise ConfigError(
      f'--topology={name} cannot be used ({text}); take one such as '
      f"{TOPOLOGIES}; it needs pip install 'transformer_jax[tpu]'"
    ) from None
  return list(found.devices)


def batch_shape(config: Config, length: int) -> tuple[int, int]:
  """Rows and length of the batch of sentences this long."""
  rows = config.data.max_tokens // length // 8 * 8
  if rows < 8:
    raise ConfigError(
      f'data.max_tokens={config.data.max_tokens} does not hold 8 sentences '
      f'of {length} tokens'
    )
  return rows, length


def temporaries(error: str) -> float | None:
  """Bytes beside the state, where the TPU's compiler says they are too many.

  >>> temporaries('HLO temporaries (18.97G) exceeds available HBM (15.75G)')
  20368882401.28
  """
  found = re.search(r'HLO temporaries \(([\d.]+)G\) exceeds', error)
  return float(found[1]) * fit.GIB if found else None


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
    ConfigError: the mesh does not suit the devices or the model.
  """
  first = devices[0]
  mesh = sharding.make_mesh(config.mesh, devices)
  layout = sharding.Layout(sharding.of_one_run(mesh))
  model = Transformer(
    config.model,
    vocabulary,
    vocabulary,
    ring.serve(config.model, layout, platform=first.platform).attend,
    layout.around,
  )
  rows, length = batch_shape(config, length)
  whole = layout.place('')
  key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=whole)
  state = jax.eval_shape(initial_state(config, model), key)
  state = sharding.placed(state, layout.at_rest(state))
  side: Any = jax.ShapeDtypeStruct(
    layout.padded(rows, length), jnp.int32, sharding=layout.place('BT')
  )
  traced = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((), jnp.float32, sharding=whole),
    numbers(config),
  )
  arguments = state, Batch(side, side), key, traced
  step = train_step(config, model, layout)
  jitted = jax.jit(step, donate_argnums=0, **layout.outputs(state))
  try:
    compiled = jitted.lower(*arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    needed = temporaries(str(error))
    if needed is None:
      raise
    own = program.tree_bytes(fit.on_one(state))
    fit.admit(
      needed + own,
      state=own,
      memory=fit.device_memory(first),
      kind=first.device_kind,
      fsdp=config.mesh.fsdp,
      devices=layout.mesh.size,
    )
    raise  # By our figures it fits.
  count = layout.mesh.size
  return Prediction(
    fit.estimate(
      compiled,
      params=fit.on_one(state.params),
      optimizer=fit.on_one(state.optimizer),
      flops=program.flops(step, *arguments) / count,
    ),
    tokens=rows * length,
    devices=count,
    kind=first.device_kind,
    device=fit.DEVICES.get(first.device_kind),
    memory=fit.device_memory(first),
  )
