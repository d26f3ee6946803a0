"""Every row of the paper's Table 3, at a size that two cores can afford.

The paper trained each row once; most gaps of its rows A, C, D and E are smaller
than what another seed changes elsewhere. Here each row is the base model of
this study changed by the same ratio (half of the heads, a third of the
layers), over seeds, and the report holds the paper's difference to its base
row against where one more run of ours would fall.

Expected: fewer layers and narrower ones lose, the rest lies within its seeds.
Attention that does not look at content is the known-bad arm.

Cost: 105 runs of 1,000 steps, eighteen programs.

What it cannot say: that a row would behave so at the paper's size, on its data
and for its 100,000 steps. For that take the presets `table3_*`.

  python -m experiments.ablate --study=table3 --workdir=runs/table3 \\
    --data.source=files:multi30k/tok --data.pair=en-de \\
    --data.validation_split=val --data.test_split=test_2016_flickr \\
    --data.text=pretokenized --data.vocabulary_size=4000
"""

from experiments.small import SMALL
from transformer_jax.ablation.study import Arm, Overrides, Primary, Study
from transformer_jax.ablation.table3 import ALL, Value
from transformer_jax.config import Config
from transformer_jax.fields import flatten

# The base model over 8: d_model 64 for 512, three layers for six.
BASE: dict[str, Value] = {
  'model.layers': 3,
  'model.d_model': 64,
  'model.d_ff': 256,
  'model.heads': 8,
  'model.d_k': 8,
  'model.d_v': 8,
}


def scaled(overrides: Overrides) -> dict[str, Value]:
  """A row of the paper's base model as one of BASE: sizes by their ratio.

  >>> scaled({'model.layers': 2, 'model.dropout': 0.2})
  {'model.layers': 1, 'model.dropout': 0.2}
  """
  paper = flatten(Config())
  found: dict[str, Value] = {}
  for path, value in overrides.items():
    own = BASE.get(path)
    if isinstance(own, int) and isinstance(value, int):
      found[path] = own * value // int(paper[path])
    else:
      found[path] = value
  return found


ROWS = {name: scaled(row.overrides) for name, row in ALL.items()}

STUDY = Study(
  name='table3',
  question='Do the rows of Table 3 differ by more than their seeds do?',
  paper='Table 3: one run a row, without error bars',
  axes=(
    *sorted({path for row in ROWS.values() for path in row}),
    'model.score',
  ),
  baseline={
    **SMALL,
    **BASE,
    'model.dropout': 0.1,
    'optim.label_smoothing': 0.1,
    'optim.learning_rate': 2e-3,
    'optim.warmup_steps': 400,
    'data.task_min_length': 4,
    'data.task_max_length': 16,
    'data.max_length': 64,
    'data.max_tokens': 2048,
    'data.buckets': 6,
    'train.steps': 1000,
    'train.evaluate_every': 200,
    'train.save_every': 500,
  },
  arms=(
    Arm('base', {}),
    *(Arm(name, overrides) for name, overrides in ROWS.items()),
    Arm('uniform', {'model.score': 'uniform'}, 'known_bad'),
  ),
  primary=(
    Primary('a_h1', 'base', margin=0.02),
    Primary('b_dk16', 'base', margin=0.02),
    Primary('d_dropout0', 'base', margin=0.02),
    Primary('e_learned', 'base', margin=0.02),
  ),
  seeds=5,
  looks=(5,),
)
