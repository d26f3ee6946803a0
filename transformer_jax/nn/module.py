"""What every part of the model is made of: its parameters and its dropout."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.config import ModelConfig
from transformer_jax.nn import randomness
from transformer_jax.nn.initializers import INITIALIZATIONS, Draw

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class Dropout(NamedTuple):
  """The key of this place in the model, and the rates (traced numbers)."""

  key: Array
  residual: Array | float
  attention: Array | float
  feed_forward: Array | float

  def at(self, site: str | Array) -> 'Dropout':
    """For the part `site` of this place: a name, or the number of a layer."""
    return self._replace(key=randomness.at(self.key, site))


def within(dropout: Dropout | None, site: str | Array) -> Dropout | None:
  return None if dropout is None else dropout.at(site)


class Module(nn.Module):
  """A Linen module whose parameters are drawn from their paths."""

  config: ModelConfig

  @property
  def dtype(self) -> Any:
    return DTYPES[self.config.compute_dtype]

  def parameter(
    self, name: str, role: str, shape: tuple[int, ...], fans: tuple[int, int]
  ) -> Array:
    """The array `name`, first drawn as config.initialization says of `role`.

    Args:
      name: with its letters.
      role: a key of INITIALIZATIONS[...].
      shape: of the array.
      fans: fan-in and fan-out.
    """
    draw = INITIALIZATIONS[self.config.initialization][role]
    return self.drawn(name, draw, shape, fans)

  def drawn(
    self, name: str, draw: Draw, shape: tuple[int, ...], fans: tuple[int, int]
  ) -> Array:
    """The array `name`, in the compute dtype."""
    value = self.own(name, lambda key: draw(key, shape, *fans))
    return value.astype(self.dtype)

  def own(self, name: str, draw: Callable[[Array], Any]) -> Any:
    """The parameter, or tree of parameters, `name`; drawn if it is not yet."""
    # Where it exists Linen would trace `draw` again, to compare the shapes.
    if self.has_variable('params', name):
      return self.get_variable('params', name)
    # The run's own key and the path, not Linen's key: that one counts calls.
    root: Any = self.scope
    key = root.root.rngs['params'].as_jax_rng()
    key = randomness.at(key, '/'.join((*self.path, name)))
    return self.param(name, lambda _: draw(key))
