"""Which function says how well a key answers a query.

Every score of the config at one width, and `uniform`, which does not look at
all and must be worse: the known-bad arm. Expected: dot, general and additive
level; cosine, whose scores lie within one, too flat; uniform at the loss of a
model that cannot tell positions apart. A matrix in each
head makes general 5 % larger: its control is the baseline with a wider
feed-forward. Each arm chooses its learning rate.

Cost: 54 runs of 120 steps to choose learning rates, 120 to judge; by estimate
twenty minutes on two cores.

  python -m experiments.ablate --study=scoring --workdir=runs/scoring
"""

from experiments.small import SMALL, TUNING
from transformer_jax.ablation.study import (
  Arm,
  Primary,
  Study,
  arms,
  axis,
  chain,
)

STUDY = Study(
  name='scoring',
  question='Is any similarity function good? Does attention need content?',
  paper='3.2.1: additive and dot-product attention are similar in complexity; '
  'Table 3 (B): reducing d_k hurts, "a more sophisticated compatibility '
  'function than dot product may be beneficial"',
  axes=('model.score', 'model.d_ff'),
  baseline=SMALL,
  arms=(
    *arms(
      chain(
        [{}],
        axis('model.score', 'additive', 'general', 'cosine', 'uniform'),
      ),
      roles={'score=uniform': 'known_bad'},
    ),
    # As `experiments.matched` finds it.
    Arm('as large as score=general', {'model.d_ff': 70}, 'control'),
  ),
  primary=(
    Primary('score=additive', 'baseline', margin=0.05),
    Primary('score=general', 'baseline', margin=0.05),
    Primary('score=cosine', 'baseline', margin=0.05),
    Primary('score=uniform', 'baseline', margin=0.05),
  ),
  seeds=10,
  looks=(5, 10),
  tuning=TUNING,
  threshold=1.0,
)
