"""A finished study's folder, written by code: numbers are made, not trained.

The arms, their differences and the failures are chosen so that every part of
the report has something to say.
"""

import json
import pathlib

import numpy as np

from transformer_jax.ablation import comparison, folder, stats
from transformer_jax.ablation import results as results_lib
from transformer_jax.ablation.cells import Cell, cell
from transformer_jax.ablation.declaration import declare
from transformer_jax.ablation.study import Arm, LearningRates, Primary, Study
from transformer_jax.inference import attend

STEPS = (50, 100, 200, 300, 400)
# Final loss of each arm: by the paper's recipe, tuned.
LOSS = {
  'scale=rsqrt_d_k': (0.30, 0.22),
  'scale=none': (1.35, 0.74),
  'score=additive': (0.31, 0.23),
  'scale=none d_k=16': (0.36, 0.25),
}
RATES = {name: 4e-3 / 2**i for i, name in enumerate(LOSS)}
SOURCE = ('나는', '사과', '를', '먹는다', '</s>')
TARGET = ('I', 'eat', 'an', 'apple', '</s>')


def declaration(*, extra: str = '') -> Study:
  """Four arms, or five with one of any name."""
  arms = [
    Arm('scale=rsqrt_d_k', {}),
    Arm('scale=none', {'model.scale': 'none'}, 'known_bad'),
    Arm('score=additive', {'model.score': 'additive'}),
    Arm('scale=none d_k=16', {'model.scale': 'none', 'model.d_k': 16}),
  ]
  if extra:
    arms.append(Arm(extra, {'model.scale': 'inverse_d_k'}))
  return Study(
    name='scaling',
    question='Why are dot products divided by √d_k?',
    paper='Large products push softmax where its gradient is small (3.2.1).',
    axes=('model.scale', 'model.score', 'model.d_k'),
    baseline={'model.d_k': 256, 'train.steps': STEPS[-1]},
    arms=tuple(arms),
    primary=(
      Primary('scale=none', 'scale=rsqrt_d_k'),
      Primary('score=additive', 'scale=rsqrt_d_k', margin=0.05),
    ),
    seeds=5,
    looks=(5,),
    tuning=LearningRates((1e-3, 2e-3, 4e-3), (20, 100), (100, 101, 102)),
    probes=('score_variance', 'key_gradient'),
    threshold=0.5,
    doc='Expected: scaled learns, unscaled does not. 한글 메모.',
  )


def _curve(final: float, seed: int) -> list[float]:
  """Seeds differ, and arms within a seed differ a little more."""
  shared = 0.03 * np.sin(7 * seed + np.arange(len(STEPS)))
  noise = shared * (1 + final) + 0.01 * np.cos(5 * seed + 40 * final)
  falling = final + (2.6 - final) * np.exp(-np.array(STEPS) / 90)
  return [float(value) for value in falling + noise]


def _probes(variant: str) -> dict:
  wide = 'd_k=16' not in variant
  size = (256.0 if wide else 16.0) if 'none' in variant else 1.0
  grown = [size * (1 + 0.1 * i) for i in range(len(STEPS))]
  return {
    site: {
      'step': list(STEPS),
      'score_variance': [[[v, 1.1 * v]] for v in grown],
      'entropy': [[[1.6 / (1 + v / 20), 1.5]] for v in grown],
      'key_gradient': [[[0.3, 0.2]] for _ in grown],
      'softmax_gradient': [[[0.2 / (1 + v / 9), 0.1]] for v in grown],
    }
    for site in ('encoder_self', 'decoder_self', 'cross')
  }


def _maps(place: pathlib.Path, sharpness: float) -> None:
  def weights(rows: int, columns: int) -> np.ndarray:
    far = np.abs(np.arange(rows)[:, None] - np.arange(columns)[::-1])
    heads = [np.exp(-sharpness * (h + 1) * far) for h in range(2)]
    return np.stack([[h / h.sum(-1, keepdims=True) for h in heads]])

  sizes = dict(
    encoder_self=weights(len(SOURCE), len(SOURCE)),
    decoder_self=weights(len(TARGET), len(TARGET)),
    cross=weights(len(TARGET), len(SOURCE)),
  )
  read = ['<s>', *TARGET[:-1]]
  maps = attend.Maps(list(SOURCE), list(TARGET), read, sizes)
  attend.save(maps, place / folder.MAPS)


def _write(place: pathlib.Path, study: Study, one: Cell, final: float) -> None:
  here = results_lib.begin(place, study, one)
  diverged = one.variant == 'scale=none' and one.seed == 3
  losses = _curve(final, one.seed)[: 2 if diverged else None]
  with open(here / folder.METRICS, 'w', encoding='utf-8') as file:
    for step, loss in zip(STEPS, losses, strict=False):
      line = dict(
        step=step, split='validation', loss=loss, accuracy=1 - loss / 3
      )
      file.write(json.dumps(line) + '\n')
  metrics = dict(unigram_loss=2.77, steps_to_threshold=None)
  if not diverged:
    metrics |= dict(
      loss=losses[-1],
      accuracy=1 - losses[-1] / 3,
      exact=max(0.0, 1 - losses[-1]),
    )
  if one.seed == 0:
    _maps(here, 0.2 if 'none' in one.variant else 0.8)
  slow = 2.2 if 'additive' in one.variant else 1.0
  results_lib.write_result(
    place,
    one,
    dict(
      status=results_lib.DIVERGED if diverged else results_lib.FINISHED,
      diverged_step=120 if diverged else None,
      metrics=metrics,
      parameters=167_168 + (4_096 if slow > 1 else 0),
      flops_per_token=1.1e6 * slow,
      step_seconds=0.0034 * slow,
      peak_memory=None,
      probes=_probes(one.variant),
      versions=dict(jax='0.10.2', flax='0.12.8'),
      device='cpu, 2 cores',
    ),
  )


