"""The report of a made-up study: words, pictures, one closed page."""

import base64
import io
import json
import os
import pathlib
import re
import shutil
import types
from xml.etree import ElementTree

import pytest

from tests.ablation.report import study_folder
from tests.ablation.report.study_folder import EVIL, SMALL, table3_study
from transformer_jax.ablation import checks, declaration, folder, report, stats
from transformer_jax.ablation.report import (
  contents,
  fonts,
  markdown,
  reading,
  tables,
)
from transformer_jax.ablation.study import Arm, Primary, Study
from transformer_jax.config import ConfigError


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  made = study_folder.make(tmp_path_factory.mktemp('study'), extra=EVIL)
  report.write(made)
  return made


@pytest.fixture(scope='module')
def page(place):
  return (place / 'report/index.html').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def results(place):
  return reading.read(place)


def test_files(place):
  made = {path.name for path in (place / 'report').iterdir()}
  assert made == {
    'index.html',
    'report.md',
    'results.csv',
    'summary.json',
    'figures',
  }
  for name in (folder.TABLE, folder.SUMMARY):
    copy = (place / 'report' / name).read_bytes()
    assert copy == (place / name).read_bytes()


def test_workers_that_end_together_write_it_at_once(
  place, tmp_path, monkeypatch
):
  """Before each rename and removal of one, another writes it all."""
  copy = tmp_path / 'copy'
  shutil.copytree(place, copy, ignore=shutil.ignore_patterns('report'))
  picture = types.SimpleNamespace(name='one', svg=b'<svg/>')
  made = types.SimpleNamespace(pictures=[picture])
  monkeypatch.setattr(contents, 'gather', lambda _: made)
  monkeypatch.setattr(markdown, 'render', lambda _: 'text')
  monkeypatch.setattr(report, '_page', lambda _: 'page')
  report.write(copy)
  old = copy / 'report/figures/old.svg'
  old.touch()
  alone = []

  def meanwhile(act):
    def wrapped(*args, **kwargs):
      if not alone:
        alone.append(True)
        report.write(copy)
        alone.clear()
      return act(*args, **kwargs)

    return wrapped

  monkeypatch.setattr(os, 'replace', meanwhile(os.replace))
  monkeypatch.setattr(pathlib.Path, 'unlink', meanwhile(pathlib.Path.unlink))
  report.write(copy)
  test_files(copy)
  assert os.listdir(old.parent) == ['one.svg']
  assert (old.parent / 'one.svg').read_bytes() == picture.svg


def test_the_page_asks_for_nothing(page):
  """Every address is inside the page, and there is no program in it."""
  addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')>\s]+)', page)
  assert len(addresses) > 20
  assert all(address.startswith('data:') for address in addresses)
  assert '<script' not in page
  assert '@import' not in page


def test_names_are_text(place, page):
  assert (
    '&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; | `한글`' in page
  )
  markdown = (place / 'report/report.md').read_text(encoding='utf-8')
  assert '\\<script\\>' in markdown
  assert '<script' not in markdown.replace('\\<', '')
  for path in (place / 'report/figures').iterdir():
    tags = [node.tag for node in ElementTree.parse(path).iter()]
    assert not any('script' in tag for tag in tags), path


def test_answers_are_the_verdicts_in_both_languages(results, page):
  found = contents.sentences(results)
  rows = [row for row in results.comparisons if row['primary']]
  assert [one.verdict for one in found] == [row['verdict'] for row in rows]
  assert len(found) == 4  # two comparisons, by the paper's recipe and tuned
  assert [one.phase for one in found] == ["the paper's recipe"] * 2 + [
    'tuned learning rate, basin 2 octaves (baseline 2)'
  ] * 2
  assert 'so up to 10 % in either' in page
  assert stats.promise(results.rows('paper')) == ''
  first, second = found[:2]
  assert first.verdict == 'not enough evidence'
  assert '1 of 5 runs of scale=none diverged.' in first.en
  assert 'seeds would be enough' in first.en
  assert '근거가 부족합니다' in first.ko
  assert '1회가 발산했습니다' in first.ko
  assert second.verdict == 'equivalent'
  assert 'within the margin of 0.05' in second.en
  for one in found:
    assert one.en in page
    assert one.ko in page


