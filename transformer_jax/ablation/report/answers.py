"""A comparison as one sentence, in English and in Korean (pure).

The verdict's word and the numbers are those of `summary.json`; nothing is
judged again here.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformer_jax.ablation import evidence

LANGUAGES: tuple[str, ...] = ('en', 'ko')
# As `stats.insensitivity` and `stats.out_of_range` say it; the other reasons
# are ceilings.
AT_FLOOR = 'both arms are at the floor'
NOT_APART = re.compile(r'the known-bad arm (.*) is not told apart', re.DOTALL)
MINUS = '\N{MINUS SIGN}'


class Metric(NamedTuple):
  """How a metric is called and counted, by language."""

  name: Mapping[str, str]
  unit: Mapping[str, str]


# A share has no unit.
PLAIN: Mapping[str, str] = dict.fromkeys(LANGUAGES, '')
METRICS = {
  'loss': Metric(
    {'en': 'held-out loss', 'ko': '검증 손실'},
    {'en': 'nats a token', 'ko': 'nat/토큰'},
  ),
  'accuracy': Metric({'en': 'token accuracy', 'ko': '토큰 정확도'}, PLAIN),
  'exact': Metric({'en': 'exact match', 'ko': '완전 일치율'}, PLAIN),
  'steps_to_threshold': Metric(
    {'en': 'steps to the threshold', 'ko': '기준값 도달 단계 수'},
    {'en': 'steps', 'ko': '단계'},
  ),
  'generated': Metric(
    {'en': 'generated exactly', 'ko': '자유 생성 완전 일치율'}, PLAIN
  ),
  'pronoun': Metric({'en': 'pronouns right', 'ko': '대명사 정확도'}, PLAIN),
}

WORDS = {
  'en': {
    evidence.BETTER: '{variant} is better than {baseline}: {gap}.',
    evidence.WORSE: '{variant} is worse than {baseline}: {gap}.',
    evidence.EQUIVALENT: '{variant} and {baseline} are equivalent within the '
    'margin of {margin} that was declared beforehand: {gap}.',
    evidence.NOT_ENOUGH: 'There is not enough evidence that {variant} and '
    '{baseline} differ{enough}: {gap}.',
    evidence.NOT_SENSITIVE: 'The study is not sensitive and gives no answer '
    'about {variant} and {baseline}{reason}: {gap}.',
    evidence.NO_VERDICT: 'No verdict on {variant} and {baseline}{few}: {gap}.',
  },
  'ko': {
    evidence.BETTER: '‘{variant}’의 결과가 ‘{baseline}’보다 좋습니다: {gap}.',
    evidence.WORSE: '‘{variant}’의 결과가 ‘{baseline}’보다 나쁩니다: {gap}.',
    evidence.EQUIVALENT: '‘{variant}’, ‘{baseline}’의 차이는 미리 정한 '
    '허용 범위 {margin} 이내이므로 동등합니다: {gap}.',
    evidence.NOT_ENOUGH: '‘{variant}’, ‘{baseline}’ 사이에 차이가 있다고 볼 '
    '근거가 부족합니다{enough}: {gap}.',
    evidence.NOT_SENSITIVE: '이 연구는 민감도가 부족하여 ‘{variant}’, '
    '‘{baseline}’의 비교에 답할 수 없습니다{reason}: {gap}.',
    evidence.NO_VERDICT: '‘{variant}’, ‘{baseline}’의 비교에는 판정을 내리지 '
    '않습니다{few}: {gap}.',
  },
}
PARTS = {
  'en': dict(
    gap='{name} {difference}{unit} ({inside})',
    interval='{level} interval {low} to {high}',
    none='no interval',
    seeds='{seeds} seeds',
    one='1 seed',
    enough=' (about {seeds} seeds would be enough)',
    unlucky=' (about {seeds} seeds decide four times in five; not this time)',
    never=' (no number of seeds can be named that would be enough)',
    few=' (fewer than three seeds)',
    diverged=' {diverged} of {seeds} runs of {variant} diverged.',
    same=' With every seed both have the same value, to the last digit.',
  ),
  'ko': dict(
    gap='{name} 차이 {difference}{unit} ({inside})',
    interval='{level} 신뢰구간 {low} ~ {high}',
    none='신뢰구간 없음',
    seeds='시드 {seeds}개',
    one='시드 1개',
    enough='(약 {seeds}개의 시드가 필요합니다)',
    unlucky='(약 {seeds}개의 시드면 다섯 번 중 네 번은 판정이 나지만 이번에는 '
    '나지 않았습니다)',
    never='(필요한 시드 수를 말할 수 없습니다)',
    few='(시드가 세 개 미만입니다)',
    diverged=' ‘{variant}’의 실행 {seeds}회 중 {diverged}회가 발산했습니다.',
    same=' 모든 시드에서 두 값이 마지막 자리까지 같습니다.',
  ),
}


def metric(name: str) -> Metric:
  """How this metric is called; one that is not listed keeps its own name."""
  own: Mapping[str, str] = dict.fromkeys(LANGUAGES, name)
  return METRICS.get(name, Metric(own, PLAIN))


def number(value: float | None, *, signed: bool = False) -> str:
  """Three significant digits, a true minus sign; a dash for none.

  >>> number(-0.012345, signed=True), number(1234.5), number(None)
  ('−0.0123', '1,234', '–')
  """
  if value is None or math.isnan(value):
    return '–'
  if math.isinf(value):
    return ('+' if value > 0 else MINUS) + '∞'
  size = abs(value)
  if size >= 100:
    text = f'{size:,.0f}'
  elif size >= 1e-4 or size == 0:
    digits = 0 if size == 0 else 2 - math.floor(math.log10(size))
    text = f'{size:.{max(digits, 0)}f}'
  else:
    text = f'{size:.1e}'
  sign = '+' if signed and value > 0 else ''
  return (MINUS if value < 0 else sign) + text


def limits(row: Mapping[str, Any]) -> tuple[float, float] | None:
  """The interval, infinite at an open end; None for fewer than two seeds."""
  low, high = row['ci_low'], row['ci_high']
  if row['seeds'] < 2:
    return None
  return (
    -math.inf if low is None else float(low),
    math.inf if high is None else float(high),
  )


def interval(row: Mapping[str, Any]) -> str:
  """The limits of the table's column."""
  found = limits(row)
  if found is None:
    return '–'
  low, high = (number(limit, signed=True) for limit in found)
  return f'{low} to {high}'


