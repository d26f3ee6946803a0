"""What of a translation is right, by its parts."""

import pytest

from transformer_jax.data.korean import score
from transformer_jax.data.korean.render import LANGUAGES, sentence

WIDE = 'The bear did not cross the road I saw because it was too wide.'


WIDE_KO = '내가 본 도로가 너무 넓어서 곰은 건너지 않았다.'


WHO = '나는 밥을 먹고 길을 건넌 곰이다.'


@pytest.mark.parametrize(
  ('language', 'gold', 'hypothesis', 'expected'),
  [
    ('ko', '곰은 밥을 먹었다.', '곰은 밥을 먹었다.', 'e11 p22 t11 n11'),
    ('ko', '곰은 밥을 먹었다.', '곰는 밥을 먹는다.', 'e01 p12 t01 n11'),
    # A noun that is not there has no particle to be judged.
    ('ko', '곰은 밥을 먹었다.', '여우는 밥을 먹지 않았다.', 'e01 p11 t11 n01'),
    ('ko', '곰은 밥을 먹었다.', '', 'e01 t01 n01'),
    ('en', 'I ate the rice.', 'I', 'e01 t01 n01'),
    ('ko', '나는 의사였다.', '나는 의사다.', 'e01 p11 t01 n11'),
    ('ko', '나는 의사가 아니다.', '내가 의사였다.', 'e01 p01 t01 n01'),
    ('ko', '곰은 로봇 2를 볼 것이다.', '곰은 로봇 2을 볼 것이다.',
     'e01 p12 t11 n11'),
    ('ko', WIDE_KO, WIDE_KO, 'e11 p33 r11'),
    ('ko', WIDE_KO, '곰이 너무 넓어서 내가 본 도로를 건너지 않았다.',
     'e01 p13 r01'),
    ('ko', WIDE_KO, '너무 넓어서', 'e01 r01'),
    ('ko', WHO, WHO, 'e11 p33 w11'),
    ('ko', WHO, '나는 곰을 보고 길을 건넌 토끼다.', 'e01 p22 w01'),
    ('en', 'The bear ate the rice.', 'The fox did not eat the rice.',
     'e01 t11 n01'),
    ('en', 'The bear reads the book.', 'The bear will read the book.',
     'e01 t01 n11'),
    ('en', WIDE, 'The bear did not cross the road because it was too wide.',
     'e01 r11'),
    ('en', WIDE, WIDE.replace('wide', 'tired'), 'e01 r01'),
    ('en', WIDE, WIDE.replace('road', 'street'), 'e01 r01'),
    ('en', 'I am a bear that ate the rice.', 'I am a bear that met me.',
     'e01 w11'),
    ('en', 'I am a bear that ate the rice.', 'I am', 'e01 w01'),
  ],
)  # fmt: skip
def test_scores_by_hand(language, gold, hypothesis, expected):
  letters = dict(zip('eptnrw', score.SCORES, strict=True))
  found = score.judge(hypothesis, gold, language)
  asked = {name: tally for name, tally in found.items() if tally.asked}
  assert asked == {
    letters[word[0]]: score.Tally(int(word[1]), int(word[2]))
    for word in expected.split()
  }


@pytest.mark.parametrize('language', LANGUAGES)
def test_gold_scores_full_by_distance(language, held_out):
  meanings = held_out['test'][:150] + held_out['far_pronoun'][:50]
  texts = [sentence(meaning, language) for meaning in meanings]
  found = score.score(texts, texts, language)
  assert set(found) == set(score.SCORES) - (
    {'particle'} if language == 'en' else set()
  )
  for bins in found.values():
    assert all(tally.right == tally.asked > 0 for tally in bins.values())
  assert set(found['pronoun']) == set(range(9))
  assert set(found['predicate']) == {0, 1, 2, 3}
  # No reading of `it` is right by chance more than half the time.
  swapped = score.score(texts[::-1], texts, language)
  assert sum(t.right for t in swapped['pronoun'].values()) < 50


def test_shares_are_of_what_was_asked_and_by_distance_where_it_varies():
  golds = ['곰은 밥을 먹었다.', WIDE_KO, WHO]
  written = ['곰는 밥을 먹는다.', WIDE_KO, '나는 밥을 먹고 길을 건넌 토끼다.']
  assert score.shares(written, golds, 'ko') == {
    'exact': 1 / 3,
    'exact_by_distance': {0: 0.0, 1: 0.5},
    'particle': 7 / 8,
    'particle_by_distance': {0: 1 / 2, 1: 1.0},
    'tense': 0.0,
    'negation': 1.0,
    'pronoun': 1.0,
    'predicate': 0.0,
  }
