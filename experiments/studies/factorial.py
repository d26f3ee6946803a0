"""Is it the scale, or the initial values, or the learning rate?

Dividing scores by sqrt(d_k) does three things at once: scores start smaller,
gradients of W_Q are smaller, and Adam, which steps by sign, moves the scores
more slowly. Folding the factor into the initial values of W_Q takes the first
alone; folding it into W_Q's learning rate and Adam's epsilon takes the others;
both together are the paper's model again, number for number. Crossed with how
queries and keys start: with fan-in values q k has the variance d_k of footnote
4; with Glorot values of a wide projection it is smaller, so less is left to be
scaled.

Expected: both together are level with the paper's to the last digit of a run;
either alone lies between it and no factor at all. Each arm chooses its learning
rate and warmup as well: then what is left is no matter of one rate for all
parameters together.

Scores that are the same for all keys are the known-bad arm.

Cost: 198 runs of 120 steps to choose learning rates, 220 to judge, nine
programs; by estimate ten minutes on two quiet cores.

  python -m experiments.ablate --study=factorial --workdir=runs/factorial
"""

from experiments.small import SMALL, TUNING_WARMUP
from transformer_jax.ablation.study import (
  Arm,
  Primary,
  Study,
  arms,
  axis,
  name_of,
  product,
)

GRID = product(
  axis('model.query_key_init', 'fan_in', 'fan_avg'),
  axis(
    'model.scale',
    'rsqrt_d_k',
    'none',
    'folded_init',
    'folded_rate',
    'folded_init_rate',
  ),
)
SCALED, UNSCALED, START, RATE, SAME = (name_of(one) for one in GRID[:5])

STUDY = Study(
  name='factorial',
  question='Does the factor help, or the initial values and the learning '
  'rate that come with it?',
  paper='3.2.1, footnote 4; T5 folds the factor into the initialisation',
  axes=('model.query_key_init', 'model.scale', 'model.score'),
  # A power of four: its root is exact in binary.
  baseline={**SMALL, 'model.d_k': 256},
  arms=(
    *arms(GRID, roles={SAME: 'control'}),
    Arm('uniform', {'model.score': 'uniform'}, 'known_bad'),
  ),
  primary=(
    Primary(UNSCALED, SCALED, margin=0.05),
    Primary(START, SCALED, margin=0.05),
    Primary(RATE, SCALED, margin=0.05),
    Primary(SAME, SCALED, margin=0.05),
  ),
  seeds=10,
  looks=(5, 10),
  tuning=TUNING_WARMUP,
  threshold=1.0,
)
