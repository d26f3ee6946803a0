"""The declared studies and the program that runs them."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from experiments import ablate, power, studies
from experiments.studies import one_factor
from tests.ablation.report import study_folder
from transformer_jax import flags
from transformer_jax.ablation import (
  cells,
  checks,
  declaration,
  matched,
  report,
  runner,
)
from transformer_jax.ablation import folder as folder_lib
from transformer_jax.ablation import results as results_lib
from transformer_jax.ablation import study as study_lib
from transformer_jax.config import Config, ModelConfig
from transformer_jax.fields import FIELDS
from transformer_jax.nn import randomness
from transformer_jax.nn.transformer import initial_params
from transformer_jax.training import optim
from transformer_jax.training.state import numbers, program


def answer(capsys, *words: str) -> tuple[int, str, str]:
  """(exit code, stdout, stderr) of experiments.ablate."""
  with pytest.raises(SystemExit) as ended:
    flags.run(
      ablate.main, extra=ablate.EXTRA, base=ablate.base, arguments=words
    )
  found = capsys.readouterr()
  return int(ended.value.code or 0), found.out, found.err


@pytest.mark.parametrize('name', studies.names())
def test_study_is_valid_and_says_how_to_run_it(name):
  study = studies.load(name)
  assert study.name == name
  assert f'--study={name} --workdir=' in study.doc
  assert 'xpected' in study.doc and 'Cost' in study.doc
  assert study_lib.from_dict(study_lib.to_dict(study)) == study


# Arms of one config, or of chance alone: nothing in them can be bad.
ALIKE = {'aa', 'aa_noise'}


@pytest.mark.parametrize('name', sorted(set(studies.names()) - ALIKE))
def test_a_study_shows_that_it_can_see_a_difference(name):
  assert 'known_bad' in [arm.role for arm in studies.load(name).arms]


def of_one_step(config: Config) -> tuple:
  """What the runs that have it do alike after their initial values."""
  own = program(config)
  model = dataclasses.replace(
    own.model, query_key_init='recipe', initialization='tensor2tensor'
  )
  return dataclasses.replace(own, model=model), numbers(config)


@functools.cache
def start(model: ModelConfig) -> list[bytes]:
  draw = initial_params(model, source_vocabulary=8, target_vocabulary=8)
  params = jax.jit(draw)(randomness.seed_key(0))
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


# Those with arms of one step, whose initial values are drawn: seconds each.
DRAWN = {'factorial', 'one_factor'}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow if name in DRAWN else ())
    for name in sorted(set(studies.names()) - ALIKE)
  ],
)
def test_no_two_arms_of_a_study_are_one(name):
  """Of one step and of the same initial values, bit by bit."""
  study = studies.load(name)
  alike: dict[tuple, list[Config]] = {}
  for arm in study.arms:
    config = cells.arm_config(study, arm)
    alike.setdefault(of_one_step(config), []).append(config)
  for group in alike.values():
    # Of the program: a factor on the scores changes no initial value.
    for one, other in itertools.combinations(map(program, group), 2):
      assert start(one.model) != start(other.model), (one, other)


@pytest.mark.parametrize('name', studies.names())
def test_a_factor_on_products_is_none_of_sums_and_cosines(name):
  study = studies.load(name)
  for arm in study.arms:
    model = cells.arm_config(study, arm).model
    if model.score in ('additive', 'cosine'):
      assert model.scale == 'none', arm.name


def test_default_study_answers_the_founding_questions():
  study = studies.load(ablate.DEFAULT)
  assert study.seeds >= 5
  assert [arm.role for arm in study.arms].count('known_bad') == 1
  assert study.tuning is not None


@pytest.mark.parametrize(
  'name',
  [
    *('scaling', 'sites', 'factorial', 'norms'),
    *('scoring', 'positions', 'narrowing', 'projections', 'heads'),
    *('one_factor', 'regularisation', 'masking'),
  ],
)
def test_each_arm_chooses_its_rate_and_where_it_matters_its_warmup(name):
  study = studies.load(name)
  rates = study.tuning
  assert rates is not None and len(rates.rates) >= 3
  assert checks.doubts(study) == []
  # The shared recipe lies inside the grid.
  shared = float(study.baseline['optim.learning_rate'])
  assert min(rates.rates) < shared < max(rates.rates)
  runs = len(study.arms) * len(rates.rates) * len(rates.warmups)
  assert f'{runs * len(rates.seeds)} runs of' in study.doc
  assert f'{len(study.arms) * study.seeds * 2} to judge' in study.doc


@pytest.mark.slow
@pytest.mark.parametrize('rate', ['4e-3', '8e-3'])
def test_the_small_model_is_neither_at_chance_nor_at_its_ceiling(
  capsys, tmp_path, rate
):
  """Or its studies could not tell arms apart, under either verdict."""
  words = ['--study=aa', '--seeds=3', f'--optim.learning_rate={rate}']
  code, out, err = answer(capsys, *words, f'--workdir={tmp_path}')
  assert code == 0, err
  assert 'not sensitive' not in out
  (row,) = (
    row
    for row in results_lib.read_summary(tmp_path)
    if row['metric'] == 'accuracy'
  )
  assert 0.3 < row['mean'] < 0.97


# What the map of all choices leaves out, and why.
UNMAPPED = {
  'model.scale_encoder_self': 'asked by sites',
  'model.scale_decoder_self': 'asked by sites',
  'model.scale_cross': 'asked by sites',
  'model.position_decoder': 'position, of one side',
  'model.compute_dtype': 'how exactly, not what',
  'model.remat': 'changes nothing',
}


def test_the_map_of_all_choices_has_every_one():
  choices = {
    path
    for path, field in FIELDS.items()
    if path.startswith('model.') and field.choices
    if field.affects == 'result'
  }
  assert choices == {*one_factor.AXES, *UNMAPPED}


def test_a_map_under_one_recipe_says_which_axes_may_want_another():
  study = studies.load('one_factor')
  (line,) = checks.doubts(dataclasses.replace(study, tuning=None))
  for path in ('model.scale', 'model.norm', 'model.residual', 'norm_order'):
    assert path in line
  assert checks.doubts(studies.load('masking')) == []


def test_without_warmup_the_rate_is_the_same_once_the_others_have_warmed_up():
  study = studies.load('regularisation')
  both, without = (
    cells.arm_config(study, study_lib.find_arm(study, name)).optim
    for name in ('both', 'no warmup')
  )
  rates = [
    [
      config.learning_rate
      * float(
        optim.inverse_sqrt_schedule(step, warmup_steps=config.warmup_steps)
      )
      for step in (1, 10, 100, 2000)
    ]
    for config in (both, without)
  ]
  assert rates[0][0] < rates[0][1] < rates[0][2] > rates[0][3]
  assert rates[1][0] > rates[1][1] > rates[1][2]
  assert rates[0][2:] == pytest.approx(rates[1][2:])


def test_heads_are_judged_by_pronouns_too():
  judged = studies.load('heads').primary
  assert [one.metric for one in judged] == ['loss'] * 2 + ['pronoun'] * 2
  assert {one.variant.split()[0] for one in judged} == {'heads=1', 'heads=16'}


def test_a_study_judges_the_time_to_a_threshold_too():
  study = studies.load('projections')
  times = [one for one in study.primary if one.metric == 'steps_to_threshold']
  assert len(times) == 1 and times[0].margin is None


def test_list_and_dry_run(capsys):
  code, out, _ = answer(capsys, '--study=list')
  assert code == 0
  assert [line.split()[0] for line in out.splitlines()] == studies.names()
  code, out, _ = answer(capsys, '--study=aa', '--dry_run', '--seeds=7')
  assert code == 0
  assert '2 arms x 7 seeds: 14 cells' in out and '1 programs' in out
  assert 'cost, by its lab note: under a minute on two cores.\n' in out
  assert 'learning rates' not in out


@pytest.mark.parametrize(
  'words, cells, said',
  [
    # 7 arms, 10 seeds, two recipes, which are one for one of the arms.
    (['--study=paper'], 130, 'as committed\n'),
    # Of other configs, the committed ones do not count: 7 x 3 x 6 runs.
    (
      ['--study=paper', '--optim.label_smoothing=0.1'],
      266,
      '126 of the cells choose them',
    ),
    (['--study=sites'], 190, '90 of the cells choose them'),
    (['--study=sites', '--tune=false'], 50, ''),
  ],
)
def test_a_dry_run_counts_what_would_be_run(capsys, words, cells, said):
  code, out, _ = answer(capsys, *words, '--dry_run')
  assert code == 0
  # Both studies' runs have 120 steps.
  assert f'seeds: {cells} cells, {cells * 120:,} steps, ' in out
  assert f'learning rates: {said}' in out if said else 'rates:' not in out


@pytest.mark.parametrize(
  'words, text',
  [
    (['--study=papr'], '(did you mean paper?)'),
    (['--study=aa'], '--workdir is needed'),
    (['--study=scaling', '--model.d_k=8', '--dry_run'], 'd_k is an axis'),
    (['--study=aa', '--train.seed=8', '--dry_run'], "the study's; see --seeds"),
    (['--study=aa', '--workdir=w', '--shard=2/2'], '--shard=2/2 is not i/n'),
    (['--study=aa', '--workdir=w', '--shard=x'], '--shard=x is not i/n'),
    (
      ['--study=aa', '--workdir=w', '--shard=0/2', '--workers=2'],
      'leave out --shard',
    ),
    (['--study=paper', '--dry_run', '--seeds=101'], 'seeds 100 are used for'),
    (['--study=aa', '--threshold=-1', '--dry_run'], '=-1.0 must be positive'),
    (['--study=aa', '--decode.beam_size=2', '--dry_run'], 'decoded greedily'),
    (['--study=aa', '--train.keep_latest=2', '--dry_run'], 'one checkpoint'),
    (['--study=aa', '--train.keep_best=2', '--dry_run'], 'one checkpoint'),
    (['--study=aa', '--train.keep_every=2', '--dry_run'], 'one checkpoint'),
    (['--study=aa', '--train.best_metric=loss', '--dry_run'], 'last step'),
    (['--study=aa', '--train.max_skipped_steps=1', '--dry_run'], 'ends a run'),
    (['--study=aa', '--train.step_timeout_seconds=9', '--dry_run'], 'watches'),
    (['--study=aa', '--train.patience=1', '--dry_run'], 'different steps'),
  ],
)
def test_bad_words_are_answered_in_one_line(capsys, words, text):
  code, _, err = answer(capsys, *words)
  assert code == 2
  assert text in err and err.count('\n') == 1


@pytest.mark.parametrize(
  'name, said',
  [
    ('scaling', ['model.d_k']),
    ('heads', ['model.heads, model.d_k, model.d_v', 'pronoun is left']),
    ('projections', []),  # also d_k: the preset's is its own
    ('table3', ['model.d_model, model.heads']),
    ('regularisation', ['model.dropout', 'all pairs of files:x are trained']),
    ('paper', []),
  ],
)
def test_a_study_takes_of_a_preset_what_it_can(
  capsys, monkeypatch, tmp_path, name, said
):
  """The rest is said, the command to repeat it has only what it took."""
  monkeypatch.setattr(runner, 'run', lambda job: 75)
  monkeypatch.setattr(matched, 'matched', lambda *given: {matched.WIDTH: 60})
  words = [f'--study={name}', '--preset=tiny', '--data.source=files:x']
  code, _, err = answer(capsys, *words, f'--workdir={tmp_path / "first"}')
  assert code == 75, err
  for text in said:
    assert text in err
  study = declaration.read_study(tmp_path / 'first')
  assert study.baseline['data.vocabulary_size'] == 10000
  assert not any(map(checks.unread, study.baseline))
  assert (study.baseline['model.d_ff'] == 256) == ('model.d_ff' not in err)
  command = shlex.split(declaration.command(tmp_path / 'first', study))
  again = f'--workdir={tmp_path / "again"}'
  assert answer(capsys, *command[3:], again)[0] == 75
  assert study_lib.essence(declaration.read_study(tmp_path / 'again')) == (
    study_lib.essence(study)
  )


@pytest.mark.parametrize(
  'name, known', [('aa', 'known'), ('aa', 'unknown'), ('paper', 'known')]
)
def test_the_command_to_repeat_a_study_is_of_this_study(
  capsys, monkeypatch, tmp_path, name, known
):
  """Also where the width that the user sets is an axis of its controls."""
  monkeypatch.setattr(runner, 'run', lambda job: 75)
  monkeypatch.setattr(matched, 'matched', lambda *given: {matched.WIDTH: 60})
  place = tmp_path / 'my study'
  words = ['--data.source=files:my corpus', '--model.d_ff=48', '--seeds=3']
  words += ['--threshold=0.75', '--train.log_every=7']
  words = [f'--study={name}', *words]
  assert answer(capsys, f'--workdir={place}', *words)[0] == 75
  if known == 'unknown':
    path = place / 'study.json'
    body = json.loads(path.read_text())
    del body['overrides']
    path.write_text(json.dumps(body))
  study = declaration.read_study(place)
  command = shlex.split(declaration.command(place, study))
  assert command[:3] == ['python', '-m', 'experiments.ablate']
  assert set(words[:5]) < set(command) and words[5] not in command
  assert study.threshold == 0.75
  assert ('--model.layers=1' in command) == (known == 'unknown')
  code, _, err = answer(capsys, *command[3:], f'--workdir={tmp_path / "again"}')
  assert code == 75, err
  again = declaration.read_study(tmp_path / 'again')
  assert study_lib.essence(again) == study_lib.essence(study)
  assert again.seeds == study.seeds


def test_a_study_can_be_asked_without_its_tuning(capsys, monkeypatch, tmp_path):
  monkeypatch.setattr(runner, 'run', lambda job: 75)
  words = ['--study=positions', '--seeds=5', '--tune=false']
  assert 'rates:' not in answer(capsys, *words, '--dry_run')[1]
  code, _, err = answer(capsys, *words, f'--workdir={tmp_path}')
  assert code == 75, err
  study = declaration.read_study(tmp_path)
  assert study.tuning is None
  command = declaration.command(tmp_path, study)
  assert '--tune=false' in shlex.split(command)
  # The plan of a folder does not change.
  code, _, err = answer(capsys, *words[:2], f'--workdir={tmp_path}')
  assert code == 2 and 'its tuning differ' in err


def test_power_without_a_pilot(capsys, tmp_path):
  with pytest.raises(SystemExit) as ended:
    words = [f'--workdir={tmp_path}']
    flags.run(power.main, extra=power.EXTRA, arguments=words)
  assert ended.value.code == 2
  assert 'holds no study' in capsys.readouterr().err


def test_power_of_a_pilot_in_both_phases(capsys, tmp_path):
  study = study_folder.declaration()
  declaration.declare(tmp_path, study, seeds=None)
  recipe = {'optim.learning_rate': 1e-3, 'optim.warmup_steps': 20}
  one = dict(recipe=recipe, basin_octaves=1.0, on_edge=False, grid=[])
  chosen = {arm.name: one for arm in study.arms}
  folder_lib.write_json(
    tmp_path / folder_lib.TUNING, dict(tolerance=0.05, chosen=chosen)
  )
  recipes = {arm.name: recipe for arm in study.arms}
  for n, cell in enumerate(cells.cells(study, range(5), recipes)):
    # By the paper's recipe an arm fails with two seeds.
    failed = cell.phase == 'paper' and cell.variant == 'scale=none'
    failed = failed and cell.seed in (1, 3)
    metrics = dict(unigram_loss=3.0)
    if not failed:
      metrics['loss'] = 1 + 0.1 * (n * n % 7)
    status = results_lib.DIVERGED if failed else results_lib.FINISHED
    results_lib.begin(tmp_path, study, cell)
    results_lib.write_result(
      tmp_path, cell, dict(status=status, metrics=metrics)
    )
  words = [f'--workdir={tmp_path}', '--difference=0.5']
  with pytest.raises(SystemExit) as ended:
    flags.run(power.main, extra=power.EXTRA, arguments=words)
  assert not ended.value.code
  _, *lines = capsys.readouterr().out.splitlines()
  # Of two comparisons each at 2.5 %: 2 / 2^7 is below, 2 / 2^6 is not.
  assert lines[0] == (
    'scale=none against scale=rsqrt_d_k (loss): 2 of 5 pairs diverged: ranks '
    'would decide, from 7 seeds on'
  )
  assert [line.partition(': ')[0] for line in lines[1:]] == [
    'score=additive against scale=rsqrt_d_k (loss)',
    'scale=none (tuned) against scale=rsqrt_d_k (tuned) (loss)',
    'score=additive (tuned) against scale=rsqrt_d_k (tuned) (loss)',
  ]
  assert all(line.endswith('for a difference of 0.5') for line in lines[1:])


def test_both_verdicts_are_printed_and_the_width_of_the_basin(
  capsys, monkeypatch, tmp_path
):
  monkeypatch.setattr(report, 'write', lambda folder: 'index.html')
  ablate.conclude(study_folder.make(tmp_path / 'w'))
  *lines, last, page = capsys.readouterr().out.splitlines()
  assert page == 'report: index.html'
  assert last.endswith('so up to 10 % in either.')
  assert [line.partition(', 5 seeds')[2] for line in lines] == (
    [''] * 2 + [', basin 2 octaves (baseline 2)'] * 2
  )


def test_arms_of_a_study_are_computed_in_one_way():
  """The default study's by the formula, whose bits its report has."""
  study = studies.load(ablate.DEFAULT)
  pairs = cells.shared_pairs(study, 'cpu')
  said = cells.computed_by(study, 'cpu')
  assert pairs and 'of every arm: the formula; alone, not all' in said
  longer = checks.with_overrides(study, {'data.max_tokens': 1024})
  assert 'blocks beyond; alone' in cells.computed_by(longer, 'cpu')


