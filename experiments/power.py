"""How many seeds a question needs, from the spread that a pilot has shown.

  python -m experiments.power --workdir=runs/pilot [--difference=0.05]

Reads a finished study. The spread of a few seeds is itself uncertain, so the
plan takes its upper limit (80 % confidence). Without --difference the margin of
each comparison is taken, where it has one. Where a run diverged, or an arm
falls into two groups, ranks decide and the spread is not used.
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
  from transformer_jax.ablation import conclusion, declaration
  from transformer_jax.ablation import results as results_lib
  from transformer_jax.ablation.study import label

  if options.difference < 0:
    raise ConfigError(f'--difference={options.difference} must be positive')
  study = declaration.read_study(options.workdir)
  results = results_lib.read_results(options.workdir, study)
  print('comparison: spread of pairs, at most; found by now; seeds needed')
  found = {result.cell.phase for result in results}
  for phase in ('paper', 'tuned') if 'tuned' in found else ('paper',):
    runs = conclusion.Runs(results, phase)
    for one in study.primary:
      sides = (label(arm, phase) for arm in (one.variant, one.baseline))
      name = ' against '.join(sides)
      print(f'{name} ({one.metric}): {plan(study, runs, one, options)}')


def plan(study, runs, one, options: types.SimpleNamespace) -> str:
  """What the pilot's runs say about one comparison."""
  from transformer_jax.ablation import conclusion, power

  seeds = runs.seeds(one.variant, one.baseline)
  if one.metric == 'steps_to_threshold' or len(seeds) < power.FEWEST:
    return f'{len(seeds)} seeds or censored times; no spread to plan with'
  level = 0.05 / len(study.primary)
  pair = conclusion.pair_of(study, runs, one, seeds=seeds, primary=True)
  weighed = pair.weighed(level)
  if weighed.evidence.ranked:
    sides = runs.of(one.variant, seeds), runs.of(one.baseline, seeds)
    failed = sum(a.diverged or b.diverged for a, b in zip(*sides, strict=True))
    why = f'{failed} of {len(seeds)} pairs diverged'
    if not failed:
      why = f'an arm falls into two groups in {len(seeds)} pairs'
    needed = power.seeds_for_signs(level)
    return f'{why}: ranks would decide, from {needed} seeds on'
  difference_R = weighed.variant_R - weighed.baseline_R
  return by_spread(one, difference_R, options.difference, level)


def by_spread(
  one, difference_R: np.ndarray, difference: float, level: float
) -> str:
  """Seeds at this level, where the mean decides."""
  from transformer_jax.ablation import power

  spread = float(difference_R.std(ddof=1))
  if spread == 0:
    return f'no spread at all in {len(difference_R)} pairs'
  most = power.upper_spread(spread, seeds=len(difference_R))
  smallest = power.minimum_detectable(
    spread=spread, seeds=len(difference_R), alpha=level
  )
  found = f'{spread:.3g}, {most:.3g}; {smallest:.3g}'
  needed = None
  if difference:
    needed = power.seeds_for_difference(difference, spread=most, alpha=level)
    what = f'a difference of {difference:g}'
  elif one.margin is not None:
    needed = power.seeds_for_margin(one.margin, spread=most, alpha=level)
    what = f'the margin {one.margin:g}'
  else:
    return f'{found}; give --difference'
  seeds = f'over {power.MOST:,}' if needed is None else f'{needed}'
  return f'{found}; {seeds} for {what}'


if __name__ == '__main__':
  flags.run(main, extra=EXTRA)
