"""Controls of equal size: one arm with as many parameters as another.

Where a choice adds or removes parameters, what it changes could be due to
their number alone. The control has a feed-forward as wide as it takes to have
the other's count, within 1 %. In a study it is an arm named `as large as
VARIANT`, the baseline in the variant's size, or `VARIANT as large as OTHER`.
Where the user changes the model or its vocabulary the width is found anew.
"""

import dataclasses
import functools
import math
from collections.abc import Container, Mapping

from transformer_jax.ablation import checks
from transformer_jax.ablation.cells import arm_config
from transformer_jax.ablation.study import Arm, Study, find_arm
from transformer_jax.config import Config, ConfigError, ModelConfig
from transformer_jax.data.corpus import vocabulary_size

Value = int | float | str
TOLERANCE = 0.01  # of the variant's parameters
MARK = 'as large as '
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


def matched(own: Config, other: Config, vocabulary: int) -> dict[str, int]:
  """Overrides of `own` that give it the other's parameter count.

  Args:
    own: what becomes the control.
    other: the model whose size it is to have.
    vocabulary: tokens of the source and of the target vocabulary.

  Returns:
    {'model.d_ff': width}, or {} where the counts are equal anyway.

  Raises:
    ConfigError: no width of the feed-forward comes within 1 %.
  """
  wanted, now = parameters(other, vocabulary), parameters(own, vocabulary)
  if now == wanted:
    return {}
  width = own.model.d_ff
  wider = dataclasses.replace(own.model, d_ff=width + 1)
  # The count is linear in the width.
  a_column = parameters(dataclasses.replace(own, model=wider), vocabulary) - now
  added = round((wanted - now) / a_column)
  if width + added < 1:
    raise ConfigError(
      f'no {WIDTH} gives {now:,} parameters the size of {wanted:,}: take '
      f'--{WIDTH}={1 - added} or more'
    )
  if abs(now + added * a_column - wanted) > TOLERANCE * wanted:
    raise ConfigError(
      f'no {WIDTH} gives {now:,} parameters the size of {wanted:,}, within '
      f'1 %: one column more is {a_column:,}'
    )
  return {WIDTH: width + added}


def controls(study: Study) -> dict[str, tuple[Arm, Arm]]:
  """{control: (arm that is widened, arm whose size it has)}."""
  found = {}
  for arm in study.arms:
    own, mark, other = arm.name.partition(MARK)
    if mark:
      widened = find_arm(study, own.strip()) if own else study.arms[0]
      found[arm.name] = widened, find_arm(study, other)
  return found


def without_controls(study: Study) -> Study:
  """Without controls of equal size: the width is the user's to set then."""
  names = controls(study)
  return _without(study, names) if names else study


def _without(study: Study, names: Container[str]) -> Study:
  kept = tuple(arm for arm in study.arms if arm.name not in names)
  used = {path for arm in kept for path in arm.overrides}
  return dataclasses.replace(
    study,
    axes=tuple(path for path in study.axes if path != WIDTH or path in used),
    arms=kept,
    primary=tuple(
      one
      for one in study.primary
      if one.variant not in names and one.baseline not in names
    ),
  )


def with_overrides(study: Study, values: Mapping[str, Value]) -> Study:
  """`checks.with_overrides`, and controls of equal size for the new model.

  A control that no width makes is left out, unless it is judged.

  Raises:
    ConfigError: a field that is an axis, or no width makes a control that a
      primary comparison needs.
  """
  names = controls(study)
  if not names:
    return checks.with_overrides(study, values)
  bare = checks.with_overrides(without_controls(study), values)
  before, after = (arm_config(one, one.arms[0]) for one in (study, bare))
  vocabulary = vocabulary_size(after.data)
  same = vocabulary == vocabulary_size(before.data)
  widths = {}
  for name, pair in names.items():
    if same and before.model == after.model:
      widths[name] = find_arm(study, name).overrides
      continue
    own, other = (arm_config(bare, arm) for arm in pair)
    try:
      found = matched(own, other, vocabulary)
    except ConfigError as error:
      judged = {n for one in study.primary for n in (one.variant, one.baseline)}
      if name in judged:
        raise ConfigError(f'study {study.name}, {name}: {error}') from None
    else:
      widths[name] = {**pair[0].overrides, **found}
  kept = _without(study, names.keys() - widths.keys())
  lost = set(without_controls(study).primary) - set(bare.primary)
  return checks.check(
    dataclasses.replace(
      bare,
      axes=kept.axes,
      arms=tuple(
        dataclasses.replace(arm, overrides=widths.get(arm.name, arm.overrides))
        for arm in kept.arms
      ),
      primary=tuple(one for one in kept.primary if one not in lost),
    )
  )
