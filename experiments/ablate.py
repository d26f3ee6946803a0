"""Run a study, or go on with it, or find it done.

  python -m experiments.ablate --study=list
  python -m experiments.ablate --study=paper --workdir=runs/paper --workers=2
  python -m experiments.ablate --study=positions --workdir=runs/multi30k \\
    --preset=tiny --train.steps=2000 --data.source=files:multi30k

A field given as a flag holds for all arms. A field that the arms vary is
refused as a flag, and left out of a preset. The same command starts, resumes,
shares the work with other workers on the same folder, and finds it done. More
seeds later train only the new ones; seeds beyond the planned number are
exploratory. Worker i of n, `--shard=i/n`, begins with its own part and then
helps with what is left. Every worker that is there at the end prints the
verdicts and writes the report.

Exit codes: 0 finished; 2 something to be corrected first; 75 stopped by
SIGTERM, SIGUSR1 or Ctrl-C and saved, run the same command again; a second
Ctrl-C ends at once.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from transformer_jax import flags
from transformer_jax.ablation.study import Overrides, Study
from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import override

DEFAULT = 'paper'  # the study of `make ablation`

EXTRA = (
  flags.Flag('study', str, DEFAULT, 'what is asked; list shows them'),
  flags.Flag('workdir', str, '', 'folder of the study'),
  flags.Flag('seeds', int, 0, 'runs of each arm; by default those planned'),
  flags.Flag('shard', str, '', 'i/n: worker i of n, from 0'),
  flags.Flag(
    'tune',
    bool,
    True,
    'choose a learning rate for each arm, where the study says so',
  ),
  flags.Flag(
    'threshold',
    float,
    0.0,
    "validation loss that steps are counted to; the study's own by default",
  ),
  flags.Flag('workers', int, 1, 'processes on this machine'),
  flags.Flag('dry_run', bool, False, 'say what would be run'),
)


def base(options: types.SimpleNamespace) -> Config:
  """What flags are laid upon: the study's baseline."""
  from experiments import studies

  if options.study == 'list':
    return Config()
  return override(Config(), studies.load(options.study).baseline)


def shard(text: str) -> tuple[int, int]:
  """(number, of) of `--shard=i/n`.

  Raises:
    ConfigError: it is not of that form, or i is not below n.
  """
  if not text:
    return 0, 1
  number, _, of = text.partition('/')
  if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
    raise ConfigError(f'--shard={text} is not i/n with i from 0 to n - 1')
  return int(number), int(of)


def show_studies() -> None:
  """Name and question of every study."""
  from experiments import studies

  for name in studies.names():
    print(f'{name:16} {studies.load(name).question}')


def planned_cells(study, seeds: int, tuned: str) -> tuple[list, list]:
  """(cells that choose learning rates, cells that are judged).

  Where the choice is still to be made, a rate of the grid stands for what will
  be chosen: its runs are as long and of the same program.
  """
  from transformer_jax.ablation import cells as cells_lib
  from transformer_jax.ablation import tuning

  choosing, recipes = [], None
  if study.tuning and tuned and tuning.fits(study, tuned):
    chosen = json.loads(tuned)['chosen']
    recipes = {name: one['recipe'] for name, one in chosen.items()}
  elif study.tuning:
    grids = tuning.first_grids(study)
    choosing = [cell for grid in grids.values() for cell in grid.cells(study)]
    recipes = {name: grid.recipes()[-1] for name, grid in grids.items()}
  return choosing, cells_lib.cells(study, range(seeds), recipes)


def size(study, seeds: int, tuned: str) -> list[str]:
  """How much would be run, and what the study's lab note says it costs."""
  from transformer_jax.ablation.chunks import chunks

  choosing, judged = planned_cells(study, seeds, tuned)
  batches = [*chunks(choosing), *chunks(judged)]
  cells = [cell for batch in batches for cell in batch.cells]
  steps = sum(cell.config.train.steps for cell in cells)
  lines = [
    f'{len(study.arms)} arms x {seeds} seeds: {len(cells)} cells, '
    f'{steps:,} steps, {len({b.group for b in batches})} programs, '
    f'{len(batches)} populations'
  ]
  if choosing:
    lines.append(
      f'learning rates: {len(choosing)} of the cells choose them, and more '
      'where the best is at the edge of its grid'
    )
  elif study.tuning:
    lines.append('learning rates: as committed')
  if cost := re.search(r'\bCost: (.+?)(\n\n|$)', study.doc, re.DOTALL):
    lines.append(f'cost, by its lab note: {" ".join(cost[1].split())}')
  return lines


def describe(study, seeds: int, tuned: str) -> str:
  """What would be run.

  Args:
    study: checked, with the user's overrides.
    seeds: of each arm.
    tuned: text of a tuning.json that came with the study; '' without.
  """
  lines = [
    f'{study.name}: {study.question}',
    f'paper: {study.paper}',
    *size(study, seeds, tuned),
  ]
  for arm in study.arms:
    changes = ' '.join(f'{k}={v}' for k, v in arm.overrides.items())
    role = f' ({arm.role.replace("_", "-")})' if arm.role else ''
    lines.append(f'  {arm.name}{role}: {changes or "as the baseline"}')
  for one in study.primary:
    margin = '' if one.margin is None else f', margin {one.margin:g}'
    lines.append(
      f'  {one.variant} against {one.baseline}: {one.metric}{margin}'
    )
  return '\n'.join(lines)


