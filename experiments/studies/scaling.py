"""Which factor on the scores, at which width of queries and keys.

The grid d_k x {1/sqrt(d_k), none, 1/d_k, additive}. Expected: at d_k = 16 the
factor hardly matters; the wider the keys, the more a dot product without one
loses, while 1/d_k makes the softmax start too flat. Additive attention is
judged where it is said to win: at large d_k against the unscaled product. Its
scores have a vector of their own, 1.2 % of that model: its control is the
paper's product with a feed-forward as much wider.

A factor on the scores is one on the gradients of queries and keys as well, so
each arm chooses its learning rate and warmup, and the second verdict is the one
to read.

Scores that are the same for all keys are the known-bad arm: no learning rate
mends them.

Cost: 252 runs of 120 steps to choose learning rates, 280 to judge; by estimate
ten minutes on two quiet cores. Additive at d_k = 256 is the dearest arm.

  python -m experiments.ablate --study=scaling --workdir=runs/scaling
"""

from experiments.small import SMALL, TUNING_WARMUP
from transformer_jax.ablation.study import (
  PROBES,
  Arm,
  Primary,
  Study,
  arms,
  axis,
  chain,
  name_of,
  product,
)

WIDTHS = (16, 64, 256)
PARTS = chain(
  axis('model.scale', 'rsqrt_d_k', 'none', 'inverse_d_k'),
  [{'model.score': 'additive', 'model.scale': 'none'}],
)
GRID = product(axis('model.d_k', *reversed(WIDTHS)), PARTS)
SCALED, UNSCALED, INVERSE, ADDITIVE = (name_of(one) for one in GRID[:4])
NARROW = [name_of(one) for one in GRID if one['model.d_k'] == WIDTHS[0]]

STUDY = Study(
  name='scaling',
  question='Why divide by sqrt(d_k), and not by d_k?',
  paper='3.2.1 and footnote 4; Britz et al. 2017: additive is ahead of the '
  'unscaled product for large d_k, level for small ones',
  axes=('model.d_k', 'model.scale', 'model.score', 'model.d_ff'),
  baseline=SMALL,
  arms=(
    *arms(GRID),
    # As `ablation.matched` finds it.
    Arm(f'as large as {ADDITIVE}', {**GRID[0], 'model.d_ff': 70}, 'control'),
    Arm(
      'uniform',
      {'model.d_k': WIDTHS[-1], 'model.score': 'uniform'},
      'known_bad',
    ),
  ),
  primary=(
    Primary(UNSCALED, SCALED, margin=0.05),
    Primary(INVERSE, SCALED, margin=0.05),
    Primary(ADDITIVE, UNSCALED, margin=0.05),
    Primary(NARROW[1], NARROW[0], margin=0.05),
  ),
  seeds=10,
  looks=(5, 10),
  tuning=TUNING_WARMUP,
  probes=PROBES,
  threshold=1.0,
)
