"""The runs that follow from a study: arms times seeds times recipes."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from transformer_jax import plugins
from transformer_jax.ablation.study import (
  Arm,
  Overrides,
  Phase,
  Study,
  deviations,
  find_arm,
  label,
)
from transformer_jax.config import Config
from transformer_jax.fields import override

if TYPE_CHECKING:
  from transformer_jax.data.tokens import Vocabularies
  from transformer_jax.nn.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a study."""

  study: str
  variant: str
  seed: int
  phase: Phase
  config: Config

  @property
  def identity(self) -> str:
    """The hash of all that its result depends on.

    It covers the fields of the config that differ from the defaults, so that a
    new axis leaves old results valid, and the file of a choice that a plugin
    adds. It covers the variant: two arms of one config (a twin) are two runs.
    It leaves out the phase: where tuning chooses the paper's own recipe, the
    run is there already.
    """
    parts = [self.variant, deviations(self.config)]
    if used := plugins.used(self.config):
      parts.append(used)
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]

  @property
  def label(self) -> str:
    """How tables name its arm."""
    return label(self.variant, self.phase)


def arm_config(study: Study, arm: Arm) -> Config:
  """The config of an arm, under the recipe that all arms share."""
  shared = override(Config(), study.baseline)
  return override(shared, arm.overrides)


def shared_pairs(study: Study, platform: str) -> int:
  """`implementations.shared_pairs`, of all arms."""
  from transformer_jax.nn import implementations

  models = [arm_config(study, arm).model for arm in study.arms]
  return implementations.shared_pairs(models, platform=platform)


def computed_by(study: Study, where: str) -> str:
  """A line: what computes attention of the arms on a platform, and why."""
  from transformer_jax.nn import implementations

  said = 'attention in training, of every arm: '
  configs = [arm_config(study, arm) for arm in study.arms]
  if pairs := shared_pairs(study, where):
    # A batch has no more tokens a side, and no more keys for each.
    most = max(one.data.max_tokens * one.data.max_length for one in configs)
    if most > pairs:
      way = f'the formula up to {pairs:,} pairs of query and key in a batch, '
      way += 'blocks beyond'
    else:
      way = 'the formula'
    return f'{said}{way}; alone, not all would be served alike'
  arms: dict[str, list[str]] = {}
  for arm, config in zip(study.arms, configs, strict=True):
    why = implementations.serve(config.model, platform=where).why
    arms.setdefault(why, []).append(arm.name)
  if len(arms) == 1:
    return said + next(iter(arms))
  parts = (f'{why} ({", ".join(names)})' for why, names in arms.items())
  return f'attention in training: {"; ".join(parts)}'


def model_of(
  study: Study, config: Config, vocabularies: 'Vocabularies'
) -> 'Transformer':
  """The model of a run; its attention is computed as in all other arms."""
  import jax

  from transformer_jax.nn import implementations
  from transformer_jax.nn.transformer import Transformer

  platform = jax.local_devices()[0].platform
  pairs = shared_pairs(study, platform)
  attend = implementations.choose(config.model, platform=platform, pairs=pairs)
  sizes = vocabularies.source.size, vocabularies.target.size
  return Transformer(config.model, *sizes, attend)


def outside(study: Study) -> dict[str, str]:
  """`plugins.used`, of all arms."""
  used: dict[str, str] = {}
  for arm in study.arms:
    used |= plugins.used(arm_config(study, arm))
  return used


def cell(
  study: Study,
  variant: str,
  *,
  seed: int,
  phase: Phase,
  recipe: Overrides | None = None,
) -> Cell:
  """One run; recipe: learning rate and warmup, the shared ones by default."""
  config = arm_config(study, find_arm(study, variant))
  values = {**(recipe or {}), 'train.seed': seed}
  config = override(config, values)
  return Cell(study.name, variant, seed, phase, config)


def cells(
  study: Study, seeds: Iterable[int], recipes: Mapping[str, Overrides] | None
) -> list[Cell]:
  """The runs that are judged, by seed and then by arm.

  Args:
    study: checked.
    seeds: to run.
    recipes: variant -> what tuning chose for it; None: no tuned phase.
  """
  found = []
  for seed in seeds:
    for arm in study.arms:
      found.append(cell(study, arm.name, seed=seed, phase='paper'))
      if recipes is not None:
        recipe = recipes[arm.name]
        found.append(
          cell(study, arm.name, seed=seed, phase='tuned', recipe=recipe)
        )
  return found


def data_of(study: Study, one: Cell) -> str:
  """Its values of data fields that arms vary; '' where all share the data."""
  varied = {path for arm in study.arms for path in arm.overrides}
  return ', '.join(
    f'{path}={getattr(one.config.data, path.removeprefix("data."))}'
    for path in sorted(varied)
    if path.startswith('data.')
  )


def is_exploratory(study: Study, one: Cell) -> bool:
  """Whether its seed was not planned when the study was declared."""
  return one.phase != 'tune' and one.seed >= study.seeds
