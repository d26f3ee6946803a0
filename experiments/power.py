"""How many seeds a question needs, from the spread that a pilot has shown.

  python -m experiments.power --workdir=runs/pilot [--difference=0.05]

Reads a finished study. The spread of a few seeds is itself uncertain, so its
upper limit (80 % confidence) is planned with. Without a difference each
comparison's margin is taken, where it has one.
"""

import types

import numpy as np

from transformer_jax import flags
from transformer_jax.config import Config, ConfigError

EXTRA = (
  flags.Flag('workdir', str, '', 'folder of the pilot', required=True),
  flags.Flag('difference', float, 0.0, "to be found, in the metric's unit"),
)


def main(config: Config, options: types.SimpleNamespace) -> None:
  del config
  from transformer_jax.ablation import conclusion, power
  from transformer_jax.ablation import folder as folder_lib

  if options.difference < 0:
    raise ConfigError(f'--difference={options.difference} must be positive')
  study = folder_lib.read_study(options.workdir)
  results = folder_lib.read_results(options.workdir, study)
  runs = conclusion.Runs(results, 'paper')
  print('comparison: spread of pairs, at most; found by now; seeds needed')
  for one in study.primary:
    seeds = runs.seeds(one.variant, one.baseline)
    if one.metric == 'steps_to_threshold' or len(seeds) < power.FEWEST:
      print(
        f'{one.variant} against {one.baseline}: {len(seeds)} seeds or '
        'censored times; no spread to plan with'
      )
      continue
    difference_R = conclusion.values(
      runs.of(one.variant, seeds), one.metric
    ) - conclusion.values(runs.of(one.baseline, seeds), one.metric)
    difference_R = difference_R[np.isfinite(difference_R)]
    print(plan(one, difference_R, options.difference, len(study.primary)))


def plan(one, difference_R, difference: float, family: int) -> str:
  """One line for a comparison."""
  from transformer_jax.ablation import power

  name = f'{one.variant} against {one.baseline} ({one.metric})'
  spread = float(difference_R.std(ddof=1)) if len(difference_R) > 1 else 0.0
  if spread == 0:
    return f'{name}: no spread at all in {len(difference_R)} pairs'
  most = power.upper_spread(spread, seeds=len(difference_R))
  level = 0.05 / family
  smallest = power.minimum_detectable(
    spread=spread, seeds=len(difference_R), alpha=level
  )
  needed = None
  if difference:
    needed = power.seeds_for_difference(difference, spread=most, alpha=level)
    what = f'a difference of {difference:g}'
  elif one.margin is not None:
    needed = power.seeds_for_margin(one.margin, spread=most, alpha=level)
    what = f'the margin {one.margin:g}'
  else:
    return (
      f'{name}: {spread:.3g}, {most:.3g}; {smallest:.3g}; give --difference'
    )
  seeds = f'over {power.MOST:,}' if needed is None else f'{needed}'
  return f'{name}: {spread:.3g}, {most:.3g}; {smallest:.3g}; {seeds} for {what}'


if __name__ == '__main__':
  flags.run(main, extra=EXTRA)
