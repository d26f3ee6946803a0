"""A declaration that tests change as they need it."""

import dataclasses

from transformer_jax.ablation.study import LearningRates, Primary, Study, arms

STUDY = Study(
  name='small',
  question='Does it matter?',
  paper='3.2.1',
  axes=('model.scale', 'model.d_k'),
  baseline={'model.d_k': 16},
  arms=arms([{}, {'model.scale': 'none'}], roles={'scale=none': 'known_bad'}),
  primary=(Primary('scale=none', 'baseline', margin=0.1),),
  seeds=4,
  looks=(2, 4),
  tuning=LearningRates((1.0, 2.0), (10,), (100, 101, 102)),
)


def changed(**fields) -> Study:
  return dataclasses.replace(STUDY, **fields)
