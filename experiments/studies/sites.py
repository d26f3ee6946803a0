"""At which attention is the scale needed?

The factor is taken away at one site at a time: the encoder's self-attention,
the decoder's, the attention from decoder to encoder; and at all three, the
known-bad arm. A traced number each, so that all arms are one program. Expected
on `reverse`, whose answer comes through the attention to the encoder: that
site loses most. Each arm chooses its learning rate and warmup, the longer one
nearly as long as the run.

Cost: 90 runs of 120 steps to choose learning rates, 100 to judge, one program;
by estimate four minutes on two cores.

  python -m experiments.ablate --study=sites --workdir=runs/sites
"""

from experiments.small import SMALL
from transformer_jax.ablation.study import (
  PROBES,
  Arm,
  LearningRates,
  Primary,
  Study,
)

STUDY = Study(
  name='sites',
  question='Is the scale needed in each of the three attentions?',
  paper='3.2.1 scales all of them; 3.2.3 lists the three',
  axes=(
    'model.scale',
    'model.scale_encoder_self',
    'model.scale_decoder_self',
    'model.scale_cross',
  ),
  baseline={
    **SMALL,
    'model.d_k': 256,
    'optim.learning_rate': 8e-3,
  },
  arms=(
    Arm('scaled', {}),
    Arm('encoder unscaled', {'model.scale_encoder_self': 'none'}),
    Arm('decoder unscaled', {'model.scale_decoder_self': 'none'}),
    Arm('cross unscaled', {'model.scale_cross': 'none'}),
    Arm('all unscaled', {'model.scale': 'none'}, 'known_bad'),
  ),
  primary=(
    Primary('encoder unscaled', 'scaled', margin=0.05),
    Primary('decoder unscaled', 'scaled', margin=0.05),
    Primary('cross unscaled', 'scaled', margin=0.05),
  ),
  seeds=10,
  looks=(10,),
  tuning=LearningRates(
    rates=(4e-3, 8e-3, 16e-3), warmups=(20, 100), seeds=(100, 101, 102)
  ),
  probes=PROBES,
  threshold=1.0,
)
