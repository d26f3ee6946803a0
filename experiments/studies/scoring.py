"""Which function says how well a key answers a query.

Every score of the config at one width, and `uniform`, which does not look at
all and must be worse: the known-bad arm. The factor belongs to products, whose
variance grows with d_k: additive and cosine have none. Expected: dot, general
and additive level; cosine, whose scores lie within one, too flat; uniform at
the loss of a model that cannot tell positions apart. A matrix in each head
makes general 5 % larger: its control is the baseline with a wider feed-forward.
Each arm chooses its learning rate and warmup.

Found with ten seeds, tuned: uniform is worse than dot (+1.56, +1.44 to +1.68),
cosine too (+0.90, +0.78 to +1.02), and additive (+0.60, +0.29 to +0.92), which
was expected to be level; general is not told apart (+0.01, -0.09 to +0.11).

Cost: 108 runs of 120 steps to choose learning rates (72 more at their edges),
120 to judge; three and a half minutes with --workers=2 on two cores of an AMD
EPYC.

  python -m experiments.ablate --study=scoring --workdir=runs/scoring
"""

from experiments.small import SMALL, TUNING_WARMUP
from transformer_jax.ablation.study import (
  Arm,
  Primary,
  Study,
  arms,
  axis,
  chain,
  product,
)

STUDY = Study(
  name='scoring',
  question='Is any similarity function good? Does attention need content?',
  paper='3.2.1: additive and dot-product attention are similar in complexity; '
  'Table 3 (B): reducing d_k hurts, "a more sophisticated compatibility '
  'function than dot product may be beneficial"',
  axes=('model.score', 'model.scale', 'model.d_ff'),
  baseline=SMALL,
  arms=(
    *arms(
      chain(
        [{}],
        product(
          axis('model.score', 'additive', 'cosine'), axis('model.scale', 'none')
        ),
        axis('model.score', 'general', 'uniform'),
      ),
      roles={'score=uniform': 'known_bad'},
    ),
    # As `ablation.matched` finds it.
    Arm('as large as score=general', {'model.d_ff': 70}, 'control'),
  ),
  primary=(
    Primary('score=additive scale=none', 'baseline', margin=0.05),
    Primary('score=general', 'baseline', margin=0.05),
    Primary('score=cosine scale=none', 'baseline', margin=0.05),
    Primary('score=uniform', 'baseline', margin=0.05),
  ),
  seeds=10,
  looks=(5, 10),
  tuning=TUNING_WARMUP,
  threshold=1.0,
)
