"""What readers of the paper ask, and the command that answers it.

The list is `questions.toml`. `experiments/QUESTIONS.md` and `QUESTIONS.ko.md`
are made from it by `python -m transformer_jax.ablation.report.questions`, and
a test holds them to it; the report shows the same list.
"""

import pathlib
import tomllib
from collections.abc import Mapping
from typing import NamedTuple

LIST = pathlib.Path(__file__).with_name('questions.toml')
FOLDER = pathlib.Path(__file__).parents[3] / 'experiments'
LANGUAGES = ('en', 'ko')
PAGES = {'en': 'QUESTIONS.md', 'ko': 'QUESTIONS.ko.md'}
NOT_YET = {'en': 'Not yet.', 'ko': '아직 없습니다.'}
TITLES = {'en': '# Questions, answers, commands', 'ko': '# 질문, 답, 명령'}
INTRODUCTIONS = {
  'en': """What readers of "Attention Is All You Need" ask, and what answers it
here. A study's report gives its answer with an interval; a test's answer is a
fact that the test checks. `make ablation` runs study `paper`, the three
founding questions. Under a question stands what its studies said where we ran
them: differences of the held-out loss in nats a token, with 95 % intervals; of
small models, so run it on your own data.""",
  'ko': """논문 "Attention Is All You Need"를 읽는 이들이 자주 묻는 질문과, 이
저장소에서 그 답을 얻는 방법입니다. 연구의 답은 보고서에 구간과 함께 나오며,
테스트의 답은 테스트가 직접 확인하는 사실입니다. `make ablation`은 세 가지 핵심
질문을 다루는 연구 `paper`를 실행합니다. 질문 아래의 수치는 여기서 실행한
결과로, 검증 손실의 차이(nat/토큰)와 95 % 신뢰구간입니다. 작은 모델의 결과이므로
여러분의 자료로도 실행해 보십시오.""",
}


class Question(NamedTuple):
  """One question with its answer, by language, and what gives it.

  answer: what a test shows, or what a study measures.
  found: by study, what it said where we ran it; of a study in
    `experiments/reports` with the figures that lie there.
  studies: declared studies that ask it; the first is the main one.
  tests: pytest nodes that answer it.
  """

  text: Mapping[str, str]
  answer: Mapping[str, str]
  found: tuple[tuple[str, Mapping[str, str]], ...]
  studies: tuple[str, ...]
  tests: tuple[str, ...]

  @property
  def commands(self) -> tuple[str, ...]:
    """What to type; empty where nothing answers yet."""
    studies = (
      f'python -m experiments.ablate --study={name} --workdir=runs/{name}'
      for name in self.studies
    )
    tests = (f'python -m pytest {node}' for node in self.tests)
    return (*studies, *tests)


def read() -> tuple[Question, ...]:
  """The list, in its order."""
  with open(LIST, 'rb') as file:
    rows = tomllib.load(file)['question']
  return tuple(
    Question(
      text={language: row[language] for language in LANGUAGES},
      answer={
        language: row[f'answer_{language}']
        if 'answer_en' in row
        else NOT_YET[language]
        for language in LANGUAGES
      },
      found=tuple(
        (one['study'], {language: one[language] for language in LANGUAGES})
        for one in row.get('found', ())
      ),
      studies=tuple(row.get('studies', ())),
      tests=tuple(row.get('tests', ())),
    )
    for row in rows
  )


def markdown(language: str) -> str:
  """The page of questions in en or ko."""
  lines = [TITLES[language], '', INTRODUCTIONS[language], '']
  for number, question in enumerate(read(), 1):
    lines += [f'## {number}. {question.text[language]}', '']
    lines += [question.answer[language], '']
    for study, found in question.found:
      lines += [f'- `{study}`: {found[language]}']
    lines += [''] if question.found else []
    if question.commands:
      lines += ['```', *question.commands, '```', '']
  return '\n'.join(lines).rstrip() + '\n'


if __name__ == '__main__':
  for tongue, page in PAGES.items():
    (FOLDER / page).write_text(markdown(tongue), encoding='utf-8')
