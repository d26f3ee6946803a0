"""Do positions matter, and how should they join the embeddings?

On `reverse`, whose answer is nothing but order: the positive control. The
negative control is the same study on `sort`, whose answer does not depend on
the order of the source:

  python -m experiments.ablate --study=positions --workdir=runs/positions
  python -m experiments.ablate --study=positions --workdir=runs/sorted \\
    --data.source=task:sort

Expected on reverse: without positions the decoder, which still knows how many
symbols it has said by its causal mask, does not know where in the source it
is. A projection of [x; p] starts as the sum and may learn another; a random
one and x + p W are its matched controls. Each arm chooses its learning rate.

Cost: 54 runs of 500 steps to choose learning rates, 120 to judge; by estimate
twenty-five minutes on two cores.
"""

from experiments.small import SMALL, TUNING
from transformer_jax.ablation.study import Primary, Study, arms, axis, chain

STUDY = Study(
  name='positions',
  question='Are positions needed, and is adding them better than '
  'concatenating them?',
  paper='3.5: sines are summed with the embeddings; Table 3 (E): learned '
  'positions give nearly identical results',
  axes=('model.position', 'model.position_join', 'model.max_positions'),
  baseline=SMALL,
  arms=arms(
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
      'position_join=concat_random': 'control',
      'position_join=add_mapped': 'control',
    },
  ),
  primary=(
    Primary('position=none', 'baseline', margin=0.05),
    Primary('position=learned max_positions=256', 'baseline', margin=0.05),
    Primary('position_join=concat_project', 'baseline', margin=0.05),
  ),
  seeds=10,
  looks=(5, 10),
  tuning=TUNING,
  threshold=1.0,
)
