"""The report of a made-up study: words, tables, pictures, one closed page."""

import base64
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import types
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.ablation.report import study_folder
from transformer_jax.ablation import (
  checks,
  declaration,
  folder,
  published,
  report,
  stats,
)
from transformer_jax.ablation.report import (
  contents,
  fonts,
  insight,
  markdown,
  reading,
  style,
  table3,
  tables,
)
from transformer_jax.ablation.study import Arm, Primary, Study
from transformer_jax.config import ConfigError

EVIL = '<script>alert("x")</script> & | `한글` $a_b$'


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


def test_variants_table(results):
  table = tables.arms(results, 'paper')
  assert len(table.rows) == 5
  row = dict(zip(table.columns, table.rows[2], strict=True))
  summary = results.comparisons[1]
  assert row['variant'] == summary['variant'] == 'score=additive'
  assert row['verdict'] == 'equivalent'
  assert row['parameters'] == '171,264'
  assert row['product FLOPs a token'] == '2.42 M'
  assert row['ms a step'] == '7.48'
  assert row['memory, MiB'] == '–'  # not recorded is not zero


def test_equal_time_reads_the_slow_arm_earlier(results):
  """The quick arms end after 400 x 3.4 ms; additive is at 181 steps then."""
  table = tables.equal_time(results, 'paper')
  assert table is not None
  rows = {row[0]: row for row in table.rows}
  additive = results.of('score=additive', 'paper')
  at_100 = [dict(run.curves['validation']['loss'])[100] for run in additive]
  assert rows['score=additive'][1] == f'{np.mean(at_100):.2f}'
  assert rows['scale=none'][-1] == 'a run diverged: not compared'


def test_seeds_that_were_not_planned_are_said_so(results):
  late = results.runs[0]._replace(seed=7)
  more = results._replace(runs=(*results.runs, late))
  found = contents.warnings(more)
  assert found == [
    'Exploratory: seeds 7 were not planned when the study was declared.'
  ]


def with_runs_of(results, seed):
  """The last seed of every arm once more: far from the others, and failed."""
  last = [run for run in results.runs if run.seed == 4]
  far = {'unigram_loss': 99.0}
  late = [
    run._replace(
      seed=seed,
      diverged=True,
      body={**run.body, 'metrics': far, 'step_seconds': 5.0},
    )
    for run in last
  ]
  return results._replace(runs=(*results.runs, *late))


@pytest.mark.parametrize('looks', [(5,), (5, 9)])
def test_what_no_verdict_counts_is_in_no_table_beside_it(
  results, looks, monkeypatch
):
  """Seeds 5 to 7 were not planned, or come after the look at 5."""
  monkeypatch.setattr(
    style, 'draw', lambda *words, height: style.Picture(*words[:3], svg=b'')
  )
  study = dataclasses.replace(results.study, seeds=looks[-1], looks=looks)
  before = results._replace(study=study)
  more = with_runs_of(with_runs_of(before, 5), 7)
  # Of the next look, of one arm only.
  more = more._replace(runs=(*more.runs, results.runs[0]._replace(seed=6)))
  assert tables.arms(more, 'paper') != tables.arms(before, 'paper')
  old, new = contents.gather(before), contents.gather(more)
  assert new.variants == old.variants and new.more == old.more
  assert new.pictures == old.pictures
  # What was run is told whole.
  assert new.ran != old.ran
  assert dict(new.facts)['runs'] == (
    f'{len(more.runs)} finished or diverged; {len(before.runs)} of them are in '
    'tables and pictures'
  )
  assert 'of them' not in dict(old.facts)['runs']


def test_a_grid_of_one_warmup_is_said(results):
  one = dataclasses.replace(results.study.tuning, warmups=(20,))
  study = dataclasses.replace(results.study, tuning=one)
  assert contents.warnings(results) == []
  (line,) = contents.warnings(results._replace(study=study))
  assert line.startswith('Learning rates were tuned at one warmup')