def test_what_serves_all_arms_alike_is_said_with_its_reason():
  study = studies.load('masking')
  assert cells.shared_pairs(study, 'cpu') == 0
  said = cells.computed_by(study, 'gpu')
  assert 'of every arm: the formula up to' in said
  assert said.endswith('cuDNN takes no float32')
  dropped = study_lib.Arm('dropped', {'model.attention_dropout': 0.1})
  study = dataclasses.replace(study, arms=(*study.arms, dropped))
  said = cells.computed_by(study, 'gpu')
  assert 'takes no float32 (masked, unmasked, hardly trained); ' in said
  assert said.endswith('fused attention has no dropout (dropped)')


def test_studies_of_the_softmax_keep_every_probe():
  """But the default one, whose report is committed with those it drew."""
  for name in ('scaling', 'sites'):
    assert studies.load(name).probes == study_lib.PROBES
  assert len(studies.load(ablate.DEFAULT).probes) == 5


@pytest.mark.parametrize(
  'word, helper, shard, silent',
  [
    ('--shard=1/3', 0, runner.Shard(1, 3), False),
    ('--workers=2', 1, runner.Shard(1, 2), True),
    ('--workers=2', 0, runner.Shard(0, 2), False),
  ],
)
def test_every_worker_but_a_helper_speaks_and_concludes(
  tmp_path, monkeypatch, word, helper, shard, silent
):
  """Any other may be the only one that is left at the end."""
  jobs, concluded, started = [], [], []
  monkeypatch.setattr(runner, 'run', lambda job: jobs.append(job) or 0)
  monkeypatch.setattr(ablate, 'conclude', concluded.append)
  monkeypatch.setattr(
    ablate,
    'helpers',
    lambda count, _: started.append(count) or contextlib.nullcontext(),
  )
  words = ['--study=aa', f'--workdir={tmp_path}', word]
  config, options = flags.parse(words, extra=ablate.EXTRA, base=ablate.base)
  assert ablate.main(config, options, helper=helper) == 0
  (job,) = jobs
  assert (job.shard, job.workers) == (shard, options.workers)
  assert started == [0 if helper else options.workers]
  assert (job.screen.quiet, concluded) == (silent, [tmp_path] * (not silent))


