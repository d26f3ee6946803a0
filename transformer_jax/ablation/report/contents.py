"""Everything the report shows, worked out once for page and Markdown."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from transformer_jax.ablation import (
  checks,
  declaration,
  evidence,
  sequential,
  stats,
  tuning,
)
from transformer_jax.ablation.cells import arm_config
from transformer_jax.ablation.report import (
  answers,
  figures,
  insight,
  questions,
  table3,
  tables,
)
from transformer_jax.ablation.report.reading import PHASES, TUNED, Results
from transformer_jax.ablation.report.style import Picture
from transformer_jax.ablation.study import WRITTEN, arm_of

# A sign beside each verdict: its colour alone would not be enough.
MARKS = {
  evidence.BETTER: '▲',
  evidence.WORSE: '▼',
  evidence.EQUIVALENT: '≈',
  evidence.NOT_ENOUGH: '?',
  evidence.NOT_SENSITIVE: '∅',
  evidence.NO_VERDICT: '–',
}

# Arms whose maps are shown side by side; of more, those that are judged.
MOST_MAPS = 6


class Answer(NamedTuple):
  """One primary comparison in words."""

  verdict: str
  phase: str
  en: str
  ko: str


class Asked(NamedTuple):
  """A question of the list; here: whether this study asks it."""

  text: Mapping[str, str]
  answer: Mapping[str, str]
  commands: tuple[str, ...]
  here: bool


class Contents(NamedTuple):
  """The report before it has a form."""

  name: str
  question: str
  paper: str
  answers: list[Answer]
  warnings: list[str]
  variants: list[tables.Table]
  forests: list[Picture]
  galleries: list[tuple[str, list[Picture]]]
  more: list[tables.Table]
  ran: tables.Table
  facts: list[tuple[str, str]]
  command: str
  questions: list[Asked]

  @property
  def pictures(self) -> list[Picture]:
    """All of them, in the order of the page."""
    return [
      *self.forests,
      *(picture for _, pictures in self.galleries for picture in pictures),
    ]


def _level(results: Results, row: Mapping[str, Any]) -> str:
  """The level of a primary interval: it holds over all planned looks."""
  looks = results.study.looks
  alpha = 0.05
  if row['primary'] and row['seeds'] in looks:
    alpha = sequential.level_at(row['seeds'], looks)
  return f'{100 * (1 - alpha):.3g} %'


def sentences(results: Results) -> list[Answer]:
  """The primary comparisons in words, in the order of the summary."""
  found = []
  judged = [
    row
    for phase in results.phases
    for row in results.rows(phase)
    if row['primary']
  ]
  for row in judged:
    level = _level(results, row)
    # The phase stands beside the sentence.
    sides = {side: arm_of(row[side]) for side in ('variant', 'baseline')}
    en, ko = (
      answers.sentence({**row, **sides}, language=language, level=level)
      for language in answers.LANGUAGES
    )
    width = tuning.basins(row, results.tuning.get('chosen', {}))
    phase = ', '.join(filter(None, [PHASES[row['phase']], width]))
    found.append(Answer(row['verdict'], phase, en, ko))
  return found


def warnings(results: Results) -> list[str]:
  """What a reader must know before believing an answer."""
  lines = []
  planned = results.study.seeds
  late = sorted({run.seed for run in results.runs if run.seed >= planned})
  if late:
    lines.append(
      f'Exploratory: seeds {", ".join(map(str, late))} were not planned when '
      'the study was declared.'
    )
  judged = [row['seeds'] for row in results.comparisons if row['primary']]
  if judged and min(judged) < planned:
    lines.append(
      f'Not the last look: verdicts are of {min(judged)} of {planned} planned '
      'seeds.'
    )
  doubts = checks.doubts(results.study)
  # A doubt of a study without tuning says the same, and of which axes.
  said = results.study.tuning is None and doubts
  if TUNED not in results.phases and not said:
    lines.append(
      "Every arm ran at the paper's recipe only: a variant that wants another "
      'learning rate is not shown at its best.'
    )
  return lines + doubts


def _data(results: Results) -> str:
  """What was trained and tested on, by content."""
  study = results.study
  data = arm_config(study, study.arms[0]).data
  known = [
    (f'{one["arms"]}: ' if one['arms'] else '')
    + f'training, validation and vocabulary {one["training"][:12]}, '
    f'{data.test_split} {one["test"][:12]}'
    for one in declaration.read_data(results.path)
  ]
  if not known:
    prints = {str(run.body.get('data') or '')[:12] for run in results.runs}
    known = sorted(prints - {''}) or ['content not recorded']
  return f'{data.source}; {"; ".join(known)}'


def _facts(results: Results) -> list[tuple[str, str]]:
  """Study hash, versions, device, scorer: what a repetition must match."""

  def every(name: str) -> str:
    values = dict.fromkeys(
      str(run.body[name]) for run in results.runs if run.body.get(name)
    )
    return '; '.join(values) or 'not recorded'

  versions: dict[str, dict[str, None]] = {}
  for run in results.runs:
    for package, version in (run.body.get('versions') or {}).items():
      versions.setdefault(package, {})[str(version)] = None
  shown = ', '.join(f'{p} {"/".join(v)}' for p, v in versions.items())
  signature = every('signature')
  if signature == 'not recorded':
    signature = (
      'none: loss in nats a token, accuracy and exact match of the '
      'references by teacher forcing'
    )
  counted = len(results.counted.runs)
  more = counted < len(results.runs)
  study = results.study
  if study.free_running:
    # As `generating` writes and scores it.
    split = arm_config(study, study.arms[0]).data.test_split
    signature += (
      f'; {", ".join(study.free_running)} of what the model writes by itself: '
      f'greedy decoding of at most the first {WRITTEN} pairs of {split}'
    )
  return [
    ('study hash', results.hash),
    ('lab note', study.doc or 'none'),
    (
      'shared by all',
      ', '.join(f'{p}={v}' for p, v in study.baseline.items()) or 'defaults',
    ),
    (
      'planned',
      f'{study.seeds} seeds, looks at {", ".join(map(str, study.looks))}',
    ),
    (
      'runs',
      f'{len(results.runs)} finished or diverged'
      + (f'; {counted} of them are in tables and pictures' * more),
    ),
    ('data', _data(results)),
    ('device', every('device')),
    ('versions', shown or 'not recorded'),
    ('scorer signature', signature),
  ]


def _present(pictures: list[Picture | None]) -> list[Picture]:
  return [picture for picture in pictures if picture is not None]


def _attention(results: Results) -> list[tuple[str, list[Picture]]]:
  """Each arm's first run with maps, site by site."""
  names = results.variants
  if len(names) > MOST_MAPS:
    judged = {results.variants[0]}
    for one in results.study.primary:
      judged |= {one.variant, one.baseline}
    names = tuple(name for name in names if name in judged)
  first = {}
  for name in names:
    for phase in results.phases:
      for run in results.of(name, phase):
        if run.attention is not None:
          first.setdefault(name, run)
  return [
    (
      f'The same sentence: {where}',
      _present([insight.attention(run, site) for run in first.values()]),
    )
    for site, where in insight.SITES.items()
  ]


