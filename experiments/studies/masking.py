"""What breaks when the decoder may see the future while it trains?

Its loss does not: with the answer before its eyes it falls to nothing, which
is why a table of losses would call the leak an improvement. What breaks is
generation, where the future is not there yet. Expected: the better loss, and
nothing generated right. So this study is scored by
`generated`: the share of held-out sequences that greedy decoding gets right to
the last symbol.

The task is `sort`, where the next symbol is hard to tell from the source and
easy to read off the future. On `reverse` the source is as easy as the leak:
there two of three runs (seeds 0 to 2, 400 steps) never came to use it.

Each arm chooses its learning rate, by the loss as everywhere: who does not know
of the leak would choose so. A model that hardly trained, as its warmup is a
thousand times as long as its run, is the known-bad arm: uniform attention is
good enough for sort, whose answer is a matter of counting.

Found, tuned: the unmasked model's loss is lower by 0.06 (0.03 to 0.09), not yet
nothing after 300 steps, and 0.5 % of what it generates is right, against 48 %
of the masked model's (-0.48, -0.52 to -0.43). By the shared recipe alike.

Cost: 27 runs of 300 steps to choose learning rates (15 more at their edges),
60 to judge; 22 minutes on two cores of an AMD EPYC with much other work.

  python -m experiments.ablate --study=masking --workdir=runs/masking
"""

from experiments.small import SMALL, TUNING
from transformer_jax.ablation.study import Arm, Primary, Study

STUDY = Study(
  name='masking',
  question='Why mask the future in training? What breaks otherwise?',
  paper='3.2.3: leftward information flow is prevented, to preserve the '
  'auto-regressive property',
  axes=('model.causal_mask', 'optim.warmup_steps'),
  # Early enough that the baseline still has something to learn.
  baseline={**SMALL, 'data.source': 'task:sort', 'train.steps': 300},
  arms=(
    Arm('masked', {}),
    Arm('unmasked', {'model.causal_mask': 'absent'}),
    Arm('hardly trained', {'optim.warmup_steps': 300_000}, 'known_bad'),
  ),
  primary=(Primary('unmasked', 'masked', 'generated', 'higher', margin=0.02),),
  seeds=10,
  looks=(5, 10),
  tuning=TUNING,
  free_running=('generated',),
)