def _gap(row: Mapping[str, Any], *, level: str, language: str) -> str:
  parts, named = PARTS[language], metric(row['metric'])
  unit = named.unit[language]
  found = limits(row)
  inside = parts['none']
  if found is not None:
    low, high = (number(limit, signed=True) for limit in found)
    inside = parts['interval'].format(level=level, low=low, high=high)
  seeds = int(row['seeds'])
  inside += ', ' + parts['one' if seeds == 1 else 'seeds'].format(seeds=seeds)
  p = row['p_adjusted'] if row['p_adjusted'] is not None else row['p_value']
  # That p asks for a difference; beside "equivalent" it would mislead.
  if p is not None and row['verdict'] != evidence.EQUIVALENT:
    inside += f', p {"=" if p >= 1e-4 else "<"} {number(max(p, 1e-4))}'
  return parts['gap'].format(
    name=named.name[language],
    difference=number(row['difference'], signed=True),
    unit=f' {unit}' if unit else '',
    inside=inside,
  )


def _missing(row: Mapping[str, Any], language: str) -> str:
  """How many seeds would be enough, in brackets."""
  needed = row['seeds_needed']
  if needed is None:
    return PARTS[language]['never']
  kind = 'enough' if needed > row['seeds'] else 'unlucky'
  return PARTS[language][kind].format(seeds=needed)


def _reason(row: Mapping[str, Any], language: str) -> str:
  """Why a study is not sensitive, in brackets: its note, said in `language`."""
  note = next(iter(row['notes']), '')
  if language == 'ko':
    bad = NOT_APART.fullmatch(note)
    other = '바닥 효과' if note.startswith(AT_FLOOR) else '천장 효과'
    note = f'나빠야 할 대조군 ‘{bad[1]}’ 구별 실패' if bad else other
  return f' ({note})'


def sentence(
  row: Mapping[str, Any], *, language: str = 'en', level: str = '95 %'
) -> str:
  """One comparison in one sentence, and another where runs are the same, or
  diverged.

  Args:
    row: of summary.json.
    language: en or ko.
    level: of the interval, as text.

  >>> sentence({'variant': 'b', 'baseline': 'a', 'metric': 'loss', 'seeds': 5,
  ...   'diverged': 0, 'difference': -0.5, 'ci_low': -0.6, 'ci_high': -0.4,
  ...   'p_value': 0.01, 'p_adjusted': 0.02, 'margin': None,
  ...   'verdict': 'better', 'seeds_needed': None, 'notes': []})
  'b is better than a: held-out loss −0.500 nats a token \
(95 % interval −0.600 to −0.400, 5 seeds, p = 0.0200).'
  """
  parts = PARTS[language]
  text = WORDS[language][row['verdict']].format(
    variant=row['variant'],
    baseline=row['baseline'],
    margin=f'{row["margin"] or 0:g}',
    gap=_gap(row, level=level, language=language),
    enough=_missing(row, language),
    reason=_reason(row, language),
    few=parts['few'] if row['seeds'] < 3 else '',
  )
  # The differences have no spread, and their mean is zero.
  if row['difference'] == row.get('pairing', {}).get('width_ratio') == 0:
    text += parts['same']
  if row['diverged']:
    text += parts['diverged'].format(
      diverged=row['diverged'], seeds=row['seeds'], variant=row['variant']
    )
  return text
