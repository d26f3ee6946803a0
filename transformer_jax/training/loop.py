"""The loop: step, evaluate, save, report.

A run is a pure function of its config and data. Where it was killed, on which
call a step went to the device and when metrics were read change no bit of it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from transformer_jax.config import BLEU_NAMES, Config, ConfigError
from transformer_jax.data.batches import held_out_batches
from transformer_jax.data.corpus import Corpus
from transformer_jax.nn.transformer import with_statistics
from transformer_jax.training import hosts, lock, record
from transformer_jax.training.calls import is_finite, stacked, steps_in_call
from transformer_jax.training.compiled import Compiling
from transformer_jax.training.guard import (
  FINISHED,
  PREEMPTED,
  StoppedError,
  Watchdog,
  stop_signal,
)
from transformer_jax.training.loss import LossSums
from transformer_jax.training.progress import Progress
from transformer_jax.training.scores import averages
from transformer_jax.training.setup import (
  Run,
  Say,
  admitted_steps,
  set_up,
  start_or_resume,
)
from transformer_jax.training.state import (
  Metrics,
  State,
  loss_function,
  numbers,
  run_key,
)

# Raises StoppedError when a signal has come.
Check = Callable[[], None]
# (params, corpus, sentence pairs, check, say) -> BLEU of their translation and
# its signature, by name
Bleu = Callable[[Any, Corpus, list[tuple[str, str]], Check, Say], dict]


class TrainingError(ConfigError):
  """Training cannot go on; the text is one line with what is known."""


def train(
  config: Config,
  *,
  workdir: str,
  bleu: Bleu | None = None,
  init_from: str = '',
) -> int:
  """Train, or go on, or find it done.

  Args:
    config: valid.
    workdir: the run's folder.
    bleu: scores translations, when that is the metric of the best checkpoint
      or train.evaluate_bleu asks for it.
    init_from: another run, or a checkpoint of it, whose parameters this run
      begins with; '' for initial values.

  Returns:
    The exit code: 0 finished, 75 stopped by a signal and saved.

  Raises:
    ConfigError: the folder, the data or the config cannot be used.
    TrainingError: the loss is not a number, or the disk is full.
    CheckpointError: a checkpoint could not be written or read.
  """
  progress = Progress(workdir, config.train.steps, silent=not hosts.first())
  try:
    with progress, stop_signal() as stop, sole_writer(workdir):
      run = set_up(config, workdir, progress, init_from=init_from)
      state = start_or_resume(run)
      start = int(state.step)
      if finished(run, start) and not owes_evaluation(run, start):
        run.checkpoints.tidy()
        progress.say(f'{workdir} is {ending(config, start)}')
        return FINISHED
      run.checkpoints.trial(state)
      with Watchdog(config.train.step_timeout_seconds) as watchdog:
        ask = watchdog.hears(stop)
        return go_on(run, state, ask, bleu, watchdog.busy)
  except OSError as error:
    raise TrainingError(
      f'{error.filename or workdir}: {error.strerror or error}; what is saved '
      'stays: mend this and run the same command again'
    ) from error


@contextlib.contextmanager
def sole_writer(workdir: str) -> Iterator[None]:
  """The folder, which all processes see, held by the one that writes there."""
  folder = record.open_folder(workdir)
  with lock.held(folder) if hosts.first() else contextlib.nullcontext():
    lock.admit_shared(folder)
    yield


def finished(run: Run, step: int) -> bool:
  done = step >= run.config.train.steps or out_of_patience(run)
  return bool(hosts.agreed(done))


def out_of_patience(run: Run) -> bool:
  """True after `patience` validations without a better one."""
  config, name = run.config.train, best_metric(run.config)
  sign = 1 if config.best_metric == 'loss' else -1
  found = [
    sign * line[name]
    for line in run.metrics.lines()
    if name in line and line['split'] == 'validation'
  ]
  if not config.patience or not found:
    return False
  return len(found) - 1 - int(np.argmin(found)) >= config.patience


def best_metric(config: Config) -> str:
  """What train.best_metric is called in metrics.jsonl."""
  name = config.train.best_metric
  return BLEU_NAMES[config.data.text] if name == 'bleu' else name


def owes_evaluation(run: Run, step: int) -> bool:
  """True when a signal came in the evaluation of this saved step."""
  config = run.config.train
  due = step % config.evaluate_every == 0 or step == config.steps
  return step > 0 and due and run.checkpoints.metric(step) is None


def evaluate_saved(
  run: Run, state: State, evaluate: Callable[[int, State], float]
) -> None:
  """The evaluation that a signal had cut short, and its metric."""
  step = int(state.step)
  if hosts.first():
    run.metrics.cut_back(step, without='validation')
  run.checkpoints.score(step, evaluate(step, state))


def go_on(
  run: Run,
  state: State,
  stop: Callable[[], int],
  bleu: Bleu | None,
  compiling: Compiling = contextlib.nullcontext,
) -> int:
  """Steps from `state` to the end, or to a signal."""
  config, step = run.config, int(state.step)
  if stop():
    return preempted(run, step)
  steps = admitted_steps(run, state, compiling)
  key, traced = run_key(config), numbers(config)
  if stop():  # And a sign of life: the first call may compile another shape.
    return preempted(run, step)
  evaluate = evaluation(run, stop, bleu)
  if owes_evaluation(run, step):
    try:
      evaluate_saved(run, state, evaluate)
    except StoppedError:
      return preempted(run, step)
    if finished(run, step):
      run.progress.say(ending(config, step))
      return FINISHED
  pending: tuple[int, int, Metrics] | None = None
  while True:
    count = steps_in_call(run.plan, config, step)
    batches = run.layout.batch(
      stacked(run.plan, config, step, count), config.optim.accumulate
    )
    state, metrics = steps(state, batches, np.int32(count), key, traced)
    # While these steps run, the numbers of those before are read.
    write(run, pending)
    pending = (step, count, metrics)
    step += count
    due = step % config.train.evaluate_every == 0
    stopping = bool(stop())
    last = step >= config.train.steps
    if due or last or stopping or step % config.train.save_every == 0:
      # Nothing is saved before its loss is known to be a number.
      write(run, pending)
      pending = None
      if not save(run, step, state, evaluate if due or last else None):
        last, stopping = False, True
    if stopping and not last:
      return preempted(run, step)
    if last or (due and hosts.agreed(out_of_patience(run))):
      run.checkpoints.wait()
      run.progress.say(ending(run.config, step))
      return FINISHED


def save(
  run: Run,
  step: int,
  state: State,
  evaluate: Callable[[int, State], float] | None,
) -> bool:
  """Saves a step, evaluated first if asked; False: a signal cut that short.

  Then it has no metric; the next start gives it one.

  Raises:
    TrainingError: the parameters are not finite.
  """
  metric, whole = None, True
  if evaluate is not None:
    try:
      metric = evaluate(step, state)
    except StoppedError:
      whole = False
  if not jax.jit(is_finite)(state.params):
    raise diverged(run, f'parameters after step {step} are not finite')
  run.checkpoints.save(step, state, metric=metric)
  return whole


def ending(config: Config, step: int) -> str:
  """That a run is finished, and why where it is before its last step."""
  if step >= config.train.steps:
    return f'finished at step {step}'
  return (
    f'finished at step {step} of {config.train.steps}: no better validation '
    f'{best_metric(config)} in {config.train.patience} evaluations '
    '(train.patience)'
  )


def preempted(run: Run, step: int) -> int:
  run.checkpoints.wait()
  saved = f'saved at step {step}' if step else 'before step 1'
  run.progress.say(f'stopped by a signal, {saved}')
  return PREEMPTED


def write(run: Run, pending: tuple[int, int, Metrics] | None) -> None:
  """The metrics of a call that was made earlier: to disk and screen.

  Raises:
    TrainingError: a loss is not a number, once more often than
      train.max_skipped_steps allows. The state of that step is not saved.
  """
  if pending is None:
    return
  first, count, found = pending
  found = jax.tree.map(np.asarray, found)
  rows, tokens = [], 0.0
  for n in range(count):
    step = first + n + 1
    sums = [float(total[n]) for total in found.losses]
    values = averages(*sums)
    loss, norm = values['smoothed_loss'], float(found.gradient_norm[n])
    tokens += values['tokens']
    if not math.isfinite(loss) or not math.isfinite(norm):
      what = f'the loss of step {step} is not a number ({loss:g}, '
      what += f'gradient norm {norm:g})'
      count_so_far = one_more_skipped(run, rows, what)
      rows.append((step, 'skipped', dict(skipped=count_so_far)))
      continue
    if step % run.config.train.log_every == 0:
      values |= dict(
        gradient_norm=norm, learning_rate=float(found.learning_rate[n])
      )
      rows.append((step, 'train', values))
    run.progress.step(step, loss)
  if hosts.first():
    run.metrics.append(rows)
  run.progress.show(rows, tokens)


def one_more_skipped(run: Run, rows: list[tuple], what: str) -> int:
  """How many steps were left out by now; TrainingError if it is too many."""
  splits = [line['split'] for line in run.metrics.lines()]
  splits += [split for _, split, _ in rows]
  # While one process counts, the first may have written the next line.
  before = hosts.agreed(splits.count('skipped'))
  limit = run.config.train.max_skipped_steps
  if before >= limit:
    skipped = f' after {before} skipped steps' if limit else ''
    raise diverged(run, what + skipped)
  return before + 1


def diverged(run: Run, what: str) -> TrainingError:
  """The error that says what is left of the run."""
  run.checkpoints.wait()
  latest = run.checkpoints.latest()
  left = (
    'no checkpoint yet' if latest is None else f'checkpoint {latest} stands'
  )
  return TrainingError(
    f'{what}; {left}; try a lower --optim.learning_rate or '
    '--optim.clip_norm=1 with another --workdir'
  )


def evaluation(
  run: Run, stop: Callable[[], int], bleu: Bleu | None
) -> Callable[[int, State], float]:
  """(step, state) -> the metric of the best checkpoint, on validation.

  It raises StoppedError, and leaves nothing, when a signal came meanwhile.
  """
  config = run.config
  split = config.data.validation_split
  always = config.train.evaluate_bleu == 'always'
  wants_bleu = always or config.train.best_metric == 'bleu'
  if wants_bleu and bleu is None:
    raise ConfigError('BLEU of a validation needs a scorer')
  losses = jax.jit(loss_function(config, run.model, run.layout))
  held_out = [
    run.layout.batch(batch)
    for _, batch in held_out_batches(run.corpus.pairs(split), config.data)
  ]

  def check() -> None:
    if stop():
      raise StoppedError

  def evaluate(step: int, state: State) -> float:
    found: list[LossSums] = []
    weights = with_statistics(state.params, state.statistics)
    for batch in held_out:
      check()
      found.append(losses(weights, batch, None, numbers(config)))
      # One batch runs while the next is made ready; a signal waits for one.
      jax.block_until_ready(found[-2:-1])
    # Summed on the host in float64: the order of batches is fixed.
    total = [0.0] * len(LossSums._fields)
    for sums in jax.device_get(found):
      total = [a + float(b) for a, b in zip(total, sums, strict=True)]
    values = averages(*total)
    if not math.isfinite(values['loss']):
      raise diverged(run, f'the validation loss of step {step} is not a number')
    if wants_bleu and bleu is not None:
      pairs = run.corpus.references(split)
      values |= bleu(weights, run.corpus, pairs, check, run.progress.say)
    rows = [(step, 'validation', values)]
    if hosts.first():
      run.metrics.append(rows)
    run.progress.show(rows, 0.0)
    return values[best_metric(config)]

  return evaluate