def test_one_recipe_for_all_arms_is_said_once(results):
  runs = tuple(run for run in results.runs if run.phase == 'paper')
  paper = results._replace(runs=runs)
  (line,) = contents.warnings(paper)
  assert line.startswith("Every arm ran at the paper's recipe only")
  study = dataclasses.replace(results.study, tuning=None)
  (line,) = contents.warnings(paper._replace(study=study))
  assert 'model.scale' in line and 'may want another learning rate' in line


def test_steps_to_a_threshold_that_none_reached_are_noted(results):
  table = tables.other_metrics(results, 'paper')
  assert table is not None
  assert 'No run of any arm got to a validation loss of 0.5' in table.note
  rows = [dict(results.comparisons[-1], metric='steps_to_threshold')]
  rows = [row | dict(phase='paper', primary=False) for row in rows]
  table = tables.other_metrics(results._replace(comparisons=rows), 'paper')
  assert table is not None
  assert 'Steps to a validation loss of 0.5: by the log-rank' in table.note


def test_pronouns_by_distance_have_an_interval_over_seeds(results):
  assert tables.pronouns(results, 'paper') is None
  right = dict(zip(range(5), (3, 0, 1, 2, 4), strict=True))

  def asked(run):
    bins = {'8': dict(right=right[run.seed], asked=4)}
    if run.variant == 'scale=none':
      bins['10'] = dict(right=1, asked=1)
    metrics = {**run.metrics, 'pronoun_by_distance': bins}
    return run._replace(body={**run.body, 'metrics': metrics})

  more = results._replace(runs=tuple(map(asked, results.runs)))
  table = tables.pronouns(more, 'paper')
  assert table is not None
  assert table.columns == ('variant', '8 clauses', '10 clauses')
  # 0.5 -+ 2.776 x 0.3953 / sqrt(5)
  assert table.rows[0] == ('scale=rsqrt_d_k', '0.500 (0.00919 to 0.991)', '–')
  # Of five runs one diverged: 0.8 -+ 2.776 x 0.4472 / sqrt(5)
  assert table.rows[1][2] == '0.800 (0.245 to 1.36)'
  assert table in contents._more(more)


def test_the_data_is_named(results, tmp_path):
  def data(path):
    return dict(contents._facts(results._replace(path=path)))['data']

  assert data(tmp_path) == 'task:reverse; content not recorded'
  prints = dict(training='a' * 64, test='b' * 64)
  declaration.admit_data(tmp_path, '', prints)
  assert data(tmp_path) == (
    'task:reverse; training, validation and vocabulary aaaaaaaaaaaa, '
    'test bbbbbbbbbbbb'
  )


def test_how_scores_of_written_text_are_made_is_said(results):
  def signature(study):
    return dict(contents._facts(results._replace(study=study)))[
      'scorer signature'
    ]

  assert 'by itself' not in signature(results.study)
  wrote = dataclasses.replace(results.study, free_running=('generated',))
  assert signature(wrote).endswith(
    'by teacher forcing; generated of what the model writes by itself: greedy '
    'decoding of at most the first 256 pairs of test'
  )


def test_flops_are_said_to_be_of_products(results, page):
  table = tables.arms(results, 'paper')
  assert 'product FLOPs a token' in table.columns
  assert 'tanh of additive scores' in table.note
  assert 'of matrix products a token' in page


def test_a_look_on_the_way_is_said_so(results):
  study = dataclasses.replace(results.study, seeds=9, looks=(5, 9))
  assert contents.warnings(results._replace(study=study)) == [
    'Not the last look: verdicts are of 5 of 9 planned seeds.'
  ]


