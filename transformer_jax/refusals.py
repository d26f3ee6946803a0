"""Which values cannot stand together, and why: one table (pure).

`rules.validate` refuses a config by the first row that speaks of it. What no
row refuses trains: the tests walk every pair of choices.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from transformer_jax.config import SIDES, SITES, Config
from transformer_jax.fields import FIELDS, OWN_CHOICES, flatten


class Refusal(NamedTuple):
  """A row.

  fields: the dotted paths that it is about.
  refused: whether a config is refused by it.
  reason: one line for that config, with the mend.
  """

  fields: tuple[str, ...]
  refused: Callable[[Config], bool]
  reason: Callable[[Config], str]


def scales(config: Config) -> set[str]:
  """The scales of all sites."""
  return {config.model.at('scale', site) for site in SITES}


def positions(config: Config) -> set[str]:
  """The position codes of both stacks."""
  return {config.model.at('position', side) for side in SIDES}


def folded(config: Config) -> bool:
  ways = {'folded_init', 'folded_rate', 'folded_init_rate'}
  return bool(scales(config) & ways)


def position_width(config: Config) -> int:
  """Of the table that is joined to the embeddings."""
  narrow = config.model.position_join == 'concat_narrow'
  return config.model.d_position if narrow else config.model.d_model


class Reader(NamedTuple):
  """Who reads a field: where one of `fields` has one of `choices`."""

  fields: tuple[str, ...]
  choices: tuple[str, ...]


_BEAM = Reader(('decode.strategy',), ('beam',))
_SAMPLE = Reader(('decode.strategy',), ('sample',))
_SYMBOLS = Reader(
  ('data.source',),
  ('task:copy', 'task:reverse', 'task:sort', 'task:recall', 'task:long_range'),
)
_TASKS = Reader(('data.source',), (*_SYMBOLS.choices, 'task:korean'))
# Fields that are read under some choices alone.
READERS = {
  'decode.beam_size': _BEAM,
  'decode.penalty': _BEAM,
  'decode.alpha': _BEAM,
  'decode.stop': _BEAM,
  'decode.temperature': _SAMPLE,
  'decode.top_k': _SAMPLE,
  'decode.seed': _SAMPLE,
  'data.task_min_length': _SYMBOLS,
  'data.task_max_length': _SYMBOLS,
  'data.task_symbols': _SYMBOLS,
  'data.task_noise': _SYMBOLS,
  'data.task_distance': Reader(('data.source',), ('task:long_range',)),
  'data.task_train_size': _TASKS,
  'data.task_held_out': _TASKS,
  'model.d_position': Reader(('model.position_join',), ('concat_narrow',)),
  'model.max_positions': Reader(
    ('model.position', 'model.position_decoder'), ('learned',)
  ),
  'optim.warmup_steps': Reader(('optim.schedule',), ('paper', 'inverse_sqrt')),
}


def unread(config: Config, given: Iterable[str]) -> str:
  """Why one of the fields would be set for nothing; '' if none would.

  Args:
    config: the whole of it.
    given: dotted paths; one at its default is as good as not given.
  """
  values = flatten(config)
  for path in given:
    usual = FIELDS[path].default
    if path not in READERS or values[path] == usual:
      continue
    fields, choices = READERS[path]
    now = {field: values[field] for field in fields}
    # A choice from outside may read what it likes.
    outside = any(
      OWN_CHOICES[field] and now[field] not in OWN_CHOICES[field]
      for field in fields
    )
    if outside or set(now.values()) & set(choices):
      continue
    readers = [f'{field}={" or ".join(choices)}' for field in fields]
    found = ', '.join(f'{field}={choice}' for field, choice in now.items())
    return (
      f'{path}={values[path]} is read by {" or ".join(readers)} alone, not by '
      f'{found}: take --{fields[0]}={choices[0]}, or leave {path} at {usual}'
    )
  return ''


_SCALES = ('model.scale', *(f'model.scale_{site}' for site in SITES))
_POSITIONS = ('model.position', 'model.position_decoder')
# What draws is set in the hope of samples: a beam would be no answer.
_DRAWS = ('decode.temperature', 'decode.top_k')

REFUSALS: tuple[Refusal, ...] = (
  Refusal(
    ('model.position_join', 'model.tie'),
    lambda c: (
      c.model.position_join == 'concat_narrow' and c.model.tie != 'none'
    ),
    lambda c: (
      'model.position_join=concat_narrow makes the embedding narrower than '
      'the output layer: take --model.tie=none'
    ),
  ),
  Refusal(
    ('model.position_join', 'model.d_position', 'model.d_model'),
    lambda c: (
      c.model.position_join == 'concat_narrow'
      and c.model.d_position >= c.model.d_model
    ),
    lambda c: (
      f'model.d_position={c.model.d_position} leaves no width of '
      f'model.d_model={c.model.d_model} for the token; take less'
    ),
  ),
  Refusal(
    ('model.position_join', *_POSITIONS),
    lambda c: (
      c.model.position_join != 'add'
      and bool(positions(c) & {'none', 'rotary', 'relative'})
    ),
    lambda c: (
      'rotary and relative positions enter attention, and none is none: they '
      f'leave nothing for model.position_join={c.model.position_join}; take '
      '--model.position_join=add'
    ),
  ),
  Refusal(
    (*_POSITIONS, 'model.d_model', 'model.d_position'),
    lambda c: 'sinusoid' in positions(c) and position_width(c) % 2 == 1,
    lambda c: (
      f'model.d_model={c.model.d_model} must be even: a sinusoid has pairs of '
      'sine and cosine (or take --model.position=learned)'
      if c.model.position_join != 'concat_narrow'
      else f'model.d_position={c.model.d_position} must be even: a sinusoid '
      'has pairs of sine and cosine'
    ),
  ),
  Refusal(
    (*_POSITIONS, 'model.d_k'),
    lambda c: 'rotary' in positions(c) and c.model.d_k % 2 == 1,
    lambda c: (
      f'model.d_k={c.model.d_k} must be even: rotary turns pairs of features'
    ),
  ),
  Refusal(
    (*_POSITIONS, 'model.max_positions', 'data.max_length'),
    lambda c: any(
      (c.model.longest(side) or c.data.max_length) < c.data.max_length
      for side in SIDES
    ),
    lambda c: (
      f'model.max_positions={c.model.max_positions} is less than '
      f'data.max_length={c.data.max_length}; raise it or shorten the sentences'
    ),
  ),
  Refusal(
    ('model.score', *_POSITIONS),
    lambda c: (
      'rotary' in positions(c)
      and c.model.score in ('additive', 'general', 'uniform')
    ),
    lambda c: (
      'model.position=rotary says how far apart tokens are only through a '
      f'product of query and key, not through model.score={c.model.score}: '
      'take dot or cosine'
    ),
  ),
  Refusal(
    ('model.score', *_SCALES),
    lambda c: folded(c) and c.model.score not in ('dot', 'general'),
    lambda c: (
      'a scale can be folded into the query only where the score is '
      f'proportional to it, unlike model.score={c.model.score}: take dot or '
      'general'
    ),
  ),
  Refusal(
    ('model.score', *_SCALES),
    lambda c: c.model.score == 'uniform' and scales(c) != {'rsqrt_d_k'},
    lambda c: (
      'model.score=uniform is 0 at every scale: leave model.scale and those '
      'of the sites as they are'
    ),
  ),
  Refusal(
    ('model.score', 'model.query_key_init'),
    lambda c: c.model.score == 'uniform' and c.model.query_key_init != 'recipe',
    lambda c: (
      'model.score=uniform reads neither queries nor keys: leave '
      'model.query_key_init at recipe'
    ),
  ),
  Refusal(
    ('model.score', 'model.projections'),
    lambda c: (
      c.model.score == 'uniform' and c.model.projections == 'shared_query_key'
    ),
    lambda c: (
      'model.score=uniform reads neither queries nor keys: '
      'model.projections=shared_query_key would change nothing, take separate'
    ),
  ),
  Refusal(
    ('model.projections', *_SCALES),
    lambda c: (
      folded(c) and c.model.projections in ('shared_query_key', 'identity')
    ),
    lambda c: (
      'a scale is folded into weights that are of the query alone; '
      f'model.projections={c.model.projections} has none'
    ),
  ),
  Refusal(
    ('model.projections', 'model.heads', 'model.d_k', 'model.d_model'),
    lambda c: (
      c.model.projections == 'identity'
      and c.model.heads * c.model.d_k != c.model.d_model
    ),
    lambda c: (
      'model.projections=identity cuts the embedding into heads: model.heads '
      f'x model.d_k must be model.d_model={c.model.d_model}, not '
      f'{c.model.heads} x {c.model.d_k}'
    ),
  ),
  Refusal(
    ('model.projections', 'model.d_k', 'model.d_v'),
    lambda c: (
      c.model.projections in ('identity', 'shared_key_value')
      and c.model.d_k != c.model.d_v
    ),
    lambda c: (
      f'model.projections={c.model.projections} has keys that are values: '
      f'model.d_v={c.model.d_v} must be model.d_k={c.model.d_k}'
    ),
  ),
  Refusal(
    ('model.projections', 'model.query_key_init'),
    lambda c: (
      c.model.projections == 'identity' and c.model.query_key_init != 'recipe'
    ),
    lambda c: (
      f'model.query_key_init={c.model.query_key_init} is about initial '
      'weights, and model.projections=identity has none: leave it at recipe'
    ),
  ),
  Refusal(
    ('model.projections', 'model.head_init'),
    lambda c: c.model.projections == 'identity' and c.model.head_init != 'own',
    lambda c: (
      f'model.head_init={c.model.head_init} is about initial weights, and '
      'model.projections=identity has none: leave it at own'
    ),
  ),
  Refusal(
    ('model.head_init', 'model.heads'),
    lambda c: c.model.head_init != 'own' and c.model.heads == 1,
    lambda c: (
      f'model.head_init={c.model.head_init} compares heads, and model.heads=1 '
      'has no other: leave it at own'
    ),
  ),
  Refusal(
    (
      'model.output_projection',
      'model.heads',
      'model.d_v',
      'model.d_model',
    ),
    lambda c: (
      c.model.output_projection == 'none'
      and c.model.heads * c.model.d_v != c.model.d_model
    ),
    lambda c: (
      'model.output_projection=none puts the heads side by side: model.heads '
      f'x model.d_v must be model.d_model={c.model.d_model}, not '
      f'{c.model.heads} x {c.model.d_v}'
    ),
  ),
  Refusal(
    ('model.norm', 'model.norm_order'),
    lambda c: c.model.norm == 'none' and c.model.norm_order != 'post',
    lambda c: (
      f'model.norm_order={c.model.norm_order} places a norm, and '
      'model.norm=none has none: leave it at post'
    ),
  ),
  Refusal(
    ('model.norm', 'optim.accumulate'),
    lambda c: c.model.norm == 'batch' and c.optim.accumulate > 1,
    lambda c: (
      'model.norm=batch takes its moments over the whole batch: '
      f'optim.accumulate={c.optim.accumulate} must be 1'
    ),
  ),
  Refusal(
    ('model.tie', 'data.vocabulary'),
    lambda c: c.model.tie == 'all' and c.data.vocabulary == 'separate',
    lambda c: (
      'model.tie=all needs data.vocabulary=joint; take --model.tie=decoder'
    ),
  ),
  Refusal(
    (
      'model.attention_implementation',
      'model.score',
      'model.attention_dropout',
    ),
    lambda c: (
      c.model.attention_implementation == 'fused'
      and (c.model.score != 'dot' or c.model.attention_dropout > 0)
    ),
    lambda c: (
      'model.attention_implementation=fused computes model.score=dot without '
      'attention dropout only: take blockwise'
    ),
  ),
  Refusal(
    ('model.attention_implementation', 'model.score', *_POSITIONS),
    lambda c: (
      c.model.attention_implementation == 'kernel'
      and (c.model.score != 'additive' or 'relative' in positions(c))
    ),
    lambda c: (
      'model.attention_implementation=kernel computes model.score=additive '
      'without relative positions only: take blockwise'
    ),
  ),
  Refusal(
    ('decode.strategy', *_DRAWS),
    lambda c: unread(c, _DRAWS) != '',
    lambda c: unread(c, _DRAWS),
  ),
  Refusal(
    ('decode.strategy', 'decode.n_best'),
    lambda c: c.decode.strategy == 'greedy' and c.decode.n_best > 1,
    lambda c: 'decode.n_best needs --decode.strategy=beam or sample',
  ),
  Refusal(
    ('decode.strategy', 'decode.n_best', 'decode.beam_size'),
    lambda c: (
      c.decode.strategy == 'beam' and c.decode.n_best > c.decode.beam_size
    ),
    lambda c: (
      f'decode.n_best={c.decode.n_best} is more than '
      f'decode.beam_size={c.decode.beam_size}'
    ),
  ),
  Refusal(
    ('data.task_min_length', 'data.task_max_length'),
    lambda c: c.data.task_min_length > c.data.task_max_length,
    lambda c: (
      f'data.task_min_length={c.data.task_min_length} is more than '
      f'data.task_max_length={c.data.task_max_length}'
    ),
  ),
  Refusal(
    ('data.max_tokens', 'data.max_length'),
    lambda c: c.data.max_tokens < 8 * c.data.max_length,
    lambda c: (
      f'data.max_tokens={c.data.max_tokens} does not hold 8 sentences of '
      f'data.max_length={c.data.max_length}'
    ),
  ),
)
