"""The list of questions: complete in both languages, and its commands real."""

import pathlib

import pytest

from experiments import studies
from transformer_jax.ablation.report import questions

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
      assert f'def {name}(' in (ROOT / path).read_text(encoding='utf-8')


def test_studies_that_answer_exist():
  for question in questions.read():
    assert set(question.studies) <= set(studies.names())


def test_korean_is_korean():
  for question in questions.read():
    for text in (question.text['ko'], question.answer['ko']):
      assert text.endswith(('다.', '까?', ').'))