def test_views_of_heads_and_places(results):
  assert insight.heads(results, 'paper') is None
  assert insight.places(results, 'paper') is None
  far = [[[0, 0.2, 0.4], [0.2, 0, 0.6], [0.4, 0.6, 0]]]
  heads = dict(cross=dict(distance=far, rise=[[0.5, 0.001, -0.201]]))
  side = dict(token=0.75, token_chance=0.25, neighbours=None, nearest=None)
  side |= dict(position=0.5, position_chance=0.125)
  near = dict(neighbours=0.5, nearest=[[3, 4, 0.875], [0, 7, 0.5]])
  places = dict(encoder=side, decoder=side | near)
  first = results.runs[0]
  links = dict(error=[[0.5, 0.75], [0.25, 1.0]], pairs=32)
  views = dict(heads=heads, places=places, links=links)
  run = first._replace(body={**first.body, 'views': views})
  more = results._replace(runs=(run, *results.runs[1:]))
  table = insight.heads(more, 'paper')
  assert table is not None and insight.heads(more, 'tuned') is None
  assert table.rows == [
    (
      run.variant,
      'encoder-decoder attention',
      '0.400',
      '+0.100',
      '+0.500',
      '0.667',
    )
  ]
  aligned = insight.alignments(more, 'paper')
  assert aligned is not None and insight.alignments(results, 'paper') is None
  assert aligned.rows == [(run.variant, '0.250', '0.625', '0.625')]
  seen = insight.places(more, 'paper')
  assert seen is not None
  assert seen.rows == [
    (run.variant, 'encoder', '0.750 (0.250)', '0.500 (0.125)', '–', '–'),
    (
      run.variant,
      'decoder',
      '0.750 (0.250)',
      '0.500 (0.125)',
      '0.500',
      '3 and 4 (0.875), 0 and 7 (0.500)',
    ),
  ]
  assert table in contents._more(more) and seen in contents._more(more)


def test_exploratory_rows_stand_apart(results):
  """The same rows over more seeds: no answer and no place in the forest."""
  again = [{**row, 'exploratory': True} for row in results.comparisons]
  more = results._replace(comparisons=(*results.comparisons, *again))
  assert contents.sentences(more) == contents.sentences(results)
  assert tables.arms(more, 'paper') == tables.arms(results, 'paper')
  assert tables.pairing(more) == tables.pairing(results)
  assert tables.exploratory(results, 'paper') is None
  table = tables.exploratory(more, 'paper')
  assert table is not None
  assert len(table.rows) == len(results.rows('paper'))


def test_a_diverged_run_counts_as_the_unigram_model(results):
  runs = results.of('scale=none', 'paper')
  losses = [run.metrics.get('loss', 2.77) for run in runs]
  assert sum(run.diverged for run in runs) == 1
  assert tables.mean_of(runs, 'loss') == pytest.approx(np.mean(losses))


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


# Table 3


def table3_study(**base) -> Study:
  return Study(
    name='table3',
    question='',
    paper='',
    axes=('model.heads', 'model.d_k', 'model.d_v', 'model.layers'),
    baseline=base,
    arms=(
      Arm('base', {}),
      Arm('one', {'model.heads': 1, 'model.d_k': 64, 'model.d_v': 64}),
      Arm('flat', {'model.layers': 1}),
      Arm('other', {'model.layers': 2}),
    ),
    primary=(),
    seeds=3,
    looks=(3,),
  )


SMALL = {
  'model.layers': 3,
  'model.d_model': 64,
  'model.heads': 8,
  'model.d_k': 8,
  'model.d_v': 8,
}


def test_rows_of_table_3_are_found_by_their_ratio(tmp_path):
  study_folder.make_bare(tmp_path, table3_study(**SMALL))
  assert table3.rows_of(reading.read(tmp_path)) == {
    'one': 'a_h1',
    'flat': 'c_n2',
    'other': 'c_n4',
  }


def test_published_rows_are_held_against_runs_that_share_no_seed(tmp_path):
  study_folder.make_bare(tmp_path, table3_study(**SMALL))
  results = reading.read(tmp_path)
  table = table3.published(results)
  assert table is not None
  losses = [
    np.array([run.metrics['loss'] for run in results.of(name, 'paper')])
    for name in ('one', 'base')
  ]
  gap = np.log(5.29 / 4.92)
  wanted = published.hold_against(gap, losses[0] - losses[1][[2, 0, 1]], rows=3)
  row = table.rows[0]
  assert row[0] == 'a_h1'
  assert row[2] == f'+{gap:.4f}'
  assert row[-1] == wanted.statement


def test_summary_is_json_for_others(place):
  rows = json.loads((place / 'report/summary.json').read_text('utf-8'))
  assert {row['variant'] for row in rows} >= {'scale=none', EVIL}
