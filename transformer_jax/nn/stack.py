"""N equal layers as one scan (section 3.1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.nn import norms, randomness
from transformer_jax.nn.layers import DecoderLayer, EncoderLayer
from transformer_jax.nn.module import Dropout, Module, within

# layer_loop: how many of N layers are written out in the program at a time.
LAYER_LOOPS = {'scan': lambda layers: 1, 'unroll': lambda layers: layers}


def unchanged(body: Callable) -> Callable:
  """The body of a layer as it is."""
  return body


class Stack(Module):
  """N equal layers, their parameters one tree with a leading N.

  Attributes:
    config: of the model.
    layer: the class of each.
    attention_fn: computes `attention.attention`, in its way.
    wrap_layer: given the body of the scan, gives another. A body is (x_BTD,
      (number, variables, inputs) of the layer) -> (x_BTD, outputs); variables
      is the dict that `bind` takes, of parameters and statistics.
  """

  layer: type[EncoderLayer] | type[DecoderLayer]
  attention_fn: Callable[..., Array]
  wrap_layer: Callable[[Callable], Callable]

  def setup(self):
    one = self.layer(self.config, self.attention_fn, parent=None)

    def draw(key, kind):
      numbers_N = jnp.arange(self.config.layers)
      keys_N = jax.vmap(lambda n: randomness.at(key, n))(numbers_N)
      return jax.vmap(
        lambda key: one.init({'params': key}, method='declare').get(kind, {})
      )(keys_N)

    self.layers = self.own('layers', lambda key: draw(key, 'params'))
    self.statistics = [
      self.variable(
        'statistics', 'layers', draw, randomness.seed_key(0), 'statistics'
      )
      for _ in norms.NORMS[self.config.norm].statistics[:1]
    ]

  def __call__(
    self,
    x_BTD: Array,
    apply: Callable,
    inputs_N: Any = None,
    dropout: Dropout | None = None,
  ) -> tuple[Array, Any]:
    """x through the layers, first to last.

    Args:
      x_BTD: what the first layer reads.
      apply: (layer bound to its parameters, x_BTD, its slice of inputs_N, its
        dropout) -> (x_BTD, what to keep of the layer).
      inputs_N: arrays with a leading N, or None.
      dropout: of the stack.

    Returns:
      What the last layer gives, and what was kept, with a leading N.
    """
    one = self.layer(self.config, self.attention_fn, parent=None)

    learns = self.is_mutable_collection('statistics')
    learns = learns and not self.is_initializing()

    def body(x_BTD, slice_N):
      n, variables, inputs = slice_N
      layer = one.bind(variables, mutable=['statistics'] if learns else False)
      x_BTD, kept = apply(layer, x_BTD, inputs, within(dropout, n))
      return x_BTD, (kept, layer.variables.get('statistics', {}))

    body = self.wrap_layer(body)
    if self.config.remat == 'layer':
      body = jax.checkpoint(body)
    numbers_N = jnp.arange(self.config.layers)
    variables_N = {'params': self.layers}
    if self.statistics:
      variables_N['statistics'] = self.statistics[0].value
    unroll = LAYER_LOOPS[self.config.layer_loop](self.config.layers)
    x_BTD, (kept_N, statistics_N) = jax.lax.scan(
      body, x_BTD, (numbers_N, variables_N, inputs_N), unroll=unroll
    )
    for entry in self.statistics if learns else ():
      entry.value = statistics_N
    return x_BTD, kept_N
