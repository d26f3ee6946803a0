"""What a hypothesis gets right of a gold sentence: functions of text alone.

Each score looks at one thing and does not ask whether the rest is right:

- exact: the whole sentence;
- particle: 은/는, 이/가 and 을/를 after the nouns that the hypothesis has;
- tense, negation: of plain sentences and of those with a copula; a text that
  shows no tense has neither right;
- pronoun: the noun that `it` stands for;
- predicate: who `I` is, at the end of a long predicate.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from transformer_jax.data.korean.lexicon import (
  ADJECTIVES,
  IS_NOT,
  NOT,
  NOUNS,
  ROBOTS,
  SPEAKER,
  TENSES,
  VERBS,
  Noun,
)
from transformer_jax.data.korean.meaning import (
  Copula,
  Meaning,
  Plain,
  Predicate,
  Pronoun,
  distance,
)
from transformer_jax.data.korean.parse import PHRASES, parse, tokens
from transformer_jax.data.korean.particles import PARTICLES


class Tally(NamedTuple):
  """Times right out of times asked; a score that is not asked has 0 of 0."""

  right: int
  asked: int

  def __add__(self, other: 'Tally') -> 'Tally':  # type: ignore[override]
    return Tally(self.right + other.right, self.asked + other.asked)


_NOTHING = Tally(0, 0)


def judge(hypothesis: str, gold: str, language: str) -> dict[str, Tally]:
  """Every score of one sentence.

  Args:
    hypothesis: any text.
    gold: a sentence of the language.
    language: of both, en or ko.

  Raises:
    ValueError: gold is no sentence of the language.

  >>> judge('곰는 밥을 먹는다.', '곰은 밥을 먹었다.', 'ko')['particle']
  Tally(right=1, asked=2)
  """
  meaning = parse(gold, language)
  text = hypothesis.strip()
  scores = {'exact': Tally(int(text == gold), 1)}
  for name, measure in _MEASURES.items():
    scores[name] = measure(text, meaning, gold, language)
  return scores


def score(
  hypotheses: Iterable[str], golds: Iterable[str], language: str
) -> dict[str, dict[int, Tally]]:
  """{score: {distance: tally}} over sentences; what was not asked is absent.

  Args:
    hypotheses: texts, aligned with `golds`.
    golds: sentences of the language.
    language: of both, en or ko.
  """
  total: defaultdict[str, defaultdict[int, Tally]]
  total = defaultdict(lambda: defaultdict(lambda: _NOTHING))
  for hypothesis, gold in zip(hypotheses, golds, strict=True):
    far = distance(parse(gold, language))
    for name, tally in judge(hypothesis, gold, language).items():
      if tally.asked:
        total[name][far] += tally
  return {name: dict(sorted(bins.items())) for name, bins in total.items()}


def shares(
  hypotheses: Iterable[str], golds: Iterable[str], language: str
) -> dict[str, Any]:
  """{score: right out of asked}, and {score_by_distance: {distance: share}}.

  Arguments as in `score`. The second where the distance varies.

  >>> shares(['나는 의사다.'], ['나는 의사였다.'], 'ko')
  {'exact': 0.0, 'particle': 1.0, 'tense': 0.0, 'negation': 1.0}
  """
  found: dict[str, Any] = {}
  for name, bins in score(hypotheses, golds, language).items():
    right, asked = (sum(counts) for counts in zip(*bins.values(), strict=True))
    found[name] = right / asked
    if len(bins) > 1:
      found[f'{name}_by_distance'] = {
        far: tally.right / tally.asked for far, tally in bins.items()
      }
  return found


_CASES = ('topic', 'subject', 'object')
# Every noun before every particle of these, right or wrong: 곰은 and 곰는.
_NOUN_AND_PARTICLE = {
  stem.replace(' ', '~') + particle: (noun, particle)
  for noun in (*NOUNS, SPEAKER, *ROBOTS)
  for stem in {noun.korean, '내' if noun == SPEAKER else noun.korean}
  for role in _CASES
  for particle in PARTICLES[role]
}


def _particle(text: str, meaning: Meaning, gold: str, language: str) -> Tally:
  """The n-th time of a noun in the gold with the n-th in the hypothesis."""
  del meaning
  if language != 'ko':
    return _NOTHING
  said: defaultdict[Noun, list[str]] = defaultdict(list)
  for token in tokens(text):
    if token in _NOUN_AND_PARTICLE:
      noun, _ = _NOUN_AND_PARTICLE[token]
      said[noun].append(token)
  number: Counter[Noun] = Counter()
  right = asked = 0
  for token in tokens(gold):
    noun, role = PHRASES.get(token, (SPEAKER, ''))
    if role not in _CASES:
      continue
    if number[noun] < len(said[noun]):
      asked += 1
      right += said[noun][number[noun]] == token
    number[noun] += 1
  return Tally(right, asked)


def _tense(text: str, meaning: Meaning, gold: str, language: str) -> Tally:
  if not isinstance(meaning, Plain | Copula):
    return _NOTHING
  return Tally(int(tense_of(text, language) == meaning.tense), 1)


_FINITE = {
  form.text: tense
  for tense in TENSES
  for form in (
    *(verb.form(tense) for verb in VERBS.values()),
    NOT[tense],
    *([IS_NOT[tense]] if tense in IS_NOT else []),
  )
}
# Auxiliaries first: after one, the verb has no tense.
_ENGLISH_TENSES = (
  ('future', {'will'}),
  ('past', {'did', 'was'}),
  ('present', {'do', 'does', 'am', 'is'}),
  ('past', {verb.past for verb in VERBS.values()}),
  ('present', {w for verb in VERBS.values() for w in (verb.base, verb.third)}),
)


def tense_of(text: str, language: str) -> str:
  """The tense of a plain or copula sentence, '' when it shows none.

  >>> tense_of('곰은 밥을 먹을 것이다.', 'ko'), tense_of('I will.', 'en')
  ('future', 'future')
  """
  if language == 'en':
    said = set(text.removesuffix('.').split())
    return next((tense for tense, by in _ENGLISH_TENSES if said & by), '')
  last = (tokens(text) or [''])[-1]
  if last.replace('~', ' ') in _FINITE:
    return _FINITE[last.replace('~', ' ')]
  _, role = PHRASES.get(last, (SPEAKER, ''))
  return {'is': 'present', 'was': 'past'}.get(role, '')


def _negation(text: str, meaning: Meaning, gold: str, language: str) -> Tally:
  del gold
  if not isinstance(meaning, Plain | Copula):
    return _NOTHING
  # A text without a finite verb does not affirm anything.
  found = is_negated(text, language) if tense_of(text, language) else None
  return Tally(int(found is (meaning.polarity == 'negated')), 1)


def is_negated(text: str, language: str) -> bool:
  """Whether a sentence says not, 않- or 아니-."""
  said = text.removesuffix('.').split()
  if language == 'en':
    return 'not' in said
  return any(word.startswith(('않', '아니')) for word in said)


def _pronoun(text: str, meaning: Meaning, gold: str, language: str) -> Tally:
  del gold
  if not isinstance(meaning, Pronoun):
    return _NOTHING
  find = _english_antecedent if language == 'en' else _korean_antecedent
  return Tally(int(find(text) == meaning.antecedent), 1)


def _korean_antecedent(text: str) -> Noun | None:
  """The noun before 너무: Korean gives the reason by name."""
  said = tokens(text)
  if '너무' not in said[1:]:
    return None
  noun, _ = _NOUN_AND_PARTICLE.get(said[said.index('너무') - 1], (None, ''))
  return noun


_HALVES = re.compile(r'The (\w+) did not \w+ the (\w+).* it was too (\w+)')


def _english_antecedent(text: str) -> Noun | None:
  """The one noun of the main clause that the adjective is said of."""
  found = _HALVES.match(text)
  if not found or found[3] not in ADJECTIVES:
    return None
  kind = ADJECTIVES[found[3]].kind
  main = [noun for noun in NOUNS if noun.english in found.groups()[:2]]
  fitting = [noun for noun in main if noun.kind == kind]
  return fitting[0] if len(fitting) == 1 else None


def _predicate(text: str, meaning: Meaning, gold: str, language: str) -> Tally:
  del gold
  if not isinstance(meaning, Predicate):
    return _NOTHING
  if language == 'en':
    found = re.match(r'I am an? (\w+)', text)
    return Tally(int(bool(found) and found[1] == meaning.noun.english), 1)
  last = (tokens(text) or [''])[-1]
  right = PHRASES.get(last) == (meaning.noun, 'is')
  return Tally(int(right), 1)


_MEASURES: dict[str, Callable[[str, Meaning, str, str], Tally]] = {
  'particle': _particle,
  'tense': _tense,
  'negation': _negation,
  'pronoun': _pronoun,
  'predicate': _predicate,
}
SCORES = ('exact', *_MEASURES)
