"""What a run starts with: folder, data, model, checkpoints, state, step.

Each is admitted before anything is written that the next start would trip
over: a run that is refused leaves its folder as it was.
"""

import contextlib
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import plugins
from transformer_jax.config import SIDES, Config, ConfigError
from transformer_jax.data.batches import EndlessPlan, Plan, make_plan
from transformer_jax.data.corpus import Corpus, open_corpus
from transformer_jax.nn import implementations
from transformer_jax.nn.implementations import Served
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import (
  compiled,
  fit,
  hosts,
  origin,
  record,
  ring,
  sharding,
)
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.origin import Origin
from transformer_jax.training.progress import Progress
from transformer_jax.training.state import (
  Alone,
  State,
  admit_parts,
  initial_state,
  numbers,
  run_key,
  train_steps,
)

Say = Callable[[str], None]


class Run(NamedTuple):
  """What set-up made."""

  config: Config
  corpus: Corpus
  plan: Plan | EndlessPlan
  model: Transformer
  checkpoints: Checkpoints
  metrics: record.MetricsFile
  progress: Progress
  layout: Alone
  folder: pathlib.Path
  learned: bool  # the vocabulary, by this start
  origin: Origin | None  # what it begins from, unless initial values


class Inputs(NamedTuple):
  """What a run reads, seen to be what its folder was begun with."""

  corpus: Corpus
  fingerprints: dict[str, str]
  origin: Origin | None


def admitted(
  config: Config,
  folder: pathlib.Path,
  *,
  vocabulary_in: str | None,
  init_from: str,
  say: Say,
) -> Inputs:
  """The data and the origin of the run in `folder`, new or not.

  Args:
    config: of the run.
    folder: its own, in which nothing is written but a vocabulary.
    vocabulary_in: the folder whose vocabulary is taken, or learned into; None
      learns one and forgets it.
    init_from: see `origin.admit`.
    say: is told what takes long.

  Raises:
    ConfigError: the folder is another run's, or what is read cannot serve it.
  """
  record.admit(folder, config)
  begun_from = origin.admit(folder, init_from)
  corpus = open_corpus(config.data, workdir=vocabulary_in, progress=say)
  fingerprints = dict(
    data=corpus.fingerprint,
    vocabulary=corpus.vocabularies.fingerprint,
    **plugins.used(config),
  )
  record.admit_data(folder, fingerprints)
  admit_lengths(config, corpus)
  if begun_from and not (folder / 'config.json').exists():
    origin.admit_vocabulary(begun_from, fingerprints['vocabulary'], folder)
  return Inputs(corpus, fingerprints, begun_from)


def set_up(
  config: Config, workdir: str, progress: Progress, *, init_from: str = ''
) -> Run:
  """Folder, data, model and checkpoints, in this order."""
  compiled.use_cache(config)
  layout = sharding.layout(config.mesh)
  with hosts.first_alone():
    folder = record.open_folder(workdir)
    learned = not (folder / 'vocabulary').exists()
    corpus, fingerprints, begun_from = admitted(
      config,
      folder,
      vocabulary_in=str(folder),
      init_from=init_from,
      say=progress.say,
    )
  plan, model = planned(config, corpus, layout, progress.say)
  # Not before everything is admitted: a refused config leaves no trace.
  description = record.describe(
    config, fingerprints, init_from=begun_from and begun_from._asdict()
  )
  if hosts.first():
    record.write_atomically(folder / 'config.json', description)
  checkpoints = Checkpoints(
    folder / 'checkpoints',
    keep_latest=config.train.keep_latest,
    keep_best=config.train.keep_best,
    keep_every=config.train.keep_every,
    best_metric_mode='min' if config.train.best_metric == 'loss' else 'max',
    config=description,
  )
  return Run(
    config,
    corpus,
    plan,
    model,
    checkpoints,
    record.MetricsFile(folder),
    progress,
    layout,
    folder,
    learned,
    begun_from,
  )


def planned(
  config: Config, corpus: Corpus, layout: Alone, say: Say
) -> tuple[Plan | EndlessPlan, Transformer]:
  """Batches and model of a run.

  Raises:
    ConfigError: the batches cannot be cut as asked, or attention not served.
  """
  plan = make_plan(corpus.train, config.data)
  for shape in plan.shapes:
    admit_parts(config, shape.rows)
  served = ring.serve(
    config.model, layout, platform=jax.local_devices()[0].platform
  )
  say(f'devices: {of_devices(layout)}')
  say(f'attention: {served.why}{at_the_widest(config, served, plan)}')
  model = Transformer(
    config.model,
    corpus.vocabularies.source.size,
    corpus.vocabularies.target.size,
    served.attend,
    layout.wrap_layer,
  )
  return plan, model


