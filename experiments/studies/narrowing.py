"""A narrower embedding with the position beside it, or the sum of both?

Concatenated so that the widths sum to d_model, position and token have places
of their own and no projection is needed; but the embedding is narrower than the
output's, so they cannot share a table. All arms are untied here, or untying
would be taken for narrowing.

Expected on `reverse`: 24 of 32 dimensions are plenty for eight symbols, and 8
for as many places; the sum has to keep them apart by itself. Its control of
equal size is the sum with a narrower feed-forward. Without positions reverse
cannot be learned: the known-bad arm.

Found: under the shared recipe not enough evidence (+0.30, -0.06 to +0.61),
tuned it is better (-0.11, -0.19 to -0.02; of equal size -0.13, -0.19 to -0.07).
Without positions +1.12 (+0.81 to +1.42), tuned +1.84 (+1.74 to +1.95).

Cost: 36 runs of 120 steps to choose learning rates, 80 to judge; a minute and a
half with --workers=2 on two cores of an AMD EPYC.

  python -m experiments.ablate --study=narrowing --workdir=runs/narrowing
"""

from experiments.small import SMALL, TUNING
from transformer_jax.ablation.study import Arm, Primary, Study

NARROWED = 'position_join=concat_narrow'

STUDY = Study(
  name='narrowing',
  question='Is a position beside a narrower embedding as good as one added to '
  'it?',
  paper='3.5: positional encodings have the dimension of the embeddings, so '
  'that the two can be summed',
  axes=(
    'model.position',
    'model.position_join',
    'model.d_position',
    'model.d_ff',
  ),
  baseline={**SMALL, 'model.tie': 'none'},
  arms=(
    Arm('baseline', {}),
    Arm(
      NARROWED,
      {'model.position_join': 'concat_narrow', 'model.d_position': 8},
    ),
    Arm(f'as large as {NARROWED}', {'model.d_ff': 62}, 'control'),
    Arm('position=none', {'model.position': 'none'}, 'known_bad'),
  ),
  primary=(
    Primary(NARROWED, 'baseline', margin=0.05),
    Primary(NARROWED, f'as large as {NARROWED}', margin=0.05),
    Primary('position=none', 'baseline', margin=0.05),
  ),
  seeds=10,
  looks=(5, 10),
  views=('places',),
  tuning=TUNING,
  threshold=1.0,
)
