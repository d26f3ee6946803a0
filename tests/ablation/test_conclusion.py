"""What is concluded: runs that never got there, studies that are sensitive."""

import itertools

from tests.ablation.small import STUDY, changed
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import checks, conclusion
from transformer_jax.ablation import results as results_lib
from transformer_jax.ablation.study import Arm, Primary


def test_a_run_that_never_got_there_is_censored_at_the_planned_last_step():
  study = checks.with_overrides(STUDY, {'train.steps': 100})
  cell = cells_lib.cell(study, 'baseline', seed=0, phase='paper')
  lines = [
    dict(step=step, split='validation', loss=loss)
    for step, loss in ((10, 3.0), (20, 2.0))
  ]
  early = results_lib.Result(cell, dict(status='diverged'), tuple(lines))
  at_once = results_lib.Result(cell, dict(status='diverged'), ())
  found = conclusion.crossing([early, at_once], 1.0)
  assert found.steps_R.tolist() == [100, 100]
  assert not found.reached_R.any()
  found = conclusion.crossing([early, at_once], 2.5)
  assert found.steps_R.tolist() == [20, 100]


def test_steps_to_a_threshold_that_no_run_reached_are_left_out():
  study = changed(threshold=1.0, seeds=3, looks=(3,))

  def metrics(*, reached):
    results = []
    for seed, arm in itertools.product(range(3), study.arms):
      cell = cells_lib.cell(study, arm.name, seed=seed, phase='paper')
      found = dict(loss=1.2 + 0.1 * seed, accuracy=0.5, exact=0.5)
      body = dict(status='finished', metrics=found | dict(unigram_loss=3))
      loss = 0.9 if (seed, arm) == (reached, study.arms[1]) else 1.1
      line = dict(step=10, split='validation', loss=loss)
      results.append(results_lib.Result(cell, body, (line,)))
    return [row['metric'] for row in conclusion.summary(study, results)]

  assert metrics(reached=None) == ['loss', 'accuracy', 'exact']
  assert metrics(reached=1) == [*metrics(reached=None), 'steps_to_threshold']


def test_a_known_bad_arm_is_held_to_what_is_judged():
  """Its loss is far away, what it writes is as good: no sensitive study."""
  study = changed(
    free_running=('generated',),
    arms=(*STUDY.arms, Arm('bad', {'model.d_k': 8}, 'known_bad')),
    primary=(Primary('scale=none', 'baseline', 'generated', 'higher', 0.02),),
    seeds=5,
    looks=(5,),
  )
  # Generated right, loss: of the baseline 0.5 and 1.
  made = {'baseline': (0.5, 1.0), 'scale=none': (0.1, 1.0), 'bad': (0.5, 9.0)}

  def verdict(**changes):
    results = []
    for seed in range(5):
      for arm, (right, loss) in {**made, **changes}.items():
        cell = cells_lib.cell(study, arm, seed=seed, phase='paper')
        metrics = dict(loss=loss, accuracy=0.5, exact=0.5, generated=right)
        metrics = {x: v + 0.01 * seed**0.5 for x, v in metrics.items()}
        body = dict(status='finished', metrics=metrics | dict(unigram_loss=3))
        results.append(results_lib.Result(cell, body, ()))
    return conclusion.summary(study, results)[0]['verdict']

  assert verdict() == 'not sensitive'
  assert verdict(bad=(0.05, 1.0)) in ('worse', 'not enough evidence')
