"""Why queries, keys and values are three projections.

One of them less, or none: queries and keys through one matrix make scores
symmetric (a token looks at what looks at it); keys and values through one make
what is found and what is said the same; attention on the embeddings themselves
has no parameters but W_O. Expected: `reverse` asks a position to look at
another one, so shared queries and keys cost most; shared keys and values cost
little. Of shared queries and keys the time is judged beside the loss: the steps
to a validation loss of 2.2, which nearly every run reaches under either recipe.
A smaller feed-forward would be no control for a saved matrix, so the control is
the paper's three with d_k cut to the same number of parameters. Attention
without projections is smaller than the baseline without any feed-forward, so
its control goes the other way: it gets a feed-forward that makes up for them.

Found under one recipe: attention on the embeddings is worse (+0.65, +0.50 to
+0.80), also widened (+0.47, +0.31 to +0.63), and shared keys and values too
(+0.25, +0.04 to +0.47). Tuned, attention on the embeddings is not told apart
(+0.07, -0.02 to +0.17; widened -0.08, -0.20 to +0.01): it wanted another rate.
Shared queries and keys learn later under both recipes, by 14 and 18 steps.

Each arm chooses its learning rate: 63 runs of 120 steps for that, 140 to judge.
Cost: seven programs, two minutes and a half with --workers=2 on two cores of an
AMD EPYC.

  python -m experiments.ablate --study=projections --workdir=runs/projections
"""

from experiments.small import SMALL, TUNING
from transformer_jax.ablation.study import Arm, Primary, Study

STUDY = Study(
  name='projections',
  question='Why separate matrices for queries, keys and values?',
  paper='3.2.2: queries, keys and values are projected with different, '
  'learned linear projections',
  axes=('model.projections', 'model.d_k', 'model.d_ff', 'model.score'),
  # H d_k = d_model, so that attention can read the embeddings themselves.
  baseline={**SMALL, 'model.d_k': 32, 'model.d_v': 32},
  arms=(
    Arm('separate', {}),
    Arm('shared query-key', {'model.projections': 'shared_query_key'}),
    Arm('shared key-value', {'model.projections': 'shared_key_value'}),
    Arm('identity', {'model.projections': 'identity'}),
    # One matrix of D x d_k less: two of half the width are as many numbers.
    Arm('separate, narrow', {'model.d_k': 16}, 'control'),
    # Without projections a feed-forward of the same number of parameters.
    Arm(
      'identity as large as separate',
      {'model.projections': 'identity', 'model.d_ff': 135},
      'control',
    ),
    Arm('uniform', {'model.score': 'uniform'}, 'known_bad'),
  ),
  primary=(
    Primary('shared query-key', 'separate', margin=0.05),
    Primary('shared query-key', 'separate', 'steps_to_threshold'),
    Primary('shared key-value', 'separate', margin=0.05),
    Primary('identity', 'separate', margin=0.05),
  ),
  seeds=10,
  looks=(5, 10),
  tuning=TUNING,
  threshold=2.2,
)
