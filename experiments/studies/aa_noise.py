"""The floor of noise: other initial values and dropout, the same data.

Two arms that differ in `train.noise_seed` only, so nothing is better or worse.
Expected: an interval around zero and no verdict but `not enough evidence`. How
wide it is says what this many seeds can show at all.

Found: +0.12 (-0.18 to +0.40), not enough evidence. Runs that share nothing but
their data need a difference of 0.41 to be told apart by ten seeds; arms that
start alike are told apart by less.

Cost: a minute on two cores of an AMD EPYC with much other work on them.

  python -m experiments.ablate --study=aa_noise --workdir=runs/aa_noise
"""

from experiments.small import SMALL
from transformer_jax.ablation.study import Arm, Primary, Study

STUDY = Study(
  name='aa_noise',
  question='How far apart are runs that differ in nothing but chance?',
  paper='not asked there',
  axes=('train.noise_seed',),
  baseline=SMALL,
  arms=(Arm('one', {}), Arm('other', {'train.noise_seed': 1})),
  primary=(Primary('other', 'one'),),
  seeds=10,
  looks=(10,),
  threshold=1.0,
)
