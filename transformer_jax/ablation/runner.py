"""Runs a study up to its summary; any number of workers share it.

Workers may run the same command on one folder, be killed and be started again.
A batch of cells that share a program is held by one worker at a time, with a
lock that ends with the worker. A cell is done when it has a whole result.
"""

import contextlib
import functools
import pathlib
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import conclusion, declaration, sequential, tuning
from transformer_jax.ablation import folder as folder_lib
from transformer_jax.ablation import results as results_lib
from transformer_jax.ablation.cells import Cell
from transformer_jax.ablation.chunks import (
  MEMBERS,
  Chunk,
  chunks,
  held,
  is_held,
  platform,
  population,
)
from transformer_jax.ablation.generating import Generating
from transformer_jax.ablation.outcome import result_of
from transformer_jax.ablation.probing import Probing
from transformer_jax.ablation.screen import Screen, verdict
from transformer_jax.ablation.study import Study
from transformer_jax.ablation.viewing import Viewing
from transformer_jax.config import ConfigError, DataConfig
from transformer_jax.data.corpus import Corpus, open_corpus
from transformer_jax.training import lock, replicas
from transformer_jax.training import place as place_lib
from transformer_jax.training.compiled import use_cache
from transformer_jax.training.guard import FINISHED, PREEMPTED
from transformer_jax.training.mesh import make_mesh, of_a_population
from transformer_jax.training.population import Member
from transformer_jax.training.replicas import Outcome, Watcher

WAIT = 1.0  # seconds between looks at what other workers do


class Shard(NamedTuple):
  """Which batches a worker takes first: number, number + of, ..."""

  number: int = 0
  of: int = 1


class Job(NamedTuple):
  """What a worker needs to know.

  study: as planned in the folder.
  seeds: to run, 0 .. seeds - 1.
  shard: what to begin with.
  workers: of this machine, that share its memory.
  tuned: text of a tuning.json that came with the study; '' without.
  stop: whether a signal asked to leave.
  screen: what the user is shown.
  stale: see `lock.held`.
  """

  folder: pathlib.Path
  study: Study
  seeds: int
  shard: Shard
  tuned: str
  stop: Callable[[], int]
  screen: Screen
  workers: int = 1
  stale: float = lock.STALE


@functools.lru_cache(maxsize=4)
def _corpus(
  data: DataConfig, say: Callable[[str], None]
) -> tuple[Corpus, dict[str, str]]:
  """The data, and fingerprints of its content."""
  corpus = open_corpus(data, workdir=None, progress=say)
  test = corpus.identity(data.test_split)
  return corpus, dict(training=corpus.fingerprint, test=test)


def run(job: Job) -> int:
  """Work until the study is done, by this worker and others.

  Returns:
    0 done and summary.json written, 75 stopped and saved.

  Raises:
    ConfigError: anything that the user has to mend.
  """
  study = job.study
  use_cache(cells_lib.arm_config(study, study.arms[0]))
  job.screen.say(cells_lib.computed_by(study, platform()))
  recipes = None
  if study.tuning is not None:
    if not tune(job):
      return PREEMPTED
    recipes = results_lib.recipes(job.folder, study)
  cells = cells_lib.cells(study, range(job.seeds), recipes)
  if not work(job, cells, looks=study.looks):
    return PREEMPTED
  write_tables(job.folder, study)
  job.screen.say(f'study {study.name}: all {len(cells)} cells are done')
  return FINISHED


def tune(job: Job) -> bool:
  """tuning.json, made, or taken from the study; False when stopped."""
  path = job.folder / folder_lib.TUNING
  if path.exists():
    return True
  if job.tuned and tuning.fits(job.study, job.tuned):
    job.screen.say('learning rates: as committed with the study')
    folder_lib.write_text(path, job.tuned)
    return True
  if job.tuned:
    job.screen.say('learning rates: the committed ones are of other configs')
  grids = tuning.first_grids(job.study)
  while True:
    cells = [cell for grid in grids.values() for cell in grid.cells(job.study)]
    if not work(job, cells):
      return False
    wider = tuning.extended(job.study, grids, functools.partial(_loss, job))
    if wider == grids:
      break
    grids = wider
  body = tuning.chosen(job.study, grids, functools.partial(_loss, job))
  folder_lib.write_json(path, body)
  return True