def of_devices(layout: Alone) -> str:
  """What a run is laid out on: a fall-back to the CPU is seen at once."""
  count, kind = jax.device_count(), jax.devices()[0].device_kind
  if not isinstance(layout, sharding.Layout):
    return f'1 of {count} x {kind}' if count > 1 else f'1 x {kind}'
  sizes = layout.mesh.shape.items()
  axes = ' x '.join(f'{axis} {size}' for axis, size in sizes if size > 1)
  several = f', {jax.process_count()} processes' if hosts.several() else ''
  return f'{count} x {kind}{several}, {axes}'


def admit_lengths(config: Config, corpus: Corpus) -> None:
  """Refuse held-out pairs that are longer than learned positions.

  Training pairs are at most data.max_length; the others are all read.

  Raises:
    ConfigError: names the split and the length.
  """
  for split in (config.data.validation_split, config.data.test_split):
    for at, side in enumerate(SIDES):
      limit = config.model.longest(side)
      if limit is None:
        continue
      most = int(corpus.pairs(split).lengths[at].max(initial=0))
      if most > limit:
        raise ConfigError(
          f'a pair of {split} has {most} tokens for the {side}, which has '
          f'model.max_positions={limit}: raise it, or take the long pairs out '
          'of the split'
        )


def at_the_widest(
  config: Config, served: Served, plan: Plan | EndlessPlan
) -> str:
  """Which program that is in the step that takes the most memory."""
  rows, *lengths = fit.largest_shape(config, plan.shapes)
  rows, longest = rows // config.optim.accumulate, max(lengths)
  name = implementations.at(served, config.model, rows, longest, longest)
  return name and f'; of {rows} sentences of {longest} tokens: {name}'


def start_or_resume(run: Run) -> State:
  """The newest good checkpoint, or step 0."""
  initial = initial_state(run.config, run.model)
  abstract = jax.eval_shape(initial, run_key(run.config))
  places = run.layout.at_rest(abstract)
  start = jax.jit(initial, out_shardings=places)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract.params))
  run.progress.say(
    f'{count:,} parameters, {len(run.plan.shapes)} batch shapes, '
    f'{run.plan.padding:.1%} padding'
  )
  # A run whose checkpoints are all bad does not begin again without a word.
  if hosts.agreed(run.checkpoints.begun()):
    state = run.checkpoints.restore(sharding.placed(abstract, places))
    run.progress.say(f'resumed at step {int(state.step)}')
  else:
    state = begun_elsewhere(run, start(run_key(run.config)))
  if hosts.first():
    run.metrics.cut_back(int(state.step))
  return state


def begun_elsewhere(run: Run, state: State) -> State:
  """The first state with the parameters that the run begins with, if any.

  Step, schedule and moments are those of a new run.
  """
  if run.origin is None:
    return state
  own = dict(params=state.params, statistics=state.statistics)
  origin.verify(run.origin)
  try:
    found = origin.weights(run.origin, own)
  except ConfigError:
    forget(run)
    raise
  places = jax.tree.map(lambda x: x.sharding, own)
  run.progress.say(f'parameters of {run.origin.place}')
  copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=places)
  return state._replace(**copy(found))


def admitted_steps(
  run: Run,
  state: State,
  compiling: compiled.Compiling = contextlib.nullcontext,
) -> compiled.Steps:
  """The training step, compiled for the largest batch, which fits.

  Raises:
    ConfigError: it does not.
  """
  config = run.config
  steps = compiled.Steps(
    jax.jit(
      train_steps(config, run.model, run.layout),
      donate_argnums=0,
      **run.layout.outputs(state),
    ),
    config,
    compiling,
  )
  largest = compiled.largest_batches(config, run.plan.shapes)
  batches = run.layout.batch(largest, config.optim.accumulate)
  rest = np.int32(1), run_key(config), numbers(config)
  try:
    compiled.admit(steps, (state, batches, *rest))
  except ConfigError:
    forget(run)
    raise
  return steps


def forget(run: Run) -> None:
  """A refused run that has saved nothing leaves the folder to others."""
  if hosts.first() and not run.checkpoints.begun():
    (run.folder / 'config.json').unlink(missing_ok=True)
    if run.learned:
      shutil.rmtree(run.folder / 'vocabulary', ignore_errors=True)
