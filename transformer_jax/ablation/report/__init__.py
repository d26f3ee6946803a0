"""A study's folder to one page: answers, tables, pictures; English and Korean.

`write` reads result files only. The page is one file that needs no network
and no font of the reader's machine; Markdown, CSV and JSON lie beside it.
"""

import pathlib
import re
import shutil

from transformer_jax.ablation import folder
from transformer_jax.ablation.report import reading
from transformer_jax.training.record import write_atomically

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
  for old in pictures.glob('*.svg'):
    old.unlink()
  for picture in contents.pictures:
    (pictures / f'{picture.name}.svg').write_bytes(picture.svg)
  for name in (folder.TABLE, folder.SUMMARY):
    shutil.copyfile(results.path / name, report / name)
  write_atomically(report / 'report.md', markdown.render(contents))
  page = report / 'index.html'
  write_atomically(page, _page(contents))
  return page
