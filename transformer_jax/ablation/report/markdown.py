"""The report in Markdown: the same words and tables, pictures as files."""

from collections.abc import Sequence

from transformer_jax.ablation.report.contents import MARKS, Contents
from transformer_jax.ablation.report.style import Picture
from transformer_jax.ablation.report.tables import Table

SIGNS = str.maketrans({sign: f'\\{sign}' for sign in r'\`*_[]<>|#'})


def escape(text: str) -> str:
  """Text that Markdown shows as it is.

  >>> escape('<b> a_b')
  '\\\\<b\\\\> a\\\\_b'
  """
  return ' '.join(text.split()).translate(SIGNS)


def _row(cells: Sequence[str]) -> str:
  return f'| {" | ".join(escape(cell) for cell in cells)} |'


def _table(table: Table) -> list[str]:
  rule = f'|{"---|" * len(table.columns)}'
  rows = [_row(row) for row in table.rows]
  note = ['', escape(table.note)] if table.note else []
  return [
    f'### {escape(table.title)}',
    '',
    _row(table.columns),
    rule,
    *rows,
    *note,
    '',
  ]


def _gallery(title: str, pictures: Sequence[Picture]) -> list[str]:
  if not pictures:
    return []
  lines = [f'## {title}', '']
  for picture in pictures:
    lines += [
      f'![{escape(picture.alt)}](figures/{picture.name}.svg)',
      '',
      escape(picture.caption),
      '',
    ]
  return lines


def render(contents: Contents) -> str:
  """report.md, beside a folder `figures`."""
  lines = [
    f'# {escape(contents.question)}',
    '',
    escape(f'Study {contents.name}. {contents.paper}'),
    '',
    '## Answer',
    '',
  ]
  for answer in contents.answers:
    sign = MARKS[answer.verdict]
    lines.append(f'- {sign} *{answer.phase}*: {escape(answer.en)}')
    lines.append(f'  <br>{escape(answer.ko)}')
  lines += ['', *map(escape, contents.warnings), '']
  lines += [*_gallery('Differences', contents.forests), '## Variants', '']
  for table in contents.variants:
    lines += _table(table)
  for title, pictures in contents.galleries:
    lines += _gallery(title, pictures)
  lines += ['## Beside it', '']
  for table in contents.more:
    lines += _table(table)
  lines += ['## To repeat it', '', *_table(contents.ran)]
  lines += [f'- {word}: {escape(value)}' for word, value in contents.facts]
  lines += ['', '```', contents.command, '```', '']
  lines += [
    'Questions, answers and commands: experiments/QUESTIONS.md, '
    'experiments/QUESTIONS.ko.md.',
  ]
  return '\n'.join(lines) + '\n'
