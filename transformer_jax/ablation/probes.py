"""Why a variant learns or not: what happens in its softmax.

Per site, layer and head, of one batch and without dropout: how far scores
spread, how sharp the weights are, and how much of the gradient that arrives at
the weights comes out at the scores. Unscaled dot products are said to push the
softmax to where that share vanishes (section 3.2.1, footnote 4); here it is
measured.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.config import (
  SITES,
  Config,
  DataConfig,
  DecodeConfig,
  TrainConfig,
)
from transformer_jax.data.tokens import PAD
from transformer_jax.nn.attention import (
  How,
  allowed_BTS,
  attention_weights,
  mix,
)
from transformer_jax.nn.layers import SITE_PATHS
from transformer_jax.nn.projections import PROJECTIONS as PROJECTIONS_OF
from transformer_jax.nn.transformer import Transformer
from transformer_jax.nn.watch import Place, lean_scores, watch
from transformer_jax.training.state import Numbers, loss_function, program

# A row is saturated when one weight is above this.
SATURATED = 0.99
PROJECTIONS = ('query_gradient', 'key_gradient', 'value_gradient')
Probes = dict[str, dict[str, Any]]


class Spread(NamedTuple):
  """Of the scores and weights of one attention, each [H].

  score_variance: of all scores that are looked at.
  score_range: largest less smallest score of a row, mean over rows.
  entropy: of a row's weights, nats, mean over rows.
  saturated: share of rows with a weight above SATURATED.
  """

  score_variance: Array
  score_range: Array
  entropy: Array
  saturated: Array


def spread(scores_BHTS: Array, weights_BHTS: Array, see_BTS: Array) -> Spread:
  """How scores and weights are spread.

  Rows are queries that may see two keys or more: of one key alone the weight
  is 1 whatever the score, which says nothing about the softmax.

  Args:
    scores_BHTS: float32, scaled, as the softmax reads them.
    weights_BHTS: float32, what it makes of them.
    see_BTS: bool, true where a query that is no padding may see a key; full
      size.

  >>> scores = jnp.array([0.0, 3.0, 9.0, 1.0]).reshape(1, 1, 2, 2)
  >>> see = jnp.array([[[True, True], [True, False]]])
  >>> found = spread(scores, jax.nn.softmax(scores), see)
  >>> [round(float(x[0]), 4) for x in found[1:]]
  [3.0, 0.1909, 0.0]
  """
  keys_BT = jnp.sum(see_BTS, axis=-1)
  choice_BT = keys_BT > 1
  rows = jnp.maximum(jnp.sum(choice_BT), 1)
  see_BHTS = see_BTS[:, None]
  over_all, over_keys = (0, 2, 3), -1

  def mean_of_rows(value_BHT: Array) -> Array:
    value_BHT = jnp.where(choice_BT[:, None], value_BHT, 0.0)
    return jnp.sum(value_BHT, axis=(0, 2)) / rows

  pairs = jnp.maximum(jnp.sum(keys_BT), 1)
  mean_H = jnp.sum(scores_BHTS, over_all, where=see_BHTS) / pairs
  centred_BHTS = scores_BHTS - mean_H[None, :, None, None]
  variance_H = jnp.sum(centred_BHTS**2, over_all, where=see_BHTS) / pairs
  most_BHT = jnp.max(scores_BHTS, over_keys, where=see_BHTS, initial=-jnp.inf)
  least_BHT = jnp.min(scores_BHTS, over_keys, where=see_BHTS, initial=jnp.inf)
  # A weight of 0 adds nothing: x log x goes to 0.
  logs_BHTS = jnp.log(jnp.where(weights_BHTS > 0, weights_BHTS, 1.0))
  entropy_BHT = -jnp.sum(weights_BHTS * logs_BHTS, over_keys, where=see_BHTS)
  sharp_BHT = jnp.max(weights_BHTS, over_keys, where=see_BHTS, initial=0.0)
  return Spread(
    variance_H,
    mean_of_rows(most_BHT - least_BHT),
    mean_of_rows(entropy_BHT),
    mean_of_rows((sharp_BHT > SATURATED).astype(jnp.float32)),
  )


@jax.custom_vjp
def gauge(x_BHTS: Array, zero_H: Array, see_BTS: Array) -> Array:
  """Returns x; the gradient of `zero` becomes the squared norm of that of x.

  So the norm of a gradient in the middle of a scanned layer comes out beside
  the gradients of the parameters, and no array of its size is kept.

  Args:
    x_BHTS: what is passed on.
    zero_H: to be differentiated by; one norm a head.
    see_BTS: what counts. A gradient also arrives at the weights of masked
      keys, where the softmax lets none through.
  """
  del zero_H, see_BTS
  return x_BHTS


def _gauge_forward(x_BHTS, zero_H, see_BTS):
  del zero_H
  return x_BHTS, see_BTS


def _gauge_backward(see_BTS, gradient_BHTS):
  square_BHTS = jnp.square(gradient_BHTS)
  total_H = jnp.sum(square_BHTS, axis=(0, 2, 3), where=see_BTS[:, None])
  return gradient_BHTS, total_H, None


gauge.defvjp(_gauge_forward, _gauge_backward)


def real_queries(site: str, batch: Any) -> Array:
  """bool [B, T], true where the query of a site is no padding."""
  source_BS, target_BT = batch
  return (source_BS if site == 'encoder_self' else target_BT) != PAD


def seen_pairs(site: str, mask_BTS: Array, batch: Any) -> Array:
  """bool [B, T, S], true where a query that is no padding may see a key."""
  return mask_BTS & real_queries(site, batch)[:, :, None]


def measure(
  config: Config, model: Transformer
) -> Callable[[dict, Any, Numbers], dict[str, dict[str, Array]]]:
  """(params, batch, numbers) -> {site: {probe: [N, H]}}; jit it.

  The probes are those of `Spread`, and

    softmax_gradient: norm of the gradient of the loss at the scores, what has
      passed the softmax;
    softmax_share: that over the norm at the weights, what arrived;
    query_gradient, key_gradient, value_gradient: norms at the projections; a
      shared projection gives the same number twice, a missing one gives none;
    input_variance, [N]: mean square of the numbers that queries are made of:
      1 after a norm, but not in layer 0.

  The loss is the mean over target tokens, smoothed as in training.
  """
  shape = config.model.layers, config.model.heads
  names = PROJECTIONS_OF[config.model.projections]

  def mean_loss(params, zeros, batch, numbers):
    def look(place: Place, q_BTHK, k_BSHK, v_BSHE, mask_BTS, how: How):
      scores_BHTS = lean_scores(q_BTHK, k_BSHK, how)
      mask_BTS = allowed_BTS(mask_BTS, how, *scores_BHTS.shape[2:])
      see_BTS = seen_pairs(place.site, mask_BTS, batch)
      # Of a single key the weight is 1: no gradient passes there, ever.
      choice_BTS = see_BTS & (jnp.sum(see_BTS, axis=-1, keepdims=True) > 1)
      scores_BHTS = gauge(scores_BHTS, place.inputs['scores'], choice_BTS)
      weights_BHTS = attention_weights(scores_BHTS, mask_BTS)
      weights_BHTS = gauge(weights_BHTS, place.inputs['weights'], choice_BTS)
      found = spread(scores_BHTS, weights_BHTS, see_BTS)._asdict()
      real_BT = real_queries(place.site, batch)
      found['input_variance'] = mean_square(place.x_BTD, real_BT)
      return mix(weights_BHTS, v_BSHE), jax.lax.stop_gradient(found)

    sums, seen = watch(
      model,
      lambda watched: loss_function(config, watched)(
        params, batch, None, numbers
      ),
      look,
      zeros,
    )
    return sums.smoothed / jnp.maximum(sums.tokens, 1.0), seen.sites

  def probes(params, batch, numbers):
    zeros = {
      site: {name: jnp.zeros(shape) for name in ('scores', 'weights')}
      for site in SITES
    }
    (gradients, squares), sites = jax.grad(
      mean_loss, argnums=(0, 1), has_aux=True
    )(params, zeros, batch, numbers)
    for site, found in sites.items():
      passed_NH, arrived_NH = (
        jnp.sqrt(squares[site][name]) for name in ('scores', 'weights')
      )
      found['softmax_gradient'] = passed_NH
      found['softmax_share'] = passed_NH / jnp.maximum(arrived_NH, 1e-30)
      found.update(projection_gradients(gradients, site, names))
    return sites

  return probes


def mean_square(x_BTD: Array, real_BT: Array) -> Array:
  """Of the numbers of x that are no padding."""
  square_BT = jnp.mean(jnp.square(x_BTD.astype(jnp.float32)), axis=-1)
  total = jnp.sum(square_BT, where=real_BT)
  return total / jnp.maximum(jnp.sum(real_BT), 1)


def projection_gradients(
  gradients: dict, site: str, names: Sequence[str]
) -> dict[str, Array]:
  """{probe: [N, H]}, norms of the gradients of the site's projections."""
  # A site that has no parameters is not in the tree.
  of_site = functools.reduce(
    lambda tree, name: tree.get(name, {}), SITE_PATHS[site], gradients
  )
  return {
    probe: jnp.sqrt(jnp.sum(jnp.square(of_site[name]), axis=(1, 3)))
    for probe, name in zip(PROJECTIONS, names, strict=True)
    if name
  }