def _loss(job: Job, cell: Cell) -> float:
  """Validation loss of a tuning cell, or what a diverged one counts as."""
  result = results_lib.read_result(job.folder, cell)
  if result is None:
    raise ConfigError(f'{job.folder}: tuning cell {cell.identity} is missing')
  if result.diverged:
    return results_lib.diverged_value('loss', result.body['metrics'])
  return float(result.body['metrics']['validation_loss'])


def work(job: Job, cells: Sequence[Cell], *, looks: Sequence[int] = ()) -> bool:
  """Run cells until all are done, here or elsewhere; False when stopped.

  Args:
    job: see there.
    cells: to be run.
    looks: numbers of seeds at which the tables are written on the way.
  """
  queue = _Queue(job, cells, looks)
  while found := queue.pending():
    for chunk in found:
      if job.stop():
        return False
      with held(job.folder, chunk, stale=job.stale) as mine:
        if mine:
          queue.compiled.add(chunk.group)
          if not run_chunk(job, chunk):
            return False
          job.screen.batch_ended()
          break
    else:
      # All that is left is in other hands; one of them may yet be killed.
      threading.Event().wait(WAIT)
  return True


class _Queue:
  """What is left to do, as one worker sees it.

  done: identities of cells with a whole result, whoever wrote it.
  own: names of the batches of its shard.
  compiled: groups whose program this worker has compiled.
  taken: seeds of the latest look that was complete; -1 before the first one.
  """

  def __init__(
    self, job: Job, cells: Sequence[Cell], looks: Sequence[int]
  ) -> None:
    self.job, self.cells, self.looks = job, cells, looks
    self.chunks = chunks(cells)
    shard = job.shard
    self.own = {chunk.name for chunk in self.chunks[shard.number :: shard.of]}
    self.done: set[str] = set()
    self.compiled: set[str] = set()
    self.taken = -1

  def pending(self) -> list[Chunk]:
    """Batches that are not done, the one to begin with first."""
    folder, screen = self.job.folder, self.job.screen
    self.done |= {
      cell.identity
      for cell in self.cells
      if cell.identity not in self.done and results_lib.is_done(folder, cell)
    }
    screen.cells(self.cells, self.done)
    self._look()
    found = [chunk for chunk in self.chunks if self._seeds(chunk.cells)]
    busy = {chunk.group for chunk in found if is_held(folder, chunk)}
    return sorted(found, key=lambda chunk: self._rank(chunk, busy))

  def _rank(self, chunk: Chunk, busy: set[str]) -> tuple[int, ...]:
    """Lower goes first.

    First what the next look waits for. Then a batch whose program this worker
    has compiled, then those that nobody compiles at this moment, then those of
    its own shard.
    """
    first = min(self._seeds(chunk.cells))
    looks_before = sum(seeds <= first for seeds in self.looks)
    return (
      looks_before,
      chunk.group not in self.compiled,
      chunk.group in busy,
      chunk.name not in self.own,
    )

  def _seeds(self, cells: Sequence[Cell]) -> list[int]:
    """Those of the cells that are not done."""
    return [cell.seed for cell in cells if cell.identity not in self.done]

  def _look(self) -> None:
    """Write the tables of a look that has become complete."""
    missing = min(self._seeds(self.cells), default=0)
    reached = max((n for n in self.looks if n <= missing), default=0)
    # A worker that begins with all planned cells done finds their tables.
    if reached > max(self.taken, 0) and (
      self.taken >= 0 or reached < self.looks[-1]
    ):
      take_look(self.job, reached)
    self.taken = reached


