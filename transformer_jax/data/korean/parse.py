"""A sentence back to its meaning: the inverse of `render`, by its own rules.

What it accepts is exactly the language: a sentence with a wrong particle, verb
form or article is refused.
"""

import re

from transformer_jax.data.korean.lexicon import (
  ADJECTIVES,
  ADVERBS,
  FORMS,
  NOUNS,
  ROBOTS,
  SPEAKER,
  VERBS,
  Adverb,
  Noun,
  Verb,
  named,
)
from transformer_jax.data.korean.meaning import (
  Clause,
  Copula,
  Meaning,
  Modifier,
  Plain,
  Predicate,
  Pronoun,
  fault,
)
from transformer_jax.data.korean.particles import PARTICLES, attached
from transformer_jax.data.korean.render import sentence


def parse(text: str, language: str) -> Meaning:
  """The meaning of `text`.

  Args:
    text: one sentence.
    language: en or ko.

  Raises:
    ValueError: it is no sentence of the language.

  >>> from transformer_jax.data.korean.render import sentence
  >>> sentence(parse('곰은 로봇 2를 본다.', 'ko'), 'en')
  'The bear sees robot 2.'
  """
  try:
    meaning = {'en': _english, 'ko': _korean}[language](text)
  except (KeyError, ValueError, StopIteration):
    raise ValueError(f'no sentence of {language}: {text!r}') from None
  if reason := fault(meaning):
    raise ValueError(f'not said in {language}, {reason}: {text!r}')
  if sentence(meaning, language) != text:
    raise ValueError(f'{text!r} should be {sentence(meaning, language)!r}')
  return meaning


# English.

_PLAIN = re.compile(
  r'(?P<subject>I|[Tt]he \w+|[Rr]obot \w+) '
  r'(?P<auxiliary>will not|will|did not|do not|does not)? ?(?P<verb>\w+) '
  r'(?P<object>me|the \w+|robot \w+)(?: (?P<adverb>\w+))?'
)
_COPULA = re.compile(
  r'(?P<subject>I|[Tt]he \w+|[Rr]obot \w+) (?P<be>am|is|was)(?P<no> not)? '
  r'(?:an? )?(?P<noun>robot \w+|\w+)'
)
_PRONOUN = re.compile(
  r'The (?P<subject>\w+) did not (?P<verb>\w+) the (?P<object>\w+)'
  r'(?P<clauses>.*?) because it was too (?P<adjective>\w+)'
)
_PREDICATE = re.compile(r'I am an? (?P<noun>\w+) that (?P<modifiers>.+)')
_JOINT = re.compile(r', | and ')


def _english(text: str) -> Meaning:
  text = text.removesuffix('.')
  for pattern, read in (
    (_PRONOUN, _read_pronoun),
    (_PREDICATE, _read_predicate),
    (_COPULA, _read_copula),
    (_PLAIN, _read_plain),
  ):
    if found := pattern.fullmatch(text):
      return read(found)
  raise ValueError


def _noun(words: str) -> Noun:
  words = words.removeprefix('The ').removeprefix('the ')
  words = words.replace('Robot', 'robot')
  return SPEAKER if words == 'me' else named(words)


_TENSE_OF = {
  'will': 'future',
  'did': 'past',
  'do': 'present',
  'does': 'present',
}
# The past last: `I read` is the past, as it has no present in the language.
_FINITE = {
  word: (verb, tense)
  for tense, written in (
    ('present', 'base'),
    ('present', 'third'),
    ('past', 'past'),
  )
  for verb in VERBS.values()
  for word in [getattr(verb, written)]
}


def _past(word: str) -> Verb:
  return next(verb for verb in VERBS.values() if verb.past == word)


def _read_plain(found: re.Match[str]) -> Plain:
  auxiliary = found['auxiliary'] or ''
  if auxiliary:
    verb = VERBS[found['verb']]
    tense = _TENSE_OF[auxiliary.split()[0]]
  else:
    verb, tense = _FINITE[found['verb']]
  return Plain(
    subject=_noun(found['subject']),
    verb=verb,
    object=_noun(found['object']),
    tense=tense,
    polarity='negated' if auxiliary.endswith('not') else 'affirmed',
    adverb=ADVERBS[found['adverb']] if found['adverb'] else None,
  )