def test_every_part_of_the_page(page):
  parts = (
    'Variants, the paper&#39;s recipe',
    'Variants, tuned learning rate',
    'At equal time',
    'Other metrics',
    'octaves',
    'Learning rates',
    'Tests, pairing and failures',
    'Learning curves',
    'Quality against cost',
    'Why: probes',
    'Probes at the end of training',
    'key gradient',  # Not drawn: the table has it.
    'The same sentence: encoder-decoder attention',
    'What was run',
    'study hash',
    'scorer signature',
    'arms vary together',
    'exact McNemar',
    'python -m experiments.ablate --study=scaling',
    '왜 √d_k로 나눕니까?',
  )
  for part in parts:
    assert part in page, part


def test_hangul_has_its_font(page):
  """A machine without Korean fonts shows letters, not boxes."""
  from fontTools import ttLib

  coded = re.search(r'data:font/woff;base64,([^"]+)"', page)
  assert coded is not None
  font = ttLib.TTFont(io.BytesIO(base64.b64decode(coded.group(1))))
  wanted = {ord(letter) for letter in page if fonts.is_hangul(letter)}
  assert len(wanted) > 200
  assert wanted <= (font.getBestCmap() or {}).keys()


def test_hangul_in_pictures(place):
  """As outlines; that none is missing, matplotlib's warning would tell."""
  maps = list((place / 'report/figures').glob('attention-cross-*.svg'))
  assert len(maps) == 5
  for path in maps:
    assert fonts.FAMILY in path.read_text(encoding='utf-8')


def test_the_same_results_give_the_same_bytes(tmp_path):
  study_folder.make_bare(tmp_path, table3_study(**SMALL))
  report.write(tmp_path)
  files = sorted(p for p in (tmp_path / 'report').rglob('*') if p.is_file())
  before = [path.read_bytes() for path in files]
  assert any(path.suffix == '.svg' for path in files)
  report.write(tmp_path)
  assert [path.read_bytes() for path in files] == before


def test_flops_are_said_to_be_of_products(results, page):
  table = tables.arms(results, 'paper')
  assert 'product FLOPs a token' in table.columns
  assert 'tanh of additive scores' in table.note
  assert 'of matrix products a token' in page


def test_a_few_results_are_enough(tmp_path):
  """No probes, maps, tuning or costs: the report is shorter, not broken."""
  study = Study(
    name='small',
    question='A question?',
    paper='',
    axes=('model.scale',),
    baseline={},
    arms=(Arm('a', {}), Arm('b', {'model.scale': 'none'})),
    primary=(Primary('b', 'a'),),
    seeds=1,
    looks=(1,),
  )
  study_folder.make_bare(tmp_path, study)
  text = report.write(tmp_path).read_text(encoding='utf-8')
  assert 'fewer than three seeds' in text
  assert 'Why: probes' not in text


@pytest.mark.parametrize(
  'missing, said',
  [('study.json', 'no study.json'), ('summary.json', 'no results yet')],
)
def test_folders_without_results(missing, said, tmp_path):
  study_folder.make_bare(tmp_path, study_folder.declaration())
  (tmp_path / missing).unlink()
  with pytest.raises(ConfigError, match=said):
    report.write(tmp_path)


def test_hint_for_an_unfinished_study_repeats_its_fields(tmp_path):
  given = {'data.source': 'files:my corpus'}
  study = checks.with_overrides(study_folder.declaration(), given)
  declaration.declare(tmp_path, study, seeds=2, overrides=given)
  with pytest.raises(
    ConfigError, match="--seeds=2 '--data.source=files:my corpus'$"
  ):
    report.write(tmp_path)


def test_summary_is_json_for_others(place):
  rows = json.loads((place / 'report/summary.json').read_text('utf-8'))
  assert {row['variant'] for row in rows} >= {'scale=none', EVIL}
