"""Words, particles, sentences: right, and read back as they were meant."""

import itertools
import pathlib
from collections import Counter, defaultdict

import pytest

from transformer_jax.data.korean import generate, lexicon
from transformer_jax.data.korean.meaning import distance
from transformer_jax.data.korean.parse import PHRASES, parse
from transformer_jax.data.korean.particles import closed, particle
from transformer_jax.data.korean.render import LANGUAGES, sentence

GOLDEN = pathlib.Path(__file__).parents[2] / 'goldens' / 'korean.txt'


EXAMPLES = """\
I ate the rice. -> 나는 밥을 먹었다.
The elephant did not eat the apple. -> 코끼리는 사과를 먹지 않았다.
Robot L will buy the bag. -> 로봇 L은 가방을 살 것이다.
The bear sees robot 2. -> 곰은 로봇 2를 본다.
The bear is not a student. -> 곰은 학생이 아니다.
The animal did not cross the street because it was too tired. -> \
동물이 너무 피곤해서 길을 건너지 않았다.
The animal did not cross the street because it was too wide. -> \
길이 너무 넓어서 동물은 건너지 않았다.
I am an elephant that ate the chicken, met the bear and bought the bread. -> \
나는 치킨을 먹고 곰을 만나고 빵을 산 코끼리다.
"""


# What no example shows: agreement of tense, 나, the copula, clauses.
MORE = """\
The rabbit eats the bread today. -> 토끼는 오늘 빵을 먹는다.
The doctor does not see me. -> 의사는 나를 보지 않는다.
I will not cross the river tomorrow. -> 나는 내일 강을 건너지 않을 것이다.
The fox found the hat yesterday. -> 여우는 어제 모자를 발견했다.
I read the book yesterday. -> 나는 어제 책을 읽었다.
The king is robot 3. -> 왕은 로봇 3이다.
The singer was a doctor. -> 가수는 의사였다.
I was a student. -> 나는 학생이었다.
Robot 9 was not robot 6. -> 로봇 9는 로봇 6이 아니었다.
The bear did not buy the bag I found because it was too expensive. -> \
내가 발견한 가방이 너무 비싸서 곰은 사지 않았다.
The fox did not cross the street the student saw and the doctor crossed \
because it was too hungry. -> \
여우가 너무 배고파서 학생이 보고 의사가 건넌 길을 건너지 않았다.
"""


def test_particles_after_all_finals():
  for first in range(0, 0xD7A4 - 0xAC00, 28 * 37):
    for final in range(28):
      word = '고' + chr(0xAC00 + first + final)
      assert closed(word) == (final != 0)
      assert particle(word, 'topic') == ('은' if final else '는')
      assert particle(word, 'subject') == ('이' if final else '가')
      assert particle(word, 'object') == ('을' if final else '를')
      assert particle(word, 'is') == ('이다' if final else '다')
      assert particle(word, 'was') == ('이었다' if final else '였다')


def test_particles_after_digits_and_letters():
  letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'.replace('R', '')
  assert [c for c in letters if closed(c)] == ['L', 'M', 'N']
  assert [c for c in '0123456789' if closed(c)] == list('013678')
  # The last digit decides.
  assert closed('로봇 40') and not closed('로봇 14')
  for word in ('R', '로봇 R', 'l', '', 'ㄱ', '곰.', 'é'):
    with pytest.raises(ValueError, match='sound'):
      closed(word)
  names = [noun.english.split()[1] for noun in lexicon.ROBOTS]
  assert set(letters) <= set(names) and 'R' not in names
  assert {name[-1] for name in names if name.isdigit()} == set('0123456789')


def test_the_lexicon_has_every_form():
  nouns = lexicon.NOUNS
  assert len(nouns) == 25
  kinds = Counter((noun.kind, closed(noun.korean)) for noun in nouns)
  assert kinds['animal', True] == kinds['animal', False] == 3
  assert kinds['person', True] == kinds['person', False] == 3
  buy = lexicon.VERBS['buy']
  assert [form.text for form in buy.forms] == [
    '산다', '샀다', '살 것이다', '사지', '사고', '산',
  ]  # fmt: skip
  eat = lexicon.VERBS['eat']
  assert [form.text for form in eat.forms] == [
    '먹는다', '먹었다', '먹을 것이다', '먹지', '먹고', '먹은',
  ]  # fmt: skip
  # A noun with its particle is read in one way only.
  assert len(PHRASES) == 5 * len([*nouns, lexicon.SPEAKER, *lexicon.ROBOTS])
  assert '내가' in PHRASES and '나가' not in PHRASES


@pytest.mark.parametrize('line', (EXAMPLES + MORE).splitlines())
def test_sentences_by_hand(line):
  english, korean = line.split(' -> ')
  assert sentence(parse(english, 'en'), 'ko') == korean
  assert sentence(parse(korean, 'ko'), 'en') == english


@pytest.mark.parametrize(
  ('language', 'text'),
  [
    ('ko', '곰는 밥을 먹었다.'),
    ('ko', '나가 본 길이 너무 넓어서 곰은 건너지 않았다.'),
    ('ko', '곰은 내일 밥을 먹었다.'),
    ('ko', '로봇 R은 밥을 먹었다.'),
    ('ko', '곰은 길을 먹었다.'),
    ('ko', '의사가 너무 피곤해서 길을 건너지 않았다.'),
    ('ko', '나는 곰은 만난 코끼리다.'),
    ('ko', '곰은 밥을 먹었다'),
    ('ko', '나는 책을 읽는다.'),
    ('en', 'I am a elephant that ate the rice.'),
    ('en', 'the bear ate the rice.'),
    ('en', 'The bear eated the rice.'),
    ('en', 'The bear will eat the rice yesterday.'),
    ('en', 'I eats the rice.'),
    ('en', 'Robot 17 ate the rice.'),
    ('en', 'Robot 10 was robot L.'),
    ('en', 'I read the book today.'),
    ('en', 'The bear did not cross the street because it was too expensive.'),
    ('en', ''),
  ],
)
def test_what_the_language_does_not_say(language, text):
  with pytest.raises(ValueError):
    parse(text, language)


def test_every_sentence_has_one_meaning(train, held_out):
  said = defaultdict(set)
  for meaning in itertools.chain(train, *held_out.values()):
    texts = {language: sentence(meaning, language) for language in LANGUAGES}
    for language, text in texts.items():
      assert parse(text, language) == meaning
      said[language].add(text)
    said['pair'].add(tuple(texts.values()))
  assert len(said['en']) == len(said['ko']) == len(said['pair']) > 7000


def test_goldens():
  """Read by hand, each of them; a line that changes is to be read again."""
  lines = GOLDEN.read_text(encoding='utf-8').splitlines()
  rows = [line.split('\t') for line in lines if not line.startswith('#')]
  assert len(rows) == len({tuple(row[3:]) for row in rows}) == 200
  for split, name, clauses, english, korean in rows:
    meaning = parse(english, 'en')
    assert sentence(meaning, 'ko') == korean
    assert parse(korean, 'ko') == meaning
    assert type(meaning).__name__.lower() == name
    assert str(distance(meaning)) == clauses
    if split in ('train', 'validation', 'test'):
      assert generate.split_class(meaning) == split
  examples = [row[3:] for row in rows if row[0] == 'example']
  assert examples == [line.split(' -> ') for line in EXAMPLES.splitlines()]
  assert {row[0] for row in rows} == {'example', *generate.SPLITS}
  assert {row[1] for row in rows} == {'plain', 'copula', 'pronoun', 'predicate'}
