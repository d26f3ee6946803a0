"""What is generated: the same for ever, parted by split, balanced."""

import hashlib
import itertools
import math
from collections import Counter, defaultdict

import pytest

from tests.data.korean.conftest import some
from transformer_jax.data.korean import generate
from transformer_jax.data.korean.meaning import (
  Copula,
  Meaning,
  Plain,
  Predicate,
  Pronoun,
  distance,
)
from transformer_jax.data.korean.render import LANGUAGES, morphemes, sentence


def test_the_same_sentences_for_ever(train, held_out):
  """Seeds written into results must mean the same sentences."""
  text = ''.join(
    sentence(meaning, language)
    for meaning in itertools.chain(train[:1000], *held_out.values())
    for language in LANGUAGES
  )
  found = hashlib.sha256(text.encode()).hexdigest()[:16]
  assert found == '9264588d7d12a122'


def test_seeds_differ_and_sizes_are_prefixes(train):
  assert some('train', 500) == train[:500]
  assert some('test', 100, seed=1) != some('test', 100)
  assert some('test', 10) == some('test', 100)[:10]


def asked_in(meaning: Meaning) -> str:
  """The sentence with its answer left out."""
  text = sentence(meaning, 'en')
  if isinstance(meaning, Pronoun):
    return text.rpartition(' ')[0]
  if isinstance(meaning, Predicate):
    return text.split(' that ')[1]
  return text


def test_splits_do_not_overlap(train, held_out):
  trained = set(train) | set(some('train', 2000, seed=1))
  asked = {asked_in(meaning) for meaning in trained}
  for split, meanings in held_out.items():
    assert len(set(meanings)) == len(meanings) == 512
    assert not trained & set(meanings), split
    # Not with another answer either, which would leave this one over.
    assert not asked & {asked_in(meaning) for meaning in meanings}, split
  for first, second in itertools.combinations(held_out.values(), 2):
    assert not set(first) & set(second)


def pairs_in(meaning: Meaning) -> set[tuple[str, str]]:
  """Verb and object, wherever they stand."""
  if isinstance(meaning, Plain):
    return {(meaning.verb.base, meaning.object.english)}
  if isinstance(meaning, Predicate):
    return {(m.verb.base, m.object.english) for m in meaning.modifiers}
  if isinstance(meaning, Pronoun):
    verbs = [meaning.verb, *(clause.verb for clause in meaning.clauses)]
    return {(verb.base, meaning.object.english) for verb in verbs}
  return set()


def test_special_splits_ask_what_training_never_has(train, held_out):
  unseen = {(verb.base, noun.english) for verb, noun in generate.UNSEEN}
  ordinary = [*train, *held_out['validation'], *held_out['test']]
  for meaning in ordinary:
    assert not unseen & pairs_in(meaning)
    assert distance(meaning) <= 3
  for meaning in held_out['unseen_pair']:
    assert unseen & pairs_in(meaning)
  subjects = set(generate.SUBJECT_ONLY)
  names = {noun.korean.split()[1] for noun in generate.TOPIC_ONLY}
  seen = Counter()
  for meaning in ordinary:
    said = sentence(meaning, 'ko').split()
    for noun in subjects:
      assert not {noun.korean + p for p in ('을', '를', '다', '이다')} & set(
        said
      )
    for before, word in itertools.pairwise(said):
      if before == '로봇' and word[:-1] in names:
        assert word[-1] in '은는'
        seen[word[:-1]] += 1
    if isinstance(meaning, Copula):
      assert meaning.noun not in subjects
  assert seen.keys() == names
  assert {m.object for m in held_out['subject_nouns']} == subjects
  asked = Counter(
    word[-1]
    for meaning in held_out['topic_names']
    for word in sentence(meaning, 'ko').split()[2:]
    if word[:-1] in names
  )
  assert min(asked[p] for p in '이가을를') > 20
  for split in ('long_predicate', 'far_pronoun'):
    assert {distance(m) for m in held_out[split]} == {4, 5, 6, 7, 8}


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_every_word_occurs_in_a_small_training_set(seed, held_out):
  least = generate.smallest_training(seed)
  assert least <= 120
  trained = set().union(*map(generate.words, some('train', least, seed)))
  assert trained >= generate.WORDS
  # Of the morphemes and forms that are asked, nothing is outside WORDS but
  # particles, endings and function words; with these, all are trained.
  trained |= set().union(*map(generate.words, some('train', 1000, seed)))
  for meaning in itertools.chain(*held_out.values()):
    for language in LANGUAGES:
      for part in morphemes(meaning, language):
        text = part.text.strip()
        lower = text if len(text) == 1 else text.lower()
        assert (language, lower) in trained


def test_both_readings_in_every_distance_bin(train, held_out):
  for split, meanings in {'train': train[:2000], **held_out}.items():
    bins = Counter(
      (distance(meaning), meaning.reading)
      for meaning in meanings
      if isinstance(meaning, Pronoun)
    )
    for clauses in {clauses for clauses, _ in bins}:
      both = bins[clauses, 'subject'], bins[clauses, 'object']
      assert abs(both[0] - both[1]) <= 1, (split, clauses)
      assert min(both) >= 5
  for meaning in train:
    if isinstance(meaning, Pronoun):
      kinds = [meaning.subject.kind, meaning.object.kind]
      kinds += [clause.subject.kind for clause in meaning.clauses]
      assert kinds.count(meaning.adjective.kind) == 1
      assert meaning.antecedent.kind in ('animal', 'place', 'thing')


def test_long_predicates_cannot_be_guessed(train, held_out):
  """Naive Bayes over the modifiers does no better than 1 in 8."""
  predicates = [m for m in train if isinstance(m, Predicate)]
  nouns = sorted({m.noun.english for m in predicates})
  assert len(nouns) == 8
  seen = Counter((m.noun.english, p) for m in predicates for p in pairs_in(m))
  often = Counter(m.noun.english for m in predicates)
  for meanings in (predicates, held_out['long_predicate']):
    bins = defaultdict(Counter)
    for meaning in meanings:
      bins[distance(meaning)][meaning.noun.english] += 1
    for found in bins.values():
      assert max(found.values()) - min(found[noun] for noun in nouns) <= 2
  right = 0
  asked = held_out['long_predicate']
  for meaning in asked:
    likely = {
      noun: sum(
        math.log((seen[noun, p] + 1) / (often[noun] + 80))
        for p in pairs_in(meaning)
      )
      for noun in nouns
    }
    right += max(nouns, key=likely.__getitem__) == meaning.noun.english
  # Four standard deviations of 512 guesses.
  assert abs(right / len(asked) - 1 / 8) < 4 * math.sqrt(7 / 64 / 512)
