"""Which words of two sentences belong together."""

import pytest

from transformer_jax.data.korean import links
from transformer_jax.data.korean.parse import parse
from transformer_jax.data.korean.render import sentence


def linked(english: str, languages=('en', 'ko')) -> dict[str, set]:
  """{strength: pairs of words} of a sentence."""
  meaning = parse(english, 'en')
  texts = [sentence(meaning, language) for language in languages]
  found = {'sure': set(), 'possible': set()}
  for link in links.links(meaning, languages):
    words = texts[0][slice(*link.source)], texts[1][slice(*link.target)]
    found[link.strength].add(words)
  return found


def test_links_by_hand():
  found = linked('The animal did not cross the street because it was too wide.')
  assert found['sure'] == {
    ('animal', '동물'),
    ('cross', '건너'),
    ('street', '길'),
    ('it', '길'),
    ('too', '너무'),
    ('wide', '넓'),
  }
  assert found['possible'] == {
    ('did', '않'), ('did', '았다'), ('not', '않'),
    ('because', '어서'), ('was', '어서'),
  }  # fmt: skip
  tired = linked('The bear did not buy the bag because it was too tired.')
  assert ('it', '곰') in tired['sure'] and ('bear', '곰') in tired['sure']
  assert linked('Robot L will buy the bag.') == {
    'sure': {('Robot', '로봇'), ('L', 'L'), ('buy', '살'), ('bag', '가방')},
    'possible': {('will', '것이다')},
  }
  back = linked('The doctor was not robot 2.', ('ko', 'en'))
  assert back['sure'] == {('의사', 'doctor'), ('로봇', 'robot'), ('2', '2')}
  assert back['possible'] == {
    ('아니', 'was'), ('아니', 'not'), ('었다', 'was'),
  }  # fmt: skip


def test_relations_by_hand():
  def related(text, language):
    return {
      (r.name, text[slice(*r.start)], text[slice(*r.end)])
      for r in links.relations(parse(text, language), language)
    }

  assert related(
    'The bear did not cross the road the king saw because it was too tired.',
    'en',
  ) == {
    ('object', 'cross', 'road'),
    ('object', 'saw', 'road'),
    ('antecedent', 'it', 'bear'),
  }
  assert related('나는 치킨을 먹고 로봇 2를 본 코끼리다.', 'ko') == {
    ('predicate', '나', '코끼리'),
    ('object', '먹', '치킨'),
    ('object', '본', '2'),
  }
  assert related('곰은 학생이 아니다.', 'ko') == {('predicate', '곰', '학생')}


def test_projection_to_subwords():
  meaning = parse('I ate the rice.', 'en')
  texts = 'I ate the rice.', '나는 밥을 먹었다.'
  # A syllable can be spelled in bytes.
  pieces = (
    ['▁I', '▁at', 'e', '▁the', '▁', 'rice', '.'],
    ['▁나는', '▁', '<0xEB>', '<0xB0>', '<0xA5>', '을', '▁먹었', '다.'],
  )
  source, target = map(links.piece_spans, pieces, texts)
  assert [texts[1][slice(*span)] for span in target] == [
    '나는', ' ', '밥', '밥', '밥', '을', '먹었', '다.',
  ]  # fmt: skip
  gold = links.project(links.links(meaning, ('en', 'ko')), source, target)
  assert gold.sure == gold.possible == {
    (0, 0), (1, 6), (2, 6), (5, 2), (5, 3), (5, 4),
  }  # fmt: skip
  assert links.alignment_error_rate(gold.sure, gold) == 0
  assert links.alignment_error_rate({(0, 0), (3, 1)}, gold) == 1 - 2 / 8
  for wrong in (['▁I', '▁eat'], ['▁I'], ['▁I', '']):
    with pytest.raises(ValueError):
      links.piece_spans(wrong, texts[0])


def test_possible_links_cost_nothing():
  gold = links.Projected(frozenset({(0, 0)}), frozenset({(0, 0), (1, 2)}))
  assert links.alignment_error_rate({(0, 0)}, gold) == 0
  assert links.alignment_error_rate({(0, 0), (1, 2)}, gold) == 0
  assert links.alignment_error_rate({(1, 2)}, gold) == 1 / 2
