"""Do positions matter, and how should they join the embeddings?

On `reverse`, whose answer is nothing but order: the positive control. The
negative control is the same study on `sort`, whose answer does not depend on
the order of the source:

  python -m experiments.ablate --study=positions --workdir=runs/positions
  python -m experiments.ablate --study=positions --workdir=runs/sorted \\
    --data.source=task:sort

On reverse the arm without positions is the known-bad one. On sort it should
lose nothing, and the study then says that it is not sensitive: read its
intervals there.

Expected on reverse: without positions the decoder, which still knows how many
symbols it has said by its causal mask, does not know where in the source it
is. A projection of [x; p] starts as the sum and may learn another. Its controls
are the same one with a random start; x + p W, which maps positions alone and is
a tenth smaller; and the baseline with a feed-forward so wide that the models
are equally large. The learned tables double the model, and 9 of their 256 rows
are read: their control says what the baseline does with as many numbers. A
table of the report tells how well a linear map finds token and position in what
the first layer reads. Each arm chooses its learning rate.

Found on reverse, tuned: no positions +1.98 (+1.84 to +2.11); learned ones +1.23
(+0.92 to +1.50): in 120 steps a table drawn at random is not yet as good as the
sinusoid (whether it ever is, a longer run would say); concatenated better,
-0.21 (-0.36 to -0.06), and than a baseline as large, -0.14 (-0.28 to -0.02).
By the shared recipe +0.73, +0.30, -0.71 and -0.61.

Cost: 81 runs of 120 steps to choose learning rates, 180 to judge; three minutes
and a half with --workers=2 on two cores of an AMD EPYC.
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

LEARNED = 'position=learned max_positions=256'
PROJECTED = 'position_join=concat_project'

STUDY = Study(
  name='positions',
  question='Are positions needed, and is adding them better than '
  'concatenating them?',
  paper='3.5: sines are summed with the embeddings; Table 3 (E): learned '
  'positions give nearly identical results',
  axes=(
    'model.position',
    'model.position_join',
    'model.max_positions',
    'model.d_ff',
  ),
  baseline=SMALL,
  arms=(
    *arms(
      chain(
        [{}],
        [{'model.position': 'none'}],
        [{'model.position': 'learned', 'model.max_positions': 256}],
        axis(
          'model.position_join',
          'concat_project',
          'concat_random',
          'add_mapped',
        ),
      ),
      roles={
        'position=none': 'known_bad',
        'position_join=concat_random': 'control',
        'position_join=add_mapped': 'control',
      },
    ),
    # As `ablation.matched` finds them.
    Arm(f'as large as {PROJECTED}', {'model.d_ff': 96}, 'control'),
    Arm('as large as position_join=add_mapped', {'model.d_ff': 80}, 'control'),
    Arm(f'as large as {LEARNED}', {'model.d_ff': 190}, 'control'),
  ),
  primary=(
    Primary('position=none', 'baseline', margin=0.05),
    Primary(LEARNED, 'baseline', margin=0.05),
    Primary(PROJECTED, 'baseline', margin=0.05),
    Primary(PROJECTED, f'as large as {PROJECTED}', margin=0.05),
  ),
  seeds=10,
  looks=(5, 10),
  views=('places',),
  tuning=TUNING,
  threshold=1.0,
)
