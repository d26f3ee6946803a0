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

A model that hardly trained is the known-bad arm: uniform attention is good
enough for sort, whose answer is a matter of counting.

Cost: 30 runs of 400 steps, two minutes on two cores.

  python -m experiments.ablate --study=masking --workdir=runs/masking
"""

from experiments.small import SMALL
from transformer_jax.ablation.study import Arm, Primary, Study

STUDY = Study(
  name='masking',
  question='Why mask the future in training? What breaks otherwise?',
  paper='3.2.3: leftward information flow is prevented, to preserve the '
  'auto-regressive property',
  axes=('model.causal_mask', 'optim.learning_rate'),
  # Early enough that the baseline still has something to learn.
  baseline={**SMALL, 'data.source': 'task:sort', 'train.steps': 400},
  arms=(
    Arm('masked', {}),
    Arm('unmasked', {'model.causal_mask': 'absent'}),
    Arm('hardly trained', {'optim.learning_rate': 1e-5}, 'known_bad'),
  ),
  primary=(Primary('unmasked', 'masked', 'generated', 'higher', margin=0.02),),
  seeds=10,
  looks=(5, 10),
  free_running=('generated',),
)
