"""Why the residual sum is normed, by what, and on which side.

Layer norm, root mean square, batch norm over the tokens of a batch (as some
texts have it), none; after the sum as in the paper or before the sub-layer;
and no residual sum at all. Expected: without a norm or a residual a model of
four layers trains badly or diverges (divergence counts as the unigram loss and
moves the study to ranks); batch norm couples the sentences of a batch and sees
the future through its statistics, so that its training loss flatters it.

What misleads here is the learning rate: pre-norm wants another one than
post-norm, and a shorter warmup. So the study has two warmups in its grid, and
its second verdict is the one to read.

Cost: 192 runs of 120 steps to choose learning rates, 128 to judge; by estimate
ten minutes on two quiet cores.

  python -m experiments.ablate --study=norms --workdir=runs/norms
"""

from experiments.small import SMALL
from transformer_jax.ablation.study import Arm, LearningRates, Primary, Study

STUDY = Study(
  name='norms',
  question='Why add and norm: which norm, where, and why the residual sum?',
  paper='3.1: LayerNorm(x + Sublayer(x))',
  axes=('model.norm', 'model.norm_order', 'model.residual', 'model.d_ff'),
  baseline={**SMALL, 'model.layers': 4},
  arms=(
    Arm('layer, post', {}),
    Arm('layer, pre', {'model.norm_order': 'pre'}),
    Arm('rms, post', {'model.norm': 'rms'}),
    Arm('batch, post', {'model.norm': 'batch'}),
    Arm('none', {'model.norm': 'none'}),
    Arm('no residual', {'model.residual': 'none'}, 'known_bad'),
    # As `ablation.matched` finds them: what the norms' own numbers give.
    Arm('as large as rms, post', {'model.d_ff': 63}, 'control'),
    Arm('as large as none', {'model.d_ff': 62}, 'control'),
  ),
  primary=(
    Primary('layer, pre', 'layer, post', margin=0.05),
    Primary('rms, post', 'layer, post', margin=0.05),
    Primary('batch, post', 'layer, post', margin=0.05),
    Primary('none', 'layer, post', margin=0.05),
  ),
  seeds=8,
  looks=(8,),
  tuning=LearningRates(
    rates=(1e-3, 2e-3, 4e-3, 8e-3),
    warmups=(20, 100),
    seeds=(100, 101, 102),
  ),
  threshold=1.0,
)
