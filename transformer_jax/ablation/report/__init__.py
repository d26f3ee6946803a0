"""A study's folder to one page: answers, tables, pictures; English and Korean.

`write` reads result files only. The page is one file that needs no network
and no font of the reader's machine; Markdown, CSV and JSON lie beside it.
"""

import pathlib
import re

from transformer_jax.ablation import folder
from transformer_jax.ablation.report import reading

NUMBER = re.compile(r'[+\u2212]?[\d,.]+( [kMG%×])?$')


def _page(contents) -> str:
  import jinja2

  from transformer_jax.ablation.report import fonts
  from transformer_jax.ablation.report.contents import MARKS

  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('transformer_jax.ablation', 'report'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
  )
  environment.filters['is_number'] = lambda cell: bool(NUMBER.match(cell))
  template = environment.get_template('page.html.j2')
  words = dict(contents._asdict(), marks=MARKS)
  # Twice: which letters the font must have is known when the page is written.
  font = fonts.web_font(template.render(words, font=''))
  return template.render(words, font=font)


def write(workdir: str | pathlib.Path) -> pathlib.Path:
  """Write WORKDIR/report; the path of its page.

  Workers that end together may write at the same time: each file is whole.

  Raises:
    ConfigError: the folder holds no study with results, or a damaged file.
  """
  from transformer_jax.ablation.report import markdown
  from transformer_jax.ablation.report.contents import gather

  results = reading.read(workdir)
  contents = gather(results)
  report = results.path / 'report'
  pictures = report / 'figures'
  pictures.mkdir(parents=True, exist_ok=True)
  for picture in contents.pictures:
    text = picture.svg.decode('utf-8')
    folder.write_text(pictures / f'{picture.name}.svg', text)
  drawn = {f'{picture.name}.svg' for picture in contents.pictures}
  for old in pictures.glob('*.svg'):
    if old.name not in drawn:
      old.unlink(missing_ok=True)
  for name in (folder.TABLE, folder.SUMMARY):
    text = (results.path / name).read_text(encoding='utf-8')
    folder.write_text(report / name, text)
  folder.write_text(report / 'report.md', markdown.render(contents))
  page = report / 'index.html'
  folder.write_text(page, _page(contents))
  return page
