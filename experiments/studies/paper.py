"""The three founding questions, on a task with known answers.

Eight symbols are to be said backwards by a small model (D=32, one layer, one
head). One baseline, as the paper has it: dot products over sqrt(d_k), sines
added to the embeddings, here with d_k = 256, where dot products of unit
variance have a spread of 16. Each question changes one thing of it.

Expected. Without the scale the softmax starts saturated, little gradient comes
through, and the loss stays far behind (3.2.1, footnote 4). Additive attention
has no such products and learns without a scale. Concatenating positions costs
a projection; whether it gains anything is open. Its controls are a projection
from a random start, and the baseline with a feed-forward so wide that it is as
large. Without positions the order is lost and reverse cannot be learned: the
known-bad arm, which shows that this study can see a difference at all.

What it cannot say: this is early in training, so the verdicts are about how
fast a thing is learned by a tiny model, not about where a long run ends. After
more steps most arms are at the ceiling, where nothing can be told apart.

Cost: two minutes on two cores with its learning rates committed
(`paper.tuning.json`).

  python -m experiments.ablate --study=paper --workdir=runs/paper --workers=2
"""

from experiments.small import SMALL, SOFTMAX_PROBES
from transformer_jax.ablation.study import Arm, LearningRates, Primary, Study

STUDY = Study(
  name='paper',
  question='Why divide by sqrt(d_k); does additive attention do without; '
  'should positions be added or concatenated?',
  paper='3.2.1: "for large values of d_k, the dot products grow large in '
  'magnitude, pushing the softmax function into regions where it has '
  'extremely small gradients"; 3.5: positional encodings are summed with the '
  'embeddings',
  axes=(
    'model.score',
    'model.scale',
    'model.position',
    'model.position_join',
    'model.d_ff',
  ),
  baseline={
    **SMALL,
    'model.d_k': 256,
    # Before the baseline is at its ceiling, where arms cannot be told apart.
    'train.steps': 120,
    'train.evaluate_every': 20,
    'train.log_every': 20,
  },
  arms=(
    Arm('scaled dot', {}),
    Arm('unscaled dot', {'model.scale': 'none'}),
    # Its scores' own vector makes it 1.2 % larger than the scaled product, and
    # no arm here is as large: `scaling` has that control.
    Arm('additive', {'model.score': 'additive', 'model.scale': 'none'}),
    Arm('concatenated', {'model.position_join': 'concat_project'}),
    Arm(
      'concatenated, random start',
      {'model.position_join': 'concat_random'},
      'control',
    ),
    Arm('as large as concatenated', {'model.d_ff': 96}, 'control'),
    Arm('no positions', {'model.position': 'none'}, 'known_bad'),
  ),
  primary=(
    Primary('unscaled dot', 'scaled dot', margin=0.05),
    Primary('additive', 'scaled dot', margin=0.05),
    Primary('concatenated', 'scaled dot', margin=0.05),
    Primary('no positions', 'scaled dot', margin=0.05),
  ),
  seeds=10,
  looks=(10,),
  # The shorter warmup leaves more of the 120 steps at the full rate.
  tuning=LearningRates(
    rates=(2e-3, 4e-3, 8e-3), warmups=(20, 100), seeds=(100, 101, 102)
  ),
  probes=SOFTMAX_PROBES,
  threshold=1.0,
)
