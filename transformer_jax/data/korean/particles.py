"""Particles by the last sound of a word, from its writing alone."""

from transformer_jax.data.korean.lexicon import SPEAKER, Noun

_FIRST, _LAST = 0xAC00, 0xD7A3  # 가 to 힣, 28 finals to a vowel
# As they are read: 엘 엠 엔; 영 일 삼 육 칠 팔 against 이 사 오 구.
_CLOSED = frozenset('LMN013678')
_OPEN = frozenset('ABCDEFGHIJKOPQSTUVWXYZ2459')

# role -> after a consonant, after a vowel.
PARTICLES = {
  'topic': ('은', '는'),
  'subject': ('이', '가'),
  'object': ('을', '를'),
  'is': ('이다', '다'),
  'was': ('이었다', '였다'),
}


def closed(word: str) -> bool:
  """Whether `word` ends in a consonant when it is read aloud.

  A syllable is closed iff (code - 0xAC00) % 28 != 0; of a number the last
  digit decides.

  Args:
    word: ends in a Hangul syllable, a capital letter but R, or a digit.

  Raises:
    ValueError: it ends in anything else; R has two readings.

  >>> closed('곰'), closed('토끼'), closed('L'), closed('32')
  (True, False, True, False)
  """
  last = word[-1:]
  if last and _FIRST <= ord(last) <= _LAST:
    return (ord(last) - _FIRST) % 28 != 0
  if last in _CLOSED and last:
    return True
  if last in _OPEN and last:
    return False
  raise ValueError(f'{word!r} does not end in a sound that is known')


def particle(word: str, role: str) -> str:
  """The particle of `role` in PARTICLES as it follows `word`.

  >>> particle('곰', 'topic'), particle('로봇 2', 'object')
  ('은', '를')
  """
  after_consonant, after_vowel = PARTICLES[role]
  return after_consonant if closed(word) else after_vowel


def attached(noun: Noun, role: str) -> tuple[str, str]:
  """A noun and its particle as written: 나 and 가 give 내가."""
  if noun == SPEAKER and role == 'subject':
    return '내', '가'
  return noun.korean, particle(noun.korean, role)
