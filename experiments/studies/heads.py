"""Why several heads: what do they see that one does not?

On the embedded Korean task, whose sentences hold pronouns that depend on a
word far away. The heads share d_model: H d_k = H d_v = 64 in every arm, so
parameters and FLOPs are equal. Judged by the loss and by `pronoun`, the share
of pronouns that greedy decoding gets right, both on the split of far ones: one
head and sixteen, each against four. Two and eight heads stand beside them with
their intervals. One of the report's tables has the pronouns by the number of
clauses between pronoun and noun; another how far apart the weights of heads
are, and what the loss becomes without a head; a third how well each head links
words with their translations.

Expected: one head loses, and most on pronouns; sixteen heads of width 4 lose
again. Each arm chooses its learning rate. It ends early, while four heads still
get pronouns wrong: it says how soon they are learned, not whether.

Heads that do not look at content are the known-bad arm. The control is four
heads that all start as the first one, W_O apart: if they differ less at the end
than those of the baseline, that owes something to where these began.

Cost: 63 runs of 300 steps to choose learning rates, 84 to judge; not measured
yet.

  python -m experiments.ablate --study=heads --workdir=runs/heads
"""

from transformer_jax.ablation.study import (
  Arm,
  LearningRates,
  Primary,
  Study,
  arms,
  axis,
  name_of,
  zipped,
)

HEADS = (4, 1, 2, 8, 16)
GRID = zipped(
  axis('model.heads', *HEADS),
  axis('model.d_k', *(64 // h for h in HEADS)),
  axis('model.d_v', *(64 // h for h in HEADS)),
)
FOUR, ONE, _, _, SIXTEEN = map(name_of, GRID)

STUDY = Study(
  name='heads',
  question='Why several heads, and how many?',
  paper='3.2.2; Table 3 (A): one head is 0.9 BLEU worse than the best, too '
  'many heads are worse again',
  axes=(
    'model.heads',
    'model.d_k',
    'model.d_v',
    'model.score',
    'model.head_init',
  ),
  baseline={
    'model.layers': 2,
    'model.d_model': 64,
    'model.d_ff': 128,
    'model.dropout': 0.1,
    'optim.schedule': 'inverse_sqrt',
    'optim.learning_rate': 3e-3,
    'optim.warmup_steps': 200,
    'data.source': 'task:korean',
    'data.pair': 'en-ko',
    'data.test_split': 'far_pronoun',
    'data.vocabulary_size': 800,
    'data.max_length': 96,
    'data.max_tokens': 1024,
    'data.buckets': 3,
    # Later four heads have every pronoun right, where no arm can be better.
    'train.steps': 300,
    'train.evaluate_every': 50,
    'train.save_every': 150,
  },
  arms=(
    *arms(GRID),
    Arm('uniform', {**GRID[0], 'model.score': 'uniform'}, 'known_bad'),
    Arm('alike', {**GRID[0], 'model.head_init': 'alike'}, 'control'),
  ),
  primary=(
    Primary(ONE, FOUR, margin=0.02),
    Primary(SIXTEEN, FOUR, margin=0.02),
    Primary(ONE, FOUR, 'pronoun', 'higher', margin=0.05),
    Primary(SIXTEEN, FOUR, 'pronoun', 'higher', margin=0.05),
  ),
  seeds=6,
  looks=(6,),
  tuning=LearningRates(
    rates=(1.5e-3, 3e-3, 6e-3), warmups=(200,), seeds=(100, 101, 102)
  ),
  free_running=('generated', 'pronoun'),
  views=('heads', 'links'),
)
