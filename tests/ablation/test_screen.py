"""What is said of a study under way, by a clock of the test's own."""

import types

import pytest

from experiments import studies
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import checks, screen


@pytest.fixture
def now(monkeypatch):
  """The time, as a list of one number."""
  seconds = [0.0]
  clock = types.SimpleNamespace(monotonic=lambda: seconds[0])
  monkeypatch.setattr(screen, 'time', clock)
  return seconds


def test_time_left_is_of_steps_whoever_makes_them(now, tmp_path, capsys):
  study = checks.with_overrides(studies.load('aa'), {'train.steps': 500})
  cells = cells_lib.cells(study, range(5), None)
  names = [cell.identity for cell in cells]
  view = screen.Screen(tmp_path, 'aa', quiet=False)

  def said():
    return capsys.readouterr().err.splitlines()[:1]

  view.cells(cells, set())
  assert said() == ['aa: 0 of 10 cells']
  # The first batch is under way: 60 s for 250 of 5,000 steps.
  now[0] = 60
  view.steps(250)
  into = ', 250 steps into the next'
  assert said() == [f'aa: 0 of 10 cells, about 19 min left{into}']
  # Another worker has made 500 of them meanwhile.
  view.cells(cells, set(names[:1]))
  assert said() == [f'aa: 1 of 10 cells, about 6 min left{into}']
  view.batch_ended()
  now[0] = 80
  view.cells(cells, set(names[:2]))
  assert said() == ['aa: 2 of 10 cells, about 5 min left']
  view.cells(cells, set(names[:2]))
  assert said() == []
  view.cells(cells, set(names))
  assert said() == ['aa: 10 of 10 cells']
  # Others, as many: the next phase of a study.
  view.cells(cells_lib.cells(studies.load('aa_noise'), range(5), None), set())
  assert said() == ['aa: 0 of 10 cells']
