"""Controls of equal size: the baseline with as many parameters as a variant.

Where a choice adds or removes parameters, what it changes could be due to
their number alone. The control is the baseline with a feed-forward as wide as
it takes to have the variant's count, within 1 %. A study has it as an arm named
`as large as VARIANT`, which is found anew where the user changes the model.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

from transformer_jax.ablation import checks
from transformer_jax.ablation.cells import arm_config
from transformer_jax.ablation.study import Arm, Study, find_arm
from transformer_jax.config import Config, ConfigError, ModelConfig
from transformer_jax.fields import override

Value = int | float | str
TOLERANCE = 0.01  # of the variant's parameters
PREFIX = 'as large as '
WIDTH = 'model.d_ff'


def parameters(config: Config, vocabulary: int) -> int:
  """How many numbers the model learns.

  Args:
    config: of the experiment.
    vocabulary: tokens of the source and of the target vocabulary.
  """
  return _parameters(config.model, vocabulary)


# A study's arms are held against one baseline again and again.
@functools.lru_cache(maxsize=256)
def _parameters(config: ModelConfig, vocabulary: int) -> int:
  import jax

  from transformer_jax.nn import randomness
  from transformer_jax.nn.transformer import initial_params

  draw = initial_params(
    config, source_vocabulary=vocabulary, target_vocabulary=vocabulary
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
  return {WIDTH: width}


def without_controls(study: Study) -> Study:
  """Without controls of equal size: the width is the user's to set then."""
  controls = {arm.name for arm in study.arms if arm.name.startswith(PREFIX)}
  if not controls:
    return study
  return dataclasses.replace(
    study,
    axes=tuple(path for path in study.axes if path != WIDTH),
    arms=tuple(arm for arm in study.arms if arm.name not in controls),
    primary=tuple(
      one for one in study.primary if not {one.variant, one.baseline} & controls
    ),
  )


def with_overrides(study: Study, values: Mapping[str, Value]) -> Study:
  """`checks.with_overrides`, and controls of equal size for the new model.

  Raises:
    ConfigError: a field that is an axis, or no width makes a control.
  """
  bare = without_controls(study)
  if bare is study or not any(path.startswith('model.') for path in values):
    return checks.with_overrides(study, values)
  controls = {arm.name for arm in study.arms} - {a.name for a in bare.arms}
  bare = checks.with_overrides(bare, values)
  base = arm_config(bare, bare.arms[0])

  def found(arm: Arm) -> Arm:
    if arm.name not in controls:
      return arm
    variant = find_arm(study, arm.name.removeprefix(PREFIX))
    width = matched(base, variant.overrides, base.data.vocabulary_size)
    return dataclasses.replace(arm, overrides=width)

  return checks.check(
    dataclasses.replace(
      bare,
      axes=study.axes,
      arms=tuple(map(found, study.arms)),
      primary=tuple(
        one
        for one in study.primary
        if one in bare.primary or {one.variant, one.baseline} & controls
      ),
    )
  )
