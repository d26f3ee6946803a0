"""The same run twice: whatever differs is the laboratory's own fault.

Two arms of one config. Expected: every difference is exactly zero, on a CPU
bit for bit, and no verdict. Cost: under a minute on two cores.

  python -m experiments.ablate --study=aa --workdir=runs/aa
"""

from experiments.small import SMALL
from transformer_jax.ablation.study import Arm, Primary, Study

STUDY = Study(
  name='aa',
  question='Is a run a function of its config?',
  paper='not asked there',
  axes=(),
  baseline=SMALL,
  arms=(Arm('one', {}), Arm('twin', {})),
  primary=(Primary('twin', 'one'),),
  seeds=5,
  looks=(5,),
)
