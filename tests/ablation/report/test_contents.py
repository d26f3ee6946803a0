"""What the report says of results: answers, warnings, tables."""

import dataclasses

import numpy as np
import pytest

from tests.ablation.report import study_folder
from tests.ablation.report.study_folder import EVIL
from transformer_jax.ablation import declaration
from transformer_jax.ablation.report import (
  contents,
  insight,
  reading,
  style,
  tables,
)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  made = study_folder.make(tmp_path_factory.mktemp('study'), extra=EVIL)
  return reading.read(made)


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


def test_a_variant_says_what_it_is_held_against_unless_the_baseline(results):
  row = results.comparisons[1]
  other = {**row, 'baseline': 'scale=none'}
  more = results._replace(comparisons=(*results.comparisons, other))
  names = [row[0] for row in tables.arms(more, 'paper').rows]
  assert names.count('score=additive') == 1
  assert names.count('score=additive, against scale=none') == 1


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
