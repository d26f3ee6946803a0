"""Each verdict in words, by hand."""

import pytest

from transformer_jax.ablation.report import answers, contents

ROW = dict(
  variant='b',
  baseline='a',
  metric='loss',
  seeds=5,
  diverged=0,
  difference=-0.5,
  ci_low=-0.6,
  ci_high=-0.4,
  p_value=0.01,
  p_adjusted=0.02,
  margin=None,
  seeds_needed=None,
  notes=(),
)
P = ', p = 0.0200'
GAP = (
  'held-out loss −0.500 nats a token '
  '(95 % interval −0.600 to −0.400, 5 seeds, p = 0.0200).'
)
GAP_KO = (
  '검증 손실 차이 −0.500 nat/토큰 '
  '(95 % 신뢰구간 −0.600 ~ −0.400, 시드 5개, p = 0.0200).'
)


@pytest.mark.parametrize(
  'verdict, changes, english, korean',
  [
    (
      'better',
      {},
      f'b is better than a: {GAP}',
      f'‘b’의 결과가 ‘a’보다 좋습니다: {GAP_KO}',
    ),
    (
      'worse',
      {},
      f'b is worse than a: {GAP}',
      f'‘b’의 결과가 ‘a’보다 나쁩니다: {GAP_KO}',
    ),
    (
      'equivalent',
      {'margin': 0.05},
      'b and a are equivalent within the margin of 0.05 that was declared '
      f'beforehand: {GAP.replace(P, "")}',
      '‘b’, ‘a’의 차이는 미리 정한 허용 범위 0.05 이내이므로 동등합니다: '
      f'{GAP_KO.replace(P, "")}',
    ),
    (
      'not enough evidence',
      {'seeds_needed': 12},
      'There is not enough evidence that b and a differ (about 12 seeds would '
      f'be enough): {GAP}',
      '‘b’, ‘a’ 사이에 차이가 있다고 볼 근거가 부족합니다(약 12개의 시드가 '
      f'필요합니다): {GAP_KO}',
    ),
    (
      'not sensitive',
      {'notes': ['the known-bad arm c is not told apart']},
      'The study is not sensitive and gives no answer about b and a (the '
      f'known-bad arm c is not told apart): {GAP}',
      '이 연구는 민감도가 부족하여 ‘b’, ‘a’의 비교에 답할 수 없습니다 '
      f'(나빠야 할 대조군 ‘c’ 구별 실패): {GAP_KO}',
    ),
  ],
)
def test_sentences(verdict, changes, english, korean):
  row = {**ROW, 'verdict': verdict, **changes}
  assert answers.sentence(row) == english
  assert answers.sentence(row, language='ko') == korean


def test_the_floor_has_words():
  row = {**ROW, 'verdict': 'not sensitive', 'metric': 'generated'}
  row['notes'] = ['both arms are at the floor, 2 % or less']
  assert '(both arms are at the floor, 2 % or less)' in answers.sentence(row)
  assert '(바닥 효과)' in answers.sentence(row, language='ko')


def test_every_verdict_has_words_in_every_language():
  for language in answers.LANGUAGES:
    assert set(answers.WORDS[language]) == set(contents.MARKS)


def test_open_limits_are_infinite_and_one_seed_has_no_interval():
  row = {**ROW, 'verdict': 'no verdict', 'ci_low': None}
  assert 'interval −∞ to −0.400' in answers.sentence(row)
  row = {**row, 'seeds': 1, 'ci_high': None, 'p_value': None}
  text = answers.sentence({**row, 'p_adjusted': None})
  assert '(fewer than three seeds)' in text
  assert '(no interval, 1 seed)' in text


def test_runs_without_any_difference_are_said_to_be_the_same():
  row = {**ROW, 'verdict': 'not enough evidence', 'seeds_needed': 6}
  row |= {'difference': 0.0, 'pairing': {'width_ratio': 0.0}}
  assert answers.sentence(row).endswith('the same value, to the last digit.')
  assert answers.sentence(row, language='ko').endswith('자리까지 같습니다.')
  for other in ({'difference': 0.1}, {'pairing': {'width_ratio': 0.3}}):
    assert 'last digit' not in answers.sentence({**row, **other})


def test_diverged_runs_are_said():
  row = {**ROW, 'verdict': 'worse', 'diverged': 2}
  assert answers.sentence(row).endswith('2 of 5 runs of b diverged.')


@pytest.mark.parametrize(
  'value, text',
  [
    (0.0, '0'),
    (1.0, '1.00'),
    (99.96, '99.96'),
    (12345.6, '12,346'),
    (-3e-6, '−3.0e-06'),
    (float('inf'), '∞'),
    (float('nan'), '–'),
  ],
)
def test_numbers(value, text):
  assert answers.number(value).lstrip('+') in (text, '100.0', '100')
