"""A meaning to the morphemes of its sentence in either language.

Morphemes of the two languages that share a tag are aligned. Tags of content
are sure, those of grammar possible; articles, particles and the ending of an
affirmed verb have none.
"""

from typing import NamedTuple

from transformer_jax.data.korean.lexicon import IS_NOT, NOT, Form, Noun, Verb
from transformer_jax.data.korean.meaning import (
  Copula,
  Meaning,
  Modifier,
  Plain,
  Predicate,
  Pronoun,
)
from transformer_jax.data.korean.particles import attached

LANGUAGES = ('en', 'ko')


class Morpheme(NamedTuple):
  """A part of a sentence; a space before it belongs to its text."""

  text: str
  sure: tuple[str, ...] = ()
  possible: tuple[str, ...] = ()


def morphemes(meaning: Meaning, language: str) -> list[Morpheme]:
  """The sentence in parts; joined they are its text.

  Args:
    meaning: without fault.
    language: en or ko.
  """
  parts = _WRITERS[language, type(meaning)](meaning)
  parts.append(Morpheme('.'))
  first = parts[0].text.removeprefix(' ')
  return [parts[0]._replace(text=first[0].upper() + first[1:]), *parts[1:]]


def sentence(meaning: Meaning, language: str) -> str:
  """The one sentence that says `meaning`."""
  return ''.join(part.text for part in morphemes(meaning, language))


def pair(meaning: Meaning, languages: tuple[str, str]) -> tuple[str, str]:
  """Its sentences in two languages, source first."""
  return sentence(meaning, languages[0]), sentence(meaning, languages[1])


# English. Every part starts with its space; `morphemes` takes the first away.


def _words(noun: Noun, tag: str, article: str = 'the') -> list[Morpheme]:
  """`the bear`, `robot L` or `I`."""
  if noun.kind == 'robot':
    robot, name = noun.english.split()
    return [
      Morpheme(f' {robot}', (f'{tag}.robot',)),
      Morpheme(f' {name}', (tag,)),
    ]
  if noun.kind == 'speaker':
    return [Morpheme(' me' if tag == 'object' else ' I', (tag,))]
  return [Morpheme(f' {article}'), Morpheme(f' {noun.english}', (tag,))]


def _article(noun: Noun) -> str:
  return 'an' if noun.english[0] in 'aeiou' else 'a'


def _be(noun: Noun, tense: str) -> str:
  if tense == 'past':
    return ' was'
  return ' am' if noun.kind == 'speaker' else ' is'


def _joint(number: int, count: int) -> list[Morpheme]:
  """What stands before item `number` of a list: nothing, `,` or `and`."""
  if not number:
    return []
  text = ' and' if number == count - 1 else ','
  return [Morpheme(text, possible=(f'joint{number - 1}',))]


def _english_plain(meaning: Plain) -> list[Morpheme]:
  verb, tense = meaning.verb, meaning.tense
  speaker = meaning.subject.kind == 'speaker'
  parts = _words(meaning.subject, 'subject')
  auxiliary, form = '', verb.base
  if tense == 'future':
    auxiliary = ' will'
  elif meaning.polarity == 'negated':
    auxiliary = ' did' if tense == 'past' else ' do' if speaker else ' does'
  elif tense == 'past':
    form = verb.past
  elif not speaker:
    form = verb.third
  if auxiliary:
    parts.append(Morpheme(auxiliary, possible=('tense', 'auxiliary')))
  if meaning.polarity == 'negated':
    parts.append(Morpheme(' not', possible=('not',)))
  parts.append(Morpheme(f' {form}', ('verb',)))
  parts += _words(meaning.object, 'object')
  if meaning.adverb:
    parts.append(Morpheme(f' {meaning.adverb.english}', ('adverb',)))
  return parts


def _english_copula(meaning: Copula) -> list[Morpheme]:
  parts = _words(meaning.subject, 'subject')
  be = _be(meaning.subject, meaning.tense)
  parts.append(Morpheme(be, possible=('tense', 'auxiliary')))
  if meaning.polarity == 'negated':
    parts.append(Morpheme(' not', possible=('not',)))
  return parts + _words(meaning.noun, 'noun', _article(meaning.noun))


def _english_pronoun(meaning: Pronoun) -> list[Morpheme]:
  parts = _words(meaning.subject, 'subject')
  parts += [
    Morpheme(' did', possible=('tense', 'auxiliary')),
    Morpheme(' not', possible=('not',)),
    Morpheme(f' {meaning.verb.base}', ('verb',)),
  ]
  parts += _words(meaning.object, 'object')
  count = len(meaning.clauses)
  for number, (subject, verb) in enumerate(meaning.clauses):
    parts += _joint(number, count)
    parts += _words(subject, f'clause{number}.subject')
    parts.append(Morpheme(f' {verb.past}', (f'clause{number}.verb',)))
  return [
    *parts,
    Morpheme(' because', possible=('reason',)),
    Morpheme(' it', ('it',)),
    Morpheme(' was', possible=('reason',)),
    Morpheme(' too', ('degree',)),
    Morpheme(f' {meaning.adjective.english}', ('adjective',)),
  ]