def _probes(results: Results) -> list[Picture]:
  phase = results.phases[0]
  found: list[Picture] = []
  for name in insight.SERIES:
    found += _present([insight.against_d_k(results, phase, name)])
    found += insight.over_training(results, phase, name)
  return found


def _more(results: Results) -> list[tables.Table]:
  """Tables that a reader turns to second."""
  found = [
    made(results, phase)
    for made in (
      tables.equal_time,
      tables.other_metrics,
      tables.pronouns,
      insight.heads,
      insight.alignments,
      insight.places,
      tables.exploratory,
    )
    for phase in results.phases
  ]
  found += [tables.learning_rates(results), tables.pairing(results)]
  found += [insight.table(results, results.phases[0])]
  found += [table3.published(results)]
  return [table for table in found if table is not None]


def _asked(results: Results) -> list[Asked]:
  return [
    Asked(q.text, q.answer, q.commands, results.study.name in q.studies)
    for q in questions.read()
  ]


def _galleries(results: Results) -> list[tuple[str, list[Picture]]]:
  """Pictures by what they are about."""
  phases, metric = results.phases, results.metric
  curves: list[Picture] = []
  # A threshold's steps are read off the loss.
  for one in dict.fromkeys(['loss', metric, 'accuracy']):
    for phase in phases:
      curves += figures.curves(results, phase, 'validation', one)
  costs = _present(
    [
      figures.quality_against_cost(results, phase, metric, cost)
      for phase in phases
      for cost in figures.COSTS
    ]
  )
  return [
    ('Learning curves', curves),
    ('Quality against cost', costs),
    ('Learning rates', figures.learning_rates(results)),
    ('Why: probes', _probes(results)),
    *_attention(results),
  ]


def gather(results: Results) -> Contents:
  """Tables, sentences and pictures of a study."""
  study, counted = results.study, results.counted
  return Contents(
    name=study.name,
    question=study.question,
    paper=study.paper,
    answers=sentences(results),
    warnings=warnings(results)
    + list(filter(None, [stats.promise(results.comparisons)])),
    variants=[tables.arms(counted, phase) for phase in results.phases],
    forests=_present([figures.forest(results, results.metric)]),
    galleries=_galleries(counted),
    more=_more(counted),
    ran=tables.what_ran(results),
    facts=_facts(results),
    command=declaration.command(results.path, study),
    questions=_asked(results),
  )
