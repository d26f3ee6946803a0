"""What attention does inside a model, seen from outside.

The model takes its attention function as an attribute, so a function that
looks can be handed to it. Layers are one scanned program: what is seen in one
of them has to leave the scan as an output of it. Linen lets the calls of a
module be intercepted, and the stack already returns what is kept of each
layer; so nothing in the model knows of this file.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.nn.attention import (
  How,
  all_scores,
  allowed_BTS,
  attention_weights,
  mix,
)
from transformer_jax.nn.layers import MultiHeadAttention
from transformer_jax.nn.score_memory import held_by
from transformer_jax.nn.stack import Stack
from transformer_jax.nn.transformer import Transformer

# That a score may hold at once while it is looked at: 64 MiB.
MOST_NUMBERS = 1 << 24


class Place(NamedTuple):
  """Where in the model an attention is.

  site: one of SITES.
  x_BTD: what its queries are made of.
  inputs: of this site and layer, see `watch`.
  """

  site: str
  x_BTD: Array
  inputs: Any


class Seen(NamedTuple):
  """What was kept.

  joined: {'encoder': x_BSD, 'decoder': x_BTD}, what the first layer reads:
    embedding and position, joined.
  sites: {site: what `look` kept of each attention, with a leading N}.
  """

  joined: dict[str, Array]
  sites: dict[str, Any]


@dataclasses.dataclass
class _Layer:
  """One layer while it is traced."""

  inputs: Mapping[str, Any]
  kept: dict[str, Any] = dataclasses.field(default_factory=dict)
  place: Place | None = None


# (place, and the arguments of `attention.attention`) -> (mixed_BTHE, kept)
Look = Callable[..., tuple[Array, Any]]


def lean_scores(q_BTHK: Array, k_BSHK: Array, how: How) -> Array:
  """`attention.all_scores`, one query after the other where a score holds much.

  The weights of all rows are looked at together: one number a pair. On the way
  to them an additive score holds K times as many.
  """
  B, T, H, _ = q_BTHK.shape
  held = held_by(how, q_BTHK, k_BSHK)
  if held == 1 or B * T * k_BSHK.shape[1] * H * held <= MOST_NUMBERS:
    return all_scores(q_BTHK, k_BSHK, how)

  def scores(q_BTHK: Array, k_BSHK: Array, w: Any, *, scale: Any) -> Array:
    @jax.checkpoint
    def of_query(q_BHK: Array) -> Array:
      return how.scores(q_BHK[:, None], k_BSHK, w, scale=scale)[:, :, 0]

    scores_TBHS = jax.lax.map(of_query, jnp.moveaxis(q_BTHK, 1, 0))
    return jnp.moveaxis(scores_TBHS, 0, 2)

  return all_scores(q_BTHK, k_BSHK, how._replace(scores=scores))


def weights_seen(keep: Callable[[Place, Array, Array], Any]) -> Look:
  """A `look` that changes nothing, and keeps something of the weights.

  Args:
    keep: (place, weights_BHTS, mask_BTS) -> arrays to keep.
  """

  def look(
    place: Place,
    q_BTHK: Array,
    k_BSHK: Array,
    v_BSHE: Array,
    mask_BTS: Array,
    how: How,
  ) -> tuple[Array, Any]:
    scores_BHTS = lean_scores(q_BTHK, k_BSHK, how)
    mask_BTS = allowed_BTS(mask_BTS, how, *scores_BHTS.shape[2:])
    weights_BHTS = attention_weights(scores_BHTS, mask_BTS)
    return mix(weights_BHTS, v_BSHE), keep(place, weights_BHTS, mask_BTS)

  return look


def watch(
  model: Transformer,
  call: Callable[[Transformer], Any],
  look: Look,
  inputs: Mapping[str, Any] | None = None,
) -> tuple[Any, Seen]:
  """call(model), with `look` in the place of every attention.

  Args:
    model: to be watched; its own attention function is not called.
    call: applies the model that it is given.
    look: stands for attention: returns its result and arrays to keep.
    inputs: {site: arrays with a leading N}; a layer's slice comes to `look` in
      its place. All that is differentiated or mapped over goes here.

  Returns:
    What `call` returned, and what was seen. Both may be traced: under `jit`
    this is one program with the model.
  """
  seen = Seen({}, {})
  layers: list[_Layer] = []

  def attend(*arguments: Any) -> Array:
    place = layers[-1].place
    assert place is not None, 'attention outside of a layer'
    mixed_BTHE, layers[-1].kept[place.site] = look(place, *arguments)
    return mixed_BTHE

  def stack(run, name, x_BTD, apply, inputs_N=None, dropout=None):
    seen.joined[name] = x_BTD

    def apply_and_keep(layer, x_BTD, slices, site):
      own, extra = slices
      layers.append(_Layer(extra))
      x_BTD, kept = apply(layer, x_BTD, own, site)
      return x_BTD, (kept, layers.pop().kept)

    both_N = inputs_N, dict(inputs or {})
    x_BTD, (kept, found) = run(x_BTD, apply_and_keep, both_N, dropout)
    seen.sites.update(found)
    return x_BTD, kept

  def intercept(run, args, kwargs, context):
    module = context.module
    if isinstance(module, Stack) and context.method_name == '__call__':
      return stack(run, module.name, *args, **kwargs)
    if (
      isinstance(module, MultiHeadAttention) and context.method_name == 'attend'
    ):
      extra = layers[-1].inputs.get(module.site)
      layers[-1].place = Place(module.site, args[0], extra)
    return run(*args, **kwargs)

  with nn.intercept_methods(intercept):
    returned = call(model.clone(attention_fn=attend))
  return returned, seen
