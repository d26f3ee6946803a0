"""Rows of Table 3, found by their ratio to the base; the published ones."""

import numpy as np

from tests.ablation.report import study_folder
from tests.ablation.report.study_folder import SMALL, table3_study
from transformer_jax.ablation import published
from transformer_jax.ablation.report import reading, table3


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
