"""Every named choice of the model, one at a time, against the paper's model.

A map, not an answer: four comparisons are declared as primary, all others are
intervals without a verdict. Expected: no residual sum and no content (uniform)
lose most, most others little. Where a choice needs company (a narrower
embedding cannot be tied, additive and cosine go without the factor on products)
it is given, and the name says so. At heads d_k = d_model the recipe, fan_in and
fan_avg are one: fan_in stands beside d_k=8, and fan_avg beside
initialization=fairseq. Each arm chooses its learning rate and warmup, as scale,
norm and residual want others. Beside each choice that changes the number of
parameters stands the baseline with as many, by the width of its feed-forward.

Cost: 882 runs of 120 steps to choose learning rates, 490 to judge, and 47
programs to compile; by estimate forty minutes on two quiet cores.

  python -m experiments.ablate --study=one_factor --workdir=runs/one_factor
"""

from experiments.small import SMALL, TUNING_WARMUP
from transformer_jax.ablation.study import (
  Arm,
  Primary,
  Study,
  arms,
  chain,
  one_factor,
)

AXES = (
  'model.score',
  'model.scale',
  'model.query_key_init',
  'model.head_init',
  'model.projections',
  'model.output_projection',
  'model.causal_mask',
  'model.norm',
  'model.residual',
  'model.norm_order',
  'model.activation',
  'model.position',
  'model.position_join',
  'model.tie',
  'model.embedding_scale',
  'model.initialization',
)
NEEDS = {
  'model.score=additive': {'model.scale': 'none'},
  'model.score=cosine': {'model.scale': 'none'},
  'model.position_join=concat_narrow': {
    'model.tie': 'none',
    'model.d_position': 8,
  },
  'model.query_key_init=fan_in': {'model.d_k': 8},
  'model.query_key_init=fan_avg': {'model.initialization': 'fairseq'},
}
BASELINE = {
  **SMALL,
  'model.heads': 2,
  'model.d_k': 16,
  'model.d_v': 16,
  'model.max_positions': 256,
}

# The baseline in the size of each choice that has another, as
# `ablation.matched` finds it: one for all that save a projection, one for
# both that concatenate. Attention without projections is smaller than that
# goes, and is widened instead.
WIDTHS = {
  'projections=shared_query_key': 40,
  'norm=none': 62,
  'tie=decoder': 69,
  'position_join=concat_narrow tie=none d_position=8': 71,
  'tie=none': 74,
  'score=general': 76,
  'position_join=add_mapped': 80,
  'position_join=concat_project': 96,
  'position=learned': 190,
}
CONTROLS = (
  *(
    Arm(f'as large as {name}', {'model.d_ff': width}, 'control')
    for name, width in WIDTHS.items()
  ),
  Arm(
    'projections=identity as large as baseline',
    {'model.projections': 'identity', 'model.d_ff': 135},
    'control',
  ),
)

STUDY = Study(
  name='one_factor',
  question='What does each choice of the paper do, one at a time?',
  paper='section 3, all of it',
  axes=(*AXES, 'model.d_position', 'model.d_k', 'model.d_ff'),
  baseline=BASELINE,
  arms=(
    *arms(
      chain([{}, {'model.d_k': 8}], one_factor(BASELINE, AXES, needs=NEEDS)),
      roles={'score=uniform': 'known_bad'},
    ),
    *CONTROLS,
  ),
  primary=(
    Primary('scale=none', 'baseline', margin=0.05),
    Primary('norm_order=pre', 'baseline', margin=0.05),
    Primary('position=relative', 'baseline', margin=0.05),
    Primary('residual=none', 'baseline', margin=0.05),
  ),
  seeds=5,
  looks=(5,),
  tuning=TUNING_WARMUP,
  threshold=1.0,
)
