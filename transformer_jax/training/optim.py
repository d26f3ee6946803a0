"""The paper's schedule and Adam (section 5.3)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array

from transformer_jax.config import OptimConfig


def paper_schedule(
  step: Array | int, *, d_model: int, warmup_steps: Array | float
) -> Array:
  """d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5), eq. 3.

  Args:
    step: number of the update, 1 for the first.
    d_model: width of the model.
    warmup_steps: steps until the rate is highest.

  >>> round(paper_schedule(4000, d_model=512, warmup_steps=4000).item(), 7)
  0.0006988
  """
  step = jnp.asarray(step, jnp.float32)
  return d_model**-0.5 * jnp.minimum(step**-0.5, step * warmup_steps**-1.5)


def inverse_sqrt_schedule(
  step: Array | int, *, warmup_steps: Array | float
) -> Array:
  """min(step / warmup_steps, sqrt(warmup_steps / step)).

  This is eq. 3 divided by its maximum, so that the learning rate that it is
  multiplied by is the peak.

  Args:
    step: number of the update, 1 for the first.
    warmup_steps: steps until the rate is highest.

  Returns:
    float32, 1 at most.

  >>> [inverse_sqrt_schedule(n, warmup_steps=4).item() for n in (1, 4, 16)]
  [0.25, 1.0, 0.5]
  """
  step = jnp.asarray(step, jnp.float32)
  return jnp.minimum(step / warmup_steps, (warmup_steps / step) ** 0.5)


SCHEDULES = {
  'paper': paper_schedule,
  'inverse_sqrt': lambda step, *, d_model, warmup_steps: inverse_sqrt_schedule(
    step, warmup_steps=warmup_steps
  ),
  'constant': lambda step, *, d_model, warmup_steps: jnp.ones(()),
}


def adam(
  config: OptimConfig, rates: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
  """Adam's direction; the learning rate is applied in the step, traced.

  Clipping to a global norm comes first, when it is asked for.

  Args:
    config: of the optimizer.
    rates: see `as_if_scaled`.
  """
  direction = optax.scale_by_adam(
    b1=config.beta1, b2=config.beta2, eps=config.epsilon
  )
  if config.clip_norm:
    clip = optax.clip_by_global_norm(config.clip_norm)
    direction = optax.chain(clip, direction)
  return as_if_scaled(direction, rates) if rates else direction


def as_if_scaled(
  direction: optax.GradientTransformation, rates: Mapping[str, float]
) -> optax.GradientTransformation:
  """`direction` for parameters W' = s W, so that W' stays s W.

  The gradient by W is s times that by W', and W' has to move s times as far.
  Under Adam that is a learning rate of s and an epsilon of epsilon / s; a
  gradient clipped to a norm is clipped as that of W.

  Args:
    direction: of the parameters W.
    rates: {path of a parameter, its names joined by '/': s}.
  """

  def scaled(tree):
    def one(path, leaf):
      name = '/'.join(str(entry.key) for entry in path)
      return leaf * rates.get(name, 1.0)

    return jax.tree_util.tree_map_with_path(one, tree)

  def update(updates, state, params=None):
    updates, state = direction.update(scaled(updates), state, params)
    return scaled(updates), state

  return optax.GradientTransformation(direction.init, update)
