"""What a choice of score or of joining positions costs: `ablation.cost`.

At the small size of the studies, one choice at a time, each beside what the
paper has. One after the other, not by turns: a difference of some percent in
time says nothing, parameters and FLOPs are exact.
"""

from typing import Any

import jax

from experiments.bench.measure import Row, say
from experiments.small import SMALL
from transformer_jax.ablation import cost
from transformer_jax.ablation.study import name_of, one_factor
from transformer_jax.config import Config
from transformer_jax.fields import override
from transformer_jax.nn import implementations
from transformer_jax.rules import validate

# Of task `reverse`.
SHAPE = cost.Shape(32, 9, 9, 20, 20)
AXES = ('model.score', 'model.position_join')
# What a choice cannot do without.
NEEDS = {
  'model.position_join=concat_narrow': {
    'model.tie': 'none',
    'model.d_position': 8,
  }
}
MEBI = 2**20


def cases(overrides: dict[str, Any]) -> list[dict[str, Any]]:
  """The paper's choices, then every other one alone."""
  return [{}, *one_factor({**SMALL, **overrides}, AXES, needs=NEEDS)]


def suite(overrides: dict[str, Any], rounds: int) -> list[Row]:
  """One row a choice: time of a step, and its whole cost as the note."""
  rows: list[Row] = []
  configs = [
    override(Config(), {**SMALL, **overrides, **changes})
    for changes in cases(overrides)
  ]
  platform = jax.local_devices()[0].platform
  pairs = implementations.shared_pairs(
    [config.model for config in configs], platform=platform
  )
  for config, changes in zip(configs, cases(overrides), strict=True):
    name = name_of(changes)
    say(f'compiling and timing {name}')
    validate(config)
    found = cost.of(config, SHAPE, rounds=rounds, pairs=pairs)
    first = rows[0].value / 1e3 if rows else found.step_seconds
    rows.append(
      Row(
        'cost',
        name,
        1e3 * found.step_seconds,
        'ms a step',
        1e3 * found.step_spread[0],
        1e3 * found.step_spread[1],
        rounds,
        ratio=found.step_seconds / first,
        note=note(found),
      )
    )
  return rows


def note(found: cost.Cost) -> str:
  """All but the time of a step."""
  parts = ', '.join(
    f'{part} {count:,}' for part, count in found.parameters.items() if count
  )
  return (
    f'{found.total_parameters:,} parameters ({parts}), '
    f'{found.flops_per_token:,.0f} FLOP a token in products, '
    f'{found.xla_flops_per_token:,.0f} in all, '
    f'{found.peak_memory / MEBI:.2f} MiB, '
    f'compiled in {found.compile_seconds:.1f} s, '
    f'{found.decode_tokens_per_second:,.0f} tokens/s greedy'
  )