@contextlib.contextmanager
def helpers(workers: int, stop: Callable[[], Any]) -> Iterator[None]:
  """The other workers of this machine: the same command, other shards."""
  program = 'from experiments import ablate; ablate.help_with({})'
  others = [
    subprocess.Popen(
      [sys.executable, '-c', program.format(number), *sys.argv[1:]]
    )
    for number in range(1, workers)
  ]
  try:
    yield
  finally:
    # Workers that are done leave by themselves. After a signal, or an error
    # here, they are told to save and leave, even after a Ctrl-C.
    if stop() or sys.exc_info()[0] is not None:
      for other in others:
        other.terminate()
    for other in others:
      other.wait()


def help_with(number: int) -> NoReturn:
  """What a helper does: its part, in silence and without the report."""

  def own(config: Config, options: types.SimpleNamespace) -> int:
    return main(config, options, helper=number)

  flags.run(own, extra=EXTRA, base=base)


def workers_here(asked: int, platform: str) -> int:
  """Processes that can share this machine's devices: a CPU, but no others."""
  if asked == 1 or platform == 'cpu':
    return asked
  print(
    f'--workers={asked}: one process takes all devices of this {platform}; '
    'for one a device see launch/sweep.py',
    file=sys.stderr,
  )
  return 1


def check(options: types.SimpleNamespace) -> None:
  """Refuse options that cannot be used."""
  if not options.workdir and not options.dry_run:
    raise ConfigError('--workdir is needed: folder of the study')
  if options.workers < 1 or options.seeds < 0:
    raise ConfigError('--workers and --seeds must be at least 1')
  if options.threshold < 0:
    raise ConfigError(f'--threshold={options.threshold} must be positive')
  if options.workers > 1 and options.shard:
    raise ConfigError('--workers starts shards itself: leave out --shard')


def left_out(declared, study, options: types.SimpleNamespace) -> list[str]:
  """Lines that say what of the declaration or the preset is left out.

  Args:
    declared: as its module has it.
    study: with what the preset and the user override.
    options: of the command line.
  """
  kept = (*study.free_running, *study.views)
  lines = [
    f'{name} is left out: this data has none'
    for name in (*declared.free_running, *declared.views)
    if name not in kept
  ]
  arms = {arm.name for arm in study.arms}
  lines += [
    f'{arm.name} is left out: no width of the feed-forward gives that size'
    for arm in declared.arms
    if arm.name not in arms
  ]
  varied = [
    path
    for path, value in options.overrides.items()
    if path in study.axes and study.baseline.get(path) != value
  ]
  if varied:
    lines.append(
      f'preset {options.preset}: {", ".join(varied)} left out, which the arms '
      f'of {study.name} vary'
    )
  size = study.baseline.get('data.task_train_size')
  source = str(study.baseline.get('data.source', 'task:'))
  if size and not source.startswith('task:'):
    lines.append(
      f'all pairs of {source} are trained on: data.task_train_size={size} is '
      'of generated tasks'
    )
  return lines


def wanted(options: types.SimpleNamespace) -> tuple[Study, Overrides]:
  """The study as the user wants it, and the values that were overridden."""
  from experiments import studies
  from transformer_jax.ablation import checks, matched

  declared = studies.load(options.study)
  values = checks.taken(
    matched.without_controls(declared), options.overrides, options.given
  )
  study = matched.with_overrides(declared, values)
  if not options.tune:
    study = dataclasses.replace(study, tuning=None)
  if options.threshold:
    study = dataclasses.replace(study, threshold=options.threshold)
  for line in left_out(declared, study, options):
    print(line, file=sys.stderr)
  return study, values


def main(
  config: Config, options: types.SimpleNamespace, *, helper: int = 0
) -> int:
  del config
  if options.study == 'list':
    show_studies()
    return 0
  from experiments import studies
  from transformer_jax.ablation import checks, chunks, declaration, runner
  from transformer_jax.ablation.screen import Screen
  from transformer_jax.training import record
  from transformer_jax.training.guard import stop_signal

  check(options)
  number, of = shard(options.shard)
  study, values = wanted(options)
  if options.dry_run:
    checks.check_apart(study, options.seeds or study.seeds)
    tuned = studies.tuned(options.study)
    print(describe(study, options.seeds or study.seeds, tuned))
    return 0
  folder = record.open_folder(options.workdir)
  planned = declaration.declare(
    folder,
    study,
    seeds=options.seeds or None,
    overrides=values,
    tune=options.tune,
    threshold=options.threshold,
  )
  # Fields that cannot change a result are those of this command.
  planned = dataclasses.replace(
    planned, baseline={**planned.baseline, **values}
  )
  workers = workers_here(options.workers, chunks.platform())
  with stop_signal() as stop, helpers(0 if helper else workers, stop):
    job = runner.Job(
      folder=folder,
      study=planned,
      seeds=options.seeds or planned.seeds,
      shard=runner.Shard(helper or number, max(of, workers)),
      workers=workers,
      tuned=studies.tuned(options.study),
      stop=stop,
      screen=Screen(folder, study.name, quiet=helper > 0),
    )
    code = runner.run(job)
  # Whoever is there at the end: others may have been killed.
  if code == 0 and not helper:
    conclude(folder)
  return code


def conclude(folder: pathlib.Path) -> None:
  """Print the verdicts of a finished study and write its report."""
  from transformer_jax.ablation import declaration, report, stats
  from transformer_jax.ablation import results as results_lib
  from transformer_jax.ablation.screen import verdict

  rows = results_lib.read_summary(folder)
  study = declaration.read_study(folder)
  chosen = results_lib.read_tuning(folder, study).get('chosen', {})
  for row in rows:
    if row['primary']:
      print(verdict(row, chosen))
  if said := stats.promise(rows):
    print(said)
  print(f'report: {report.write(folder)}')


if __name__ == '__main__':
  flags.run(main, extra=EXTRA, base=base)
