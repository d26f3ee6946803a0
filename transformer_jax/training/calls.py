"""What goes to the device in one call, of a run and of a population alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.config import Config
from transformer_jax.data.batches import EndlessPlan, Plan
from transformer_jax.data.cache import Batch


def steps_in_call(plan: Plan | EndlessPlan, config: Config, step: int) -> int:
  """Steps until the shape changes or something is due."""
  train = config.train
  return min(
    plan.left_in_run(step),
    train.steps - step,
    train.evaluate_every - step % train.evaluate_every,
    train.save_every - step % train.save_every,
  )


def stacked(
  plan: Plan | EndlessPlan, config: Config, step: int, count: int
) -> Batch:
  """Batches step .. step + count - 1; the unused rest repeats the first."""
  seed, room = config.train.seed, config.data.batches_per_run
  found = [plan.batch(seed, step + n) for n in range(count)]
  found += found[:1] * (room - count)
  return Batch(*(np.stack(side) for side in zip(*found, strict=True)))


def is_finite(tree: Any) -> Array:
  """Whether all are numbers: the last update has not met a loss yet."""
  each = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.stack(each).all()