def _read_copula(found: re.Match[str]) -> Copula:
  return Copula(
    subject=_noun(found['subject']),
    noun=named(found['noun']),
    tense='past' if found['be'] == 'was' else 'present',
    polarity='negated' if found['no'] else 'affirmed',
  )


def _read_pronoun(found: re.Match[str]) -> Pronoun:
  clauses = []
  if text := found['clauses'].strip():
    for clause in _JOINT.split(text):
      subject, _, word = clause.rpartition(' ')
      clauses.append(Clause(_noun(subject), _past(word)))
  return Pronoun(
    subject=named(found['subject']),
    verb=VERBS[found['verb']],
    object=named(found['object']),
    clauses=tuple(clauses),
    adjective=ADJECTIVES[found['adjective']],
  )


def _read_predicate(found: re.Match[str]) -> Predicate:
  modifiers = []
  for part in _JOINT.split(found['modifiers']):
    word, _, rest = part.partition(' ')
    modifiers.append(Modifier(_past(word), _noun(rest)))
  return Predicate(tuple(modifiers), named(found['noun']))


# Korean. A name and a future are one token each; a verb is found by its
# stored form, a noun by itself with its particle.

PHRASES = {
  ''.join(attached(noun, role)).replace(' ', '~'): (noun, role)
  for noun in (*NOUNS, SPEAKER, *ROBOTS)
  for role in PARTICLES
}
_VERBS = {
  form.text.replace(' ', '~'): (verb, name)
  for verb in VERBS.values()
  for name, form in zip(FORMS, verb.forms, strict=True)
}
_NOT = {'않는다': 'present', '않았다': 'past', '않을~것이다': 'future'}
_REASONS = {word.reason.text: word for word in ADJECTIVES.values()}
_ADVERBS = {word.korean: word for word in ADVERBS.values()}


def tokens(text: str) -> list[str]:
  """Words of a Korean text; `로봇~L은` and `먹을~것이다` are one each."""
  text = text.removesuffix('.').replace('로봇 ', '로봇~')
  return text.replace(' 것이다', '~것이다').split(' ')


def _korean(text: str) -> Meaning:
  words = tokens(text)
  if '너무' in words:
    return _korean_pronoun(words)
  last = words[-1]
  if last in ('아니다', '아니었다'):
    tense = 'present' if last == '아니다' else 'past'
    noun, _ = PHRASES[words[1]]
    return Copula(PHRASES[words[0]][0], noun, tense, 'negated')
  if last in _VERBS or last in _NOT:
    return _korean_plain(words)
  noun, role = PHRASES[last]
  if len(words) == 2:
    tense = {'is': 'present', 'was': 'past'}[role]
    return Copula(PHRASES[words[0]][0], noun, tense, 'affirmed')
  modifiers = [
    Modifier(_VERBS[word][0], PHRASES[phrase][0])
    for phrase, word in zip(words[1:-1:2], words[2:-1:2], strict=True)
  ]
  return Predicate(tuple(modifiers), noun)


def _korean_plain(words: list[str]) -> Plain:
  polarity = 'affirmed'
  verb, tense = _VERBS.get(words[-1], (None, ''))
  if words[-1] in _NOT:
    polarity, tense = 'negated', _NOT[words[-1]]
    verb = _VERBS[words[-2]][0]
    words = words[:-1]
  adverb: Adverb | None = None
  if words[1] in _ADVERBS:
    adverb = _ADVERBS[words[1]]
  (subject, _), (object, _) = PHRASES[words[0]], PHRASES[words[-2]]
  if verb is None:
    raise ValueError
  return Plain(subject, verb, object, tense, polarity, adverb)


def _korean_pronoun(words: list[str]) -> Pronoun:
  at = words.index('너무')
  adjective = _REASONS[words[at + 1]]
  before, after = words[:at], words[at + 2 : -1]
  antecedent = PHRASES[before[-1]][0]
  other = PHRASES[after[-2]][0]
  # The clauses stand before the object, whichever half it is in.
  if antecedent.kind == 'animal':
    subject, object, described = antecedent, other, after[:-2]
  else:
    subject, object, described = other, antecedent, before[:-1]
  clauses = [
    Clause(PHRASES[phrase][0], _VERBS[word][0])
    for phrase, word in zip(described[::2], described[1::2], strict=True)
  ]
  verb = _VERBS[after[-1]][0]
  return Pronoun(subject, verb, object, tuple(clauses), adjective)