def test_workers_share_a_cpu_and_nothing_else(capsys):
  assert ablate.workers_here(3, 'cpu') == 3
  assert ablate.workers_here(1, 'gpu') == 1
  assert capsys.readouterr().err == ''
  assert ablate.workers_here(3, 'gpu') == 1
  assert '--workers=3: one process takes all' in capsys.readouterr().err


# A test may itself run where a keyboard's signal is ignored.
HEARS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])
"""


@pytest.mark.slow
def test_ctrl_c_of_a_terminal_ends_all_workers_saved(tmp_path):
  """All of a group get it; none is killed in the middle."""
  words = ['experiments.ablate', '--study=aa', f'--workdir={tmp_path}/w']
  words += ['--workers=2', '--train.steps=1000000']
  words += [f'--data.cache_dir={tmp_path}/cache']
  with open(tmp_path / 'log', 'w') as log:
    process = subprocess.Popen(
      [sys.executable, '-c', HEARS, *words],
      cwd=pathlib.Path(__file__).parent.parent,
      stderr=log,
      start_new_session=True,
    )
  said = (tmp_path / 'log').read_text
  try:
    limit = time.monotonic() + 300
    # Two batches, of eight members and of two.
    while len(list(tmp_path.glob('w/cells/*/metrics.jsonl'))) < 10:
      assert process.poll() is None and time.monotonic() < limit, said()
      threading.Event().wait(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 75, said()
    with pytest.raises(ProcessLookupError):
      os.killpg(process.pid, 0)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  assert said().count('signal: saving, then leaving') == 2
  assert 'Traceback' not in said()
  saved = list(tmp_path.glob('w/populations/*/*/checkpoints/*'))
  assert len(saved) >= 2 and all(path.name.isdecimal() for path in saved)
  assert len({path.parts[-4] for path in saved}) == 2
