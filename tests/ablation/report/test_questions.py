"""The list of questions: complete in both languages, and its commands real."""

import json
import pathlib
import re

import pytest

from experiments import studies
from transformer_jax.ablation.report import questions

NUMBER = re.compile(r'[+−][0-9.]*[0-9]')
ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize('language', questions.LANGUAGES)
def test_pages_are_made_from_the_list(language):
  """To write them: python -m transformer_jax.ablation.report.questions"""
  page = ROOT / 'experiments' / questions.PAGES[language]
  assert page.read_text(encoding='utf-8') == questions.markdown(language)


def test_tests_that_answer_exist():
  for question in questions.read():
    for node in question.tests:
      path, name = node.split('::')
      name = name.rpartition('.')[2]  # A doctest has its whole path.
      assert f'def {name}(' in (ROOT / path).read_text(encoding='utf-8')


def test_studies_that_answer_exist():
  for question in questions.read():
    assert set(question.studies) <= set(studies.names())


def test_figures_of_a_kept_report_are_its_own():
  """To as many places as they are quoted with."""
  checked = 0
  for question in questions.read():
    for study, found in question.found:
      assert study in question.studies
      numbers = [NUMBER.findall(text) for text in found.values()]
      assert numbers[0] == numbers[1], study
      summary = ROOT / f'experiments/reports/{study}/summary.json'
      if not summary.exists():
        continue
      rows = json.loads(summary.read_text(encoding='utf-8'))
      have = [
        row[name]
        for row in rows
        for name in ('difference', 'ci_low', 'ci_high')
        if row[name] is not None
      ]
      for text in numbers[0]:
        places = len(text.partition('.')[2])
        own = float(text.replace('−', '-'))
        assert any(round(x, places) == own for x in have), (study, text)
        checked += 1
  assert checked >= 20


def test_korean_is_korean():
  for question in questions.read():
    for text in (question.text['ko'], question.answer['ko']):
      assert text.endswith(('다.', '까?', ').'))