@functools.lru_cache(maxsize=16)
def _compiled(config: Config, model: Transformer) -> Any:
  return jax.jit(measure(config, model))


def probe(
  config: Config, model: Transformer, params: Any, batch: Any, numbers: Numbers
) -> Probes:
  """What `measure` finds, as plain numbers.

  Compiled once for a program and a shape of batch. A few dozen rows are enough:
  one call costs about as much as two training steps on them.

  Args:
    config: of the run.
    model: of the run.
    params: at the moment of the probe.
    batch: source_BS and target_BT; always the same one, to compare steps.
    numbers: of the run.

  Returns:
    {site: {probe: [[a number a head], a list a layer]}}.
  """
  # One for all scales and rates; data, loop and decoding change no program.
  own = dataclasses.replace(
    program(config),
    data=DataConfig(),
    train=TrainConfig(),
    decode=DecodeConfig(),
  )
  # Linen modules are hashable, and equal where they are alike.
  alike: Any = model.clone(config=own.model)
  found = jax.device_get(_compiled(own, alike)(params, batch, numbers))
  # A compiled program returns dicts in the order of the alphabet.
  return {
    site: {
      name: np.asarray(value, np.float64).tolist()
      for name, value in found[site].items()
    }
    for site in SITES
  }


def over_training(probes: Iterable[tuple[int, Probes]]) -> Probes:
  """One series a probe, as results keep them.

  >>> over_training([(0, {'cross': {'entropy': [[1.0]]}}),
  ...                (9, {'cross': {'entropy': [[0.5]]}})])
  {'cross': {'step': [0, 9], 'entropy': [[[1.0]], [[0.5]]]}}
  """
  series: Probes = {}
  for step, sites in probes:
    for site, found in sites.items():
      lines = series.setdefault(site, {'step': []})
      lines['step'].append(step)
      for name, value in found.items():
        lines.setdefault(name, []).append(value)
  return series
