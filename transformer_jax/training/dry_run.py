"""What a run would be: its data, shapes, size and step, before it is begun.

The data is read and the step compiled, both into their caches, so that the run
itself begins the sooner. The run's folder stays as it is.
"""

import math
import pathlib
from typing import Any

import jax
import numpy as np

from transformer_jax.config import Config
from transformer_jax.data.batches import EndlessPlan, Plan
from transformer_jax.data.corpus import Corpus
from transformer_jax.fields import difference
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import (
  compiled,
  fit,
  hosts,
  origin,
  products,
  setup,
  sharding,
)
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.state import (
  Alone,
  State,
  initial_state,
  numbers,
  run_key,
  train_step,
  train_steps,
)

Rows = list[tuple[str, str]]
MIB = 2**20


def show(config: Config, *, workdir: str, init_from: str = '') -> None:
  """Prints what `loop.train` would do with the same arguments.

  Raises:
    ConfigError: it would be refused.
  """
  compiled.use_cache(config)
  layout = sharding.layout(config.mesh)
  folder = pathlib.Path(workdir).expanduser()
  # A vocabulary that is there is the run's; where none is, none is saved.
  own = str(folder) if (folder / 'vocabulary').is_dir() else None
  with hosts.first_alone():
    corpus, _, begun_from = setup.admitted(
      config, folder, vocabulary_in=own, init_from=init_from, say=hosts.say
    )
  plan, model = setup.planned(config, corpus, layout, hosts.say)
  key = run_key(config)
  state = jax.eval_shape(initial_state(config, model), key)
  state = sharding.placed(state, layout.at_rest(state))
  lines = [
    ('folder', _place(folder, begun_from, state)),
    ('changed', _changes(config)),
    *_data(config, corpus, plan),
    *_step(config, model, plan, layout, state),
  ]
  width = max(len(name) for name, _ in lines)
  with hosts.first_speaks():
    for name, value in lines:
      print(f'{name:<{width}}  {value}'.rstrip())


def _place(
  folder: pathlib.Path, begun_from: origin.Origin | None, state: State
) -> str:
  """Where it would begin, or go on."""
  latest = Checkpoints(folder / 'checkpoints').latest()
  if latest is not None:
    return f'{folder}, goes on from step {latest}'
  if begun_from is None:
    return f'{folder}, from initial values'
  own = dict(params=state.params, statistics=state.statistics)
  origin.verify(begun_from)
  origin.weights(begun_from, own)
  return f'{folder}, from the parameters of {begun_from.place}'


def _changes(config: Config) -> str:
  """Fields that are not at their default."""
  found = difference(Config(), config)
  named = [f'{path}={new}' for path, (_, new) in found.items()]
  return ' '.join(named) or 'nothing: the base model of the paper'


def _data(config: Config, corpus: Corpus, plan: Plan | EndlessPlan) -> Rows:
  """Pairs, pieces and batches."""
  data, steps = config.data, plan.steps_per_epoch
  source, target = corpus.vocabularies
  held_out = dict.fromkeys((data.validation_split, data.test_split))
  training = 'without end'
  if isinstance(plan, Plan):
    training = f'{len(corpus.pairs(data.train_split)):,} pairs'
  pieces = f'{source.size:,}'
  if source is not target:
    pieces += f' of the source, {target.size:,} of the target'
  shapes = ', '.join(
    f'{x.rows} x {x.source_length} + {x.target_length}' for x in plan.shapes
  )
  epochs = ''
  if steps:
    epochs = f', {steps:,} an epoch: {config.train.steps / steps:.1f} epochs'
  return [
    ('data', f'{data.source} {data.pair}'),
    (data.train_split, training),
    *((name, f'{len(corpus.pairs(name)):,} pairs') for name in held_out),
    ('vocabulary', f'{pieces} pieces'),
    ('batches', f'{shapes} (rows x source + target)'),
    ('padding', f'{plan.padding:.1%}'),
    ('steps', f'{config.train.steps:,}{epochs}'),
  ]


def _step(
  config: Config,
  model: Transformer,
  plan: Plan | EndlessPlan,
  layout: Alone,
  state: State,
) -> Rows:
  """Parameters, memory and products, of the batch that takes the most.

  Raises:
    ConfigError: it does not fit.
  """
  jitted = jax.jit(
    train_steps(config, model, layout),
    donate_argnums=0,
    **layout.outputs(state),
  )
  steps = compiled.Steps(jitted, config)
  largest: Any = compiled.largest_batches(config, plan.shapes)
  rest = run_key(config), numbers(config)
  parts = config.optim.accumulate
  call = state, layout.batch(largest, parts), np.int32(1), *rest
  peak, room = fit.peak(steps.program(*call)), steps.room(state)
  fit.admit(peak, room)
  one = layout.batch(jax.tree.map(lambda x: x[0], largest), parts)
  flops = products.flops(train_step(config, model, layout), state, one, *rest)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
  rows, *lengths = largest.source_BS.shape[1:] + largest.target_BT.shape[2:]
  return [
    ('parameters', f'{count:,}'),
    (
      'peak memory',
      f'{peak / MIB:,.1f} MiB of {room.memory / MIB:,.0f} '
      f'({peak / room.memory:.1%}), on each of {room.devices} x {room.kind}',
    ),
    (
      'products',
      f'{flops / 1e9:,.3f} GFLOP a step of {rows} x {lengths[0]} + '
      f'{lengths[1]}',
    ),
  ]
