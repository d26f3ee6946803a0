"""Are dropout, label smoothing and warmup needed?

Asked on 2,000 pairs that are seen again and again: on unlimited data nothing
overfits, and a study of regularisation there would find that it only costs. The
rule of `reverse` alone is learned before its pairs are, so one symbol in five
of every target is drawn at random, in training and held out: these cannot be
known, only memorised. What is left of the loss where the rule is known and
nothing is memorised is 0.880 nats a token.

Expected: without dropout the held-out loss turns and rises; label smoothing
costs held-out loss where it is not needed (the loss is measured without
smoothing) and saves some where the model grows too sure. Without warmup the
rate falls as step**-0.5 from the first step on and is the baseline's from step
100 on: ten times the peak to begin with, which a model of one layer may
survive. Each arm chooses its learning rate, that one around its own and without
warmup.

Attention that does not look at content is the known-bad arm.

Found with ten seeds, in nats a token: without dropout worse, +0.054 (+0.050 to
+0.058), tuned +0.035 (+0.031 to +0.038); without smoothing equivalent, -0.009
(-0.010 to -0.007), tuned -0.006 (-0.006 to -0.004); without both worse, +0.084
(+0.053 to +0.141), tuned +0.024 (+0.017 to +0.421): at the low rate that suits
it two runs of ten had not found the rule yet. Without warmup, at the same rate
from step 100 on, worse, +1.46 (+0.92 to +1.52); at half of it equivalent,
+0.001 (+0.000 to +0.002), and the rates that will do span two octaves, not
four: what warmup gives here is room to choose the rate.

Cost: 63 runs of 2,000 steps to choose learning rates (27 more at their edges),
140 to judge, three programs: rates of dropout share one, no dropout at all is
another, and so is the known-bad arm. The last 166 runs took ten minutes with
--workers=2 on two cores of an AMD EPYC.

  python -m experiments.ablate --study=regularisation --workdir=runs/regular
"""

from experiments.small import SMALL, TUNING
from transformer_jax.ablation.study import Arm, Primary, Study

STUDY = Study(
  name='regularisation',
  question='Are dropout 0.1, label smoothing 0.1 and warmup needed?',
  paper='5.3 and 5.4; Table 3 (D): dropout is very helpful in '
  'avoiding over-fitting',
  axes=(
    'model.dropout',
    'optim.label_smoothing',
    'optim.learning_rate',
    'optim.warmup_steps',
    'model.score',
  ),
  baseline={
    **SMALL,
    'model.d_model': 64,
    'model.d_ff': 128,
    'model.dropout': 0.1,
    'optim.label_smoothing': 0.1,
    'data.task_train_size': 2000,
    'data.task_noise': 0.2,
    'train.steps': 2000,
    'train.evaluate_every': 200,
    'train.save_every': 1000,
  },
  arms=(
    Arm('both', {}),
    Arm('no dropout', {'model.dropout': 0.0}),
    Arm('dropout 0.3', {'model.dropout': 0.3}),
    Arm('no smoothing', {'optim.label_smoothing': 0.0}),
    Arm('neither', {'model.dropout': 0.0, 'optim.label_smoothing': 0.0}),
    # 4e-3 at step 100, as all others.
    Arm('no warmup', {'optim.warmup_steps': 1, 'optim.learning_rate': 4e-2}),
    Arm('uniform', {'model.score': 'uniform'}, 'known_bad'),
  ),
  primary=(
    Primary('no dropout', 'both', margin=0.02),
    Primary('no smoothing', 'both', margin=0.02),
    Primary('no warmup', 'both', margin=0.02),
    Primary('neither', 'both', margin=0.02),
  ),
  seeds=10,
  looks=(5, 10),
  tuning=TUNING,
)