METRICS = {'loss': 'lower', 'accuracy': 'higher', 'exact': 'higher'}


def _pairs(
  study: Study, results: list[results_lib.Result], phase: str
) -> list[comparison.Pair]:
  """Primary ones by loss, then all arms by all metrics that the runs have."""
  base = study.arms[0].name
  primary = {one.variant: one for one in study.primary}

  def values(name: str, metric: str) -> list[float]:
    cells = [r for r in results if r.cell.variant == name]
    return [
      r.body['metrics'].get(metric, np.nan)
      for r in cells
      if r.cell.phase == phase
    ]

  def diverged(name: str) -> list[bool]:
    return [
      r.diverged
      for r in results
      if (r.cell.variant, r.cell.phase) == (name, phase)
    ]

  return [
    comparison.Pair(
      arm.name,
      base,
      metric,
      values(arm.name, metric),
      values(base, metric),
      better=better,
      primary=arm.name in primary and metric == 'loss',
      margin=primary[arm.name].margin
      if arm.name in primary and metric == 'loss'
      else None,
      variant_diverged_R=diverged(arm.name),
      diverged_value=2.77 if metric == 'loss' else 0.0,
    )
    for metric, better in METRICS.items()
    for arm in study.arms[1:]
    if metric in results[0].body['metrics']
  ]


def _summary(
  study: Study, results: list[results_lib.Result], *, exploratory: bool = False
) -> list[dict]:
  rows = []
  for phase in dict.fromkeys(r.cell.phase for r in results):
    for finding in stats.conclude(_pairs(study, results, phase)):
      row = stats.as_row(finding.comparison)
      tuned = ' (tuned)' if phase == 'tuned' else ''
      rows.append(
        row
        | dict(
          variant=row['variant'] + tuned,
          baseline=row['baseline'] + tuned,
          phase=phase,
          exploratory=exploratory,
          seeds_needed=finding.seeds_needed,
          pairing=dict(statement=finding.pairing.statement),
          notes=list(finding.notes),
        )
      )
  return rows


def _finish(place: pathlib.Path, study: Study) -> None:
  found = results_lib.read_results(place, study)
  (place / folder.TABLE).write_text(results_lib.table(found), encoding='utf-8')
  folder.write_json(place / folder.SUMMARY, _summary(study, found))


def _tuned(name: str) -> dict:
  rate = RATES.get(name, 1e-3)
  near = {r: abs(np.log2(r / rate)) for r in (5e-4, 1e-3, 2e-3, 4e-3)}
  return dict(
    recipe={'optim.learning_rate': rate, 'optim.warmup_steps': 20},
    basin_octaves=2.0,
    on_edge=rate in (5e-4, 4e-3),
    grid=[
      dict(rate=r, warmup=warmup, loss=0.3 + 0.2 * far + warmup / 1e4)
      for warmup in (20, 100)
      for r, far in near.items()
    ],
  )


def make(place: pathlib.Path, *, extra: str = '') -> pathlib.Path:
  """The whole folder; `extra` names a fifth arm."""
  place.mkdir(parents=True, exist_ok=True)
  study = declaration(extra=extra)
  declare(place, study, seeds=None)
  chosen = {arm.name: _tuned(arm.name) for arm in study.arms}
  folder.write_json(place / folder.TUNING, dict(tolerance=0.02, chosen=chosen))
  for seed in range(study.seeds):
    for arm in study.arms:
      recipe, tuned = LOSS.get(arm.name, (0.5, 0.4))
      one = cell(study, arm.name, seed=seed, phase='paper')
      _write(place, study, one, recipe)
      recipes = chosen[arm.name]['recipe']
      two = cell(study, arm.name, seed=seed, phase='tuned', recipe=recipes)
      _write(place, study, two, tuned)
  _finish(place, study)
  return place


def make_bare(place: pathlib.Path, study: Study) -> pathlib.Path:
  """One number a run and nothing else, as an early study may have it."""
  declare(place, study, seeds=None)
  for seed in range(study.seeds):
    for i, arm in enumerate(study.arms):
      one = cell(study, arm.name, seed=seed, phase='paper')
      results_lib.begin(place, study, one)
      loss = 1.0 + 0.1 * i + 0.01 * ((seed * (i + 2)) % 3)
      body = dict(
        status=results_lib.FINISHED, diverged_step=None, metrics=dict(loss=loss)
      )
      results_lib.write_result(place, one, body)
  _finish(place, study)
  return place


EVIL = '<script>alert("x")</script> & | `한글` $a_b$'


def table3_study(**base) -> Study:
  return Study(
    name='table3',
    question='',
    paper='',
    axes=('model.heads', 'model.d_k', 'model.d_v', 'model.layers'),
    baseline=base,
    arms=(
      Arm('base', {}),
      Arm('one', {'model.heads': 1, 'model.d_k': 64, 'model.d_v': 64}),
      Arm('flat', {'model.layers': 1}),
      Arm('other', {'model.layers': 2}),
    ),
    primary=(),
    seeds=3,
    looks=(3,),
  )


SMALL = {
  'model.layers': 3,
  'model.d_model': 64,
  'model.heads': 8,
  'model.d_k': 8,
  'model.d_v': 8,
}