def _english_predicate(meaning: Predicate) -> list[Morpheme]:
  parts = [
    Morpheme('I', ('subject',)),
    Morpheme(' am', possible=('auxiliary',)),
    *_words(meaning.noun, 'noun', _article(meaning.noun)),
    Morpheme(' that'),
  ]
  count = len(meaning.modifiers)
  for number, (verb, noun) in enumerate(meaning.modifiers):
    parts += _joint(number, count)
    parts.append(Morpheme(f' {verb.past}', (f'modifier{number}.verb',)))
    parts += _words(noun, f'modifier{number}.object')
  return parts


# Korean.


def _phrase(
  noun: Noun, role: str, tag: str, *, also: tuple[str, ...] = ()
) -> list[Morpheme]:
  """A noun and its particle."""
  text, particle = attached(noun, role)
  last = Morpheme(particle)
  if role in ('is', 'was'):
    last = Morpheme(particle, possible=('tense', 'auxiliary'))
  if noun.kind != 'robot':
    return [Morpheme(f' {text}', (tag, *also)), last]
  robot, name = text.split()
  return [
    Morpheme(f' {robot}', (f'{tag}.robot',)),
    Morpheme(f' {name}', (tag, *also)),
    last,
  ]


def _verb(form: Form, tag: str, ending: str = '') -> list[Morpheme]:
  """A stored form, stem and ending apart."""
  parts = [Morpheme(f' {form.stem}', (tag,))]
  if form.ending:
    parts.append(Morpheme(form.ending, possible=(ending,) if ending else ()))
  return parts


def _finite(verb: Verb, tense: str, polarity: str) -> list[Morpheme]:
  if polarity == 'affirmed':
    return _verb(verb.form(tense), 'verb', 'tense')
  no = NOT[tense]
  return [
    *_verb(verb.form('ji'), 'verb'),
    # did, will and not may all go with 않-.
    Morpheme(f' {no.stem}', possible=('not', 'auxiliary')),
    Morpheme(no.ending, possible=('tense',)),
  ]


def _korean_plain(meaning: Plain) -> list[Morpheme]:
  parts = _phrase(meaning.subject, 'topic', 'subject')
  if meaning.adverb:
    parts.append(Morpheme(f' {meaning.adverb.korean}', ('adverb',)))
  parts += _phrase(meaning.object, 'object', 'object')
  return parts + _finite(meaning.verb, meaning.tense, meaning.polarity)


def _korean_copula(meaning: Copula) -> list[Morpheme]:
  parts = _phrase(meaning.subject, 'topic', 'subject')
  if meaning.polarity == 'affirmed':
    role = 'is' if meaning.tense == 'present' else 'was'
    return parts + _phrase(meaning.noun, role, 'noun')
  no = IS_NOT[meaning.tense]
  return [
    *parts,
    *_phrase(meaning.noun, 'subject', 'noun'),
    Morpheme(f' {no.stem}', possible=('not', 'auxiliary')),
    Morpheme(no.ending, possible=('tense',)),
  ]


def _korean_pronoun(meaning: Pronoun) -> list[Morpheme]:
  """The reason first, with the antecedent by name; then what is left."""
  described = []
  last = len(meaning.clauses) - 1
  for number, (subject, verb) in enumerate(meaning.clauses):
    described += _phrase(subject, 'subject', f'clause{number}.subject')
    form = verb.form('adnominal' if number == last else 'go')
    described += _verb(form, f'clause{number}.verb', f'joint{number}')
  reason = meaning.adjective.reason
  because = [
    Morpheme(' 너무', ('degree',)),
    Morpheme(f' {reason.stem}', ('adjective',)),
    Morpheme(reason.ending, possible=('reason',)),
  ]
  act = _finite(meaning.verb, 'past', 'negated')
  named = _phrase(meaning.antecedent, 'subject', meaning.reading, also=('it',))
  if meaning.reading == 'subject':
    rest = _phrase(meaning.object, 'object', 'object')
    return [*named, *because, *described, *rest, *act]
  rest = _phrase(meaning.subject, 'topic', 'subject')
  return [*described, *named, *because, *rest, *act]


def _korean_predicate(meaning: Predicate) -> list[Morpheme]:
  parts = [Morpheme('나', ('subject',)), Morpheme('는')]
  last = len(meaning.modifiers) - 1
  for number, modifier in enumerate(meaning.modifiers):
    parts += _korean_modifier(modifier, number, last)
  return parts + _phrase(meaning.noun, 'is', 'noun')


def _korean_modifier(
  modifier: Modifier, number: int, last: int
) -> list[Morpheme]:
  form = modifier.verb.form('adnominal' if number == last else 'go')
  return [
    *_phrase(modifier.object, 'object', f'modifier{number}.object'),
    *_verb(form, f'modifier{number}.verb', f'joint{number}'),
  ]


_WRITERS = {
  ('en', Plain): _english_plain,
  ('en', Copula): _english_copula,
  ('en', Pronoun): _english_pronoun,
  ('en', Predicate): _english_predicate,
  ('ko', Plain): _korean_plain,
  ('ko', Copula): _korean_copula,
  ('ko', Pronoun): _korean_pronoun,
  ('ko', Predicate): _korean_predicate,
}