def run_chunk(job: Job, chunk: Chunk) -> bool:
  """Train what is not done of a batch, write results; False when stopped."""
  place = population(job.folder, chunk)
  pending = [
    cell for cell in chunk.cells if not results_lib.is_done(job.folder, cell)
  ]
  if not pending:
    return True
  for cell in pending:
    results_lib.clear(job.folder, cell)
  cells = _trained_together(place, chunk, pending)
  corpus, prints = _corpus(cells[0].config.data, job.screen.say)
  arms = cells_lib.data_of(job.study, cells[0])
  declaration.admit_data(job.folder, arms, prints)
  members = [
    Member(cell.config, _member_folder(job, place, cell, pending))
    for cell in cells
  ]
  probing = Probing(job.study, members, corpus)
  generating = Generating(job.study, members, corpus)
  viewing = Viewing(job.study, members, corpus)

  def look(step, n, weights):
    for one in (probing, generating, viewing):
      one.look(step, n, weights)

  watcher = Watcher(
    stop=job.stop,
    evaluated=look,
    cut_back=probing.cut_back,
    progress=job.screen.steps,
    say=job.screen.say,
  )
  outcomes = _train(job, chunk, members, corpus, watcher)
  if outcomes is None:
    return False
  for n, cell in enumerate(cells):
    if cell in pending:
      written = generating.scores(n)
      body = result_of(job.study, members[n], outcomes[n], corpus, written)
      body['probes'] = probing.series(n)
      body['views'] = viewing.seen(n)
      results_lib.write_result(job.folder, cell, body)
  # Workers that watch the lock keep files of their own beside it.
  folder_lib.empty(place, keep=lock.NAME)
  return True


def _train(
  job: Job,
  chunk: Chunk,
  members: Sequence[Member],
  corpus: Corpus,
  watcher: Watcher,
) -> list[Outcome] | None:
  """Train members of a batch on the devices at hand; None when stopped."""
  devices = of_a_population(make_mesh(members[0].config.mesh))
  pairs = cells_lib.shared_pairs(job.study, devices[0].platform)
  where = place_lib.on(devices, pairs=pairs)
  in_turn = where.platform in MEMBERS
  return replicas.train(
    members,
    corpus,
    folder=population(job.folder, chunk),
    place=where,
    room=chunk.room if in_turn else len(members),
    workers=job.workers,
    watcher=watcher,
  )


def _trained_together(
  place: pathlib.Path, chunk: Chunk, pending: Sequence[Cell]
) -> list[Cell]:
  """Cells that were trained here before a kill, if all pending are among them.

  A kill between two results leaves a checkpoint of more members than are
  still to be written.
  """
  path = place / 'members.json'
  names: Any = None
  with contextlib.suppress(ConfigError):
    names = folder_lib.read_json(path)
  if isinstance(names, list):
    before = [cell for cell in chunk.cells if cell.identity in names]
    if set(pending) <= set(before):
      return before
  folder_lib.write_json(path, [cell.identity for cell in pending])
  return list(pending)


def _member_folder(
  job: Job, place: pathlib.Path, cell: Cell, pending: Sequence[Cell]
) -> pathlib.Path:
  """The cell's folder; a copy of it where the cell has its result."""
  if cell in pending:
    return results_lib.begin(job.folder, job.study, cell)
  scratch = place / 'done' / cell.identity
  done = folder_lib.cell_folder(job.folder, cell)
  shutil.copytree(done, scratch, dirs_exist_ok=True)
  return scratch


def take_look(job: Job, seeds: int) -> None:
  """The tables at a look on the way, and its verdicts at its own level."""
  study = job.study
  rows = write_tables(job.folder, study, look=seeds)
  chosen = results_lib.read_tuning(job.folder, study).get('chosen', {})
  level = sequential.level_at(seeds, study.looks)
  job.screen.say(
    f'look at {seeds} of {study.seeds} planned seeds, level {level:.3g}:'
  )
  for row in rows:
    if row['primary']:
      job.screen.say(f'  {verdict(row, chosen)}')


def write_tables(
  folder: pathlib.Path, study: Study, *, look: int | None = None
) -> list[dict[str, Any]]:
  """results.csv and summary.json, from result files; the summary's rows.

  Args:
    folder: of the study.
    study: as it is planned there.
    look: of so many seeds only.
  """
  results = results_lib.read_results(folder, study, look=look)
  folder_lib.write_text(folder / folder_lib.TABLE, results_lib.table(results))
  rows = conclusion.summary(study, results)
  folder_lib.write_json(folder / folder_lib.SUMMARY, rows)
  return rows
