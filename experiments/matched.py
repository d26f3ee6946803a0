"""Controls of equal size: the baseline with as many parameters as a variant.

Where a choice adds or removes parameters, what it changes could be due to
their number alone. The control is the baseline with a feed-forward as wide as
it takes to have the variant's count, within 1 %.
"""

import dataclasses
import math
from collections.abc import Mapping

from transformer_jax.config import Config, ConfigError, override

Value = int | float | str
TOLERANCE = 0.01  # of the variant's parameters


def parameters(config: Config, vocabulary: int) -> int:
  """How many numbers the model learns.

  Args:
    config: of the experiment.
    vocabulary: tokens of the source and of the target vocabulary.
  """
  import jax

  from transformer_jax.nn import randomness
  from transformer_jax.nn.transformer import initial_params

  draw = initial_params(
    config.model, source_vocabulary=vocabulary, target_vocabulary=vocabulary
  )
  shapes = jax.eval_shape(draw, randomness.seed_key(0))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def matched(
  baseline: Config, variant: Mapping[str, Value], vocabulary: int
) -> dict[str, int]:
  """Overrides of `baseline` that give it the variant's parameter count.

  Args:
    baseline: what the variant is compared with.
    variant: the overrides that make the variant of it.
    vocabulary: tokens of the source and of the target vocabulary.

  Returns:
    {'model.d_ff': width}, or {} where the counts are equal anyway.

  Raises:
    ConfigError: no width of the feed-forward comes within 1 %.
  """
  wanted = parameters(override(baseline, variant), vocabulary)
  now = parameters(baseline, vocabulary)
  if now == wanted:
    return {}
  width = baseline.model.d_ff
  wider = dataclasses.replace(baseline.model, d_ff=width + 1)
  # The count is linear in the width.
  a_column = (
    parameters(dataclasses.replace(baseline, model=wider), vocabulary) - now
  )
  width += round((wanted - now) / a_column)
  left = abs(now + (width - baseline.model.d_ff) * a_column - wanted)
  if width < 1 or left > TOLERANCE * wanted:
    raise ConfigError(
      f'no model.d_ff gives the baseline {wanted:,} parameters, within 1 %, '
      f'as {dict(variant)} has them'
    )
  return {'model.d_ff': width}
