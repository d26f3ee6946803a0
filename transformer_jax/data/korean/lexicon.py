"""Words and their stored forms; nothing is conjugated by rule.

English `find` is 발견하다 rather than 찾다, which also means to look for.
"""

from typing import NamedTuple


class Noun(NamedTuple):
  """A thing that sentences speak of."""

  english: str
  korean: str
  kind: str  # animal, person, speaker, robot, food, thing or place


class Form(NamedTuple):
  """A written form; `stem` carries the meaning, `ending` the grammar.

  Where both share a syllable (샀다) it belongs to the stem.
  """

  stem: str
  ending: str

  @property
  def text(self) -> str:
    return self.stem + self.ending


class Verb(NamedTuple):
  """A verb with what it takes as its object."""

  base: str
  third: str  # of the present: eats
  past: str
  objects: tuple[str, ...]  # kinds, or an English noun where only one fits
  clauses: tuple[str, ...]  # of relative clauses on a place or a thing
  forms: tuple[Form, ...]  # in the order of FORMS

  def form(self, name: str) -> Form:
    return self.forms[FORMS.index(name)]

  def takes(self, noun: Noun) -> bool:
    return bool({noun.kind, noun.english}.intersection(self.objects))

  def describes(self, noun: Noun) -> bool:
    """Whether it stands in a relative clause on `noun`."""
    return bool({noun.kind, noun.english}.intersection(self.clauses))


class Adjective(NamedTuple):
  """A reason: `too tired`, 너무 피곤해서; it fits nouns of one kind."""

  english: str
  reason: Form
  kind: str


class Adverb(NamedTuple):
  english: str
  korean: str
  tenses: tuple[str, ...]


TENSES = ('present', 'past', 'future')
FORMS = (*TENSES, 'ji', 'go', 'adnominal')

_KINDS = {
  'animal': (
    'elephant 코끼리 rabbit 토끼 fox 여우 bear 곰 deer 사슴 animal 동물'
  ),
  'person': (
    'doctor 의사 instructor 강사 singer 가수 '
    'student 학생 teacher 선생님 king 왕'
  ),
  'food': 'apple 사과 banana 바나나 rice 밥 bread 빵 chicken 치킨',
  'thing': 'hat 모자 chair 의자 book 책 bag 가방',
  'place': 'bridge 다리 road 도로 street 길 river 강',
}
NOUNS = tuple(
  Noun(english, korean, kind)
  for kind, words in _KINDS.items()
  for english, korean in zip(
    words.split()[::2], words.split()[1::2], strict=True
  )
)
# As a subject in English, and with 은/는 in Korean.
SPEAKER = Noun('I', '나', 'speaker')

# The letter R is read 알 or 아르, closed or open: it names no robot. Of a
# number the last digit decides, and each digit is the last of one of them.
ROBOTS = tuple(
  Noun(f'robot {name}', f'로봇 {name}', 'robot')
  for name in (
    *'ABCDEFGHIJKLMNOPQSTUVWXYZ',
    *'0123456789',
    *'10 21 32 43 54 65 76 87 98 19'.split(),
  )
)


def _verb(
  english: str, objects: str, clauses: str, forms: str
) -> tuple[str, Verb]:
  base, third, past = english.split()
  stored = tuple(
    Form(*form.replace('_', ' ').split('|')) for form in forms.split()
  )
  taken = tuple(objects.split()), tuple(clauses.split())
  return base, Verb(base, third, past, *taken, stored)


_ANYTHING = 'animal person speaker robot food thing place'
# English; kinds of objects; kinds that a relative clause describes (the
# street the student saw); then the forms in the order of FORMS.
VERBS = dict(
  _verb(*words)
  for words in (
    (
      'eat eats ate',
      'food',
      '',
      '먹|는다 먹|었다 먹|을_것이다 먹|지 먹|고 먹|은',
    ),
    (
      'buy buys bought',
      'food thing',
      'thing',
      '산|다 샀|다 살|_것이다 사|지 사|고 산|',
    ),
    (
      'read reads read',
      'book',
      'book',
      '읽|는다 읽|었다 읽|을_것이다 읽|지 읽|고 읽|은',
    ),
    (
      'see sees saw',
      'animal person speaker robot',
      'place thing',
      '본|다 보|았다 볼|_것이다 보|지 보|고 본|',
    ),
    (
      'meet meets met',
      'animal person speaker robot',
      '',
      '만난|다 만났|다 만날|_것이다 만나|지 만나|고 만난|',
    ),
    (
      'cross crosses crossed',
      'place',
      'place',
      '건넌|다 건넜|다 건널|_것이다 건너|지 건너|고 건넌|',
    ),
    (
      'find finds found',
      _ANYTHING,
      'place thing',
      '발견|한다 발견|했다 발견|할_것이다 발견|하지 발견|하고 발견|한',
    ),
  )
)

# Negation of a verb, after its -지.
NOT = {
  'present': Form('않', '는다'),
  'past': Form('않', '았다'),
  'future': Form('않', '을 것이다'),
}
# The negated copula; the affirmed one is a particle by its sound.
IS_NOT = {'present': Form('아니', '다'), 'past': Form('아니', '었다')}

ADJECTIVES = {
  word.english: word
  for word in (
    Adjective('tired', Form('피곤', '해서'), 'animal'),
    Adjective('hungry', Form('배고파', '서'), 'animal'),
    Adjective('wide', Form('넓', '어서'), 'place'),
    Adjective('expensive', Form('비싸', '서'), 'thing'),
  )
}
ADVERBS = {
  word.english: word
  for word in (
    Adverb('yesterday', '어제', ('past',)),
    Adverb('today', '오늘', TENSES),
    Adverb('tomorrow', '내일', ('future',)),
  )
}


def of_kind(*kinds: str) -> tuple[Noun, ...]:
  """Nouns of these kinds, in the order of the lexicon."""
  every = (*NOUNS, SPEAKER, *ROBOTS)
  return tuple(noun for noun in every if noun.kind in kinds)


def named(english: str) -> Noun:
  """The noun that is written so in English."""
  return _BY_ENGLISH[english]


_BY_ENGLISH = {noun.english: noun for noun in (*NOUNS, SPEAKER, *ROBOTS)}
