"""What can be said: four types of sentence, apart from how it is written."""

import dataclasses
import itertools
from typing import NamedTuple

from transformer_jax.data.korean.lexicon import Adjective, Adverb, Noun, Verb


@dataclasses.dataclass(frozen=True)
class Plain:
  """The elephant did not eat the apple yesterday."""

  subject: Noun
  verb: Verb
  object: Noun
  tense: str
  polarity: str  # affirmed or negated
  adverb: Adverb | None


@dataclasses.dataclass(frozen=True)
class Copula:
  """The bear is not a student."""

  subject: Noun
  noun: Noun
  tense: str  # present or past
  polarity: str


class Clause(NamedTuple):
  """`the student saw`, 학생이 본, on a noun outside of it."""

  subject: Noun
  verb: Verb


@dataclasses.dataclass(frozen=True)
class Pronoun:
  """The animal did not cross the street because it was too wide.

  The adjective decides what `it` is; relative clauses on the object take
  both candidates away from it.
  """

  subject: Noun
  verb: Verb
  object: Noun
  clauses: tuple[Clause, ...]
  adjective: Adjective

  @property
  def reading(self) -> str:
    """Which of `subject` and `object` is meant by `it`."""
    fits = self.adjective.kind == self.subject.kind
    return 'subject' if fits else 'object'

  @property
  def antecedent(self) -> Noun:
    return getattr(self, self.reading)


class Modifier(NamedTuple):
  """`ate the chicken`, 치킨을 먹은, of a noun outside of it."""

  verb: Verb
  object: Noun


@dataclasses.dataclass(frozen=True)
class Predicate:
  """I am an elephant that ate the chicken and bought the bread."""

  modifiers: tuple[Modifier, ...]
  noun: Noun


Meaning = Plain | Copula | Pronoun | Predicate


def distance(meaning: Meaning) -> int:
  """Clauses between a question and its answer.

  Of a pronoun the relative clauses, of a long predicate the modifiers before
  the last; 0 where a type has none.
  """
  if isinstance(meaning, Pronoun):
    return len(meaning.clauses)
  if isinstance(meaning, Predicate):
    return len(meaning.modifiers) - 1
  return 0


def question(meaning: Meaning) -> tuple[object, ...]:
  """What is asked, without its answer.

  Training and held-out splits are parted by it. By the whole sentence, the
  answer to a held-out one would be what training had left out.
  """
  if isinstance(meaning, Pronoun):
    clauses = [(c.subject.english, c.verb.base) for c in meaning.clauses]
    return (
      'pronoun',
      meaning.subject.english,
      meaning.verb.base,
      meaning.object.english,
      clauses,
    )
  if isinstance(meaning, Predicate):
    parts = [(m.verb.base, m.object.english) for m in meaning.modifiers]
    return 'predicate', parts
  if isinstance(meaning, Copula):
    ends = meaning.tense, meaning.polarity
    return 'copula', meaning.subject.english, meaning.noun.english, *ends
  return (
    'plain',
    meaning.subject.english,
    meaning.verb.base,
    meaning.object.english,
    meaning.tense,
    meaning.polarity,
    meaning.adverb.english if meaning.adverb else '',
  )


def fault(meaning: Meaning) -> str:
  """Why this is not said in the language; empty when it is."""
  if isinstance(meaning, Plain):
    return _plain_fault(meaning)
  if isinstance(meaning, Copula):
    return _copula_fault(meaning)
  if isinstance(meaning, Pronoun):
    return _pronoun_fault(meaning)
  return _predicate_fault(meaning)


def _plain_fault(meaning: Plain) -> str:
  verb, adverb = meaning.verb, meaning.adverb
  if meaning.subject.kind not in ('animal', 'person', 'speaker', 'robot'):
    return 'the subject does not act'
  if not verb.takes(meaning.object):
    return 'the verb takes no such object'
  if meaning.subject == meaning.object:
    return 'subject and object are one'
  if adverb and meaning.tense not in adverb.tenses:
    return 'the adverb does not agree with the tense'
  if meaning.polarity == 'negated' and verb.base == 'find':
    # -지 않다 denies a will; not to find is 못, which the language lacks.
    return 'finding is not a matter of will'
  unclear = (
    meaning.subject.kind == 'speaker'
    and verb.base == 'read'
    and meaning.polarity == 'affirmed'
    and meaning.tense != 'future'
  )
  if unclear and not (adverb and adverb.english == 'yesterday'):
    return 'I read: present and past are written alike'
  return ''


def _copula_fault(meaning: Copula) -> str:
  if meaning.subject.kind not in ('animal', 'person', 'speaker', 'robot'):
    return 'nothing else is compared'
  if meaning.noun.kind not in ('animal', 'person', 'robot'):
    return 'nobody is such a thing'
  if meaning.subject == meaning.noun:
    return 'subject and complement are one'
  if meaning.tense == 'future':
    return 'the copula has no future'
  both = meaning.subject.kind == meaning.noun.kind == 'robot'
  if both and meaning.polarity == 'affirmed':
    return 'a robot is no other robot'
  return ''


def _pronoun_fault(meaning: Pronoun) -> str:
  if meaning.subject.kind != 'animal':
    return 'the subject is no animal'
  pair = meaning.verb.base, meaning.object.kind
  if pair not in (('cross', 'place'), ('buy', 'thing')):
    return 'no adjective gives a reason against that'
  # Exactly one noun phrase of the class: subject and object differ in kind.
  if meaning.adjective.kind not in ('animal', meaning.object.kind):
    return 'the adjective fits neither noun'
  if len(set(meaning.clauses)) < len(meaning.clauses):
    return 'a clause is said twice'
  for subject, verb in meaning.clauses:
    if subject.kind not in ('person', 'speaker'):
      return 'the subject of a clause is no person'
    if not verb.describes(meaning.object):
      return 'the verb of a clause does not describe the noun'
    if subject.kind == 'speaker' and verb.base == 'read':
      return 'I read: present and past are written alike'
  for left, right in itertools.pairwise(meaning.clauses):
    if left.subject == right.subject or left.verb == right.verb:
      return 'neighbouring clauses would be said as one'
  return ''


def _predicate_fault(meaning: Predicate) -> str:
  if meaning.noun.kind not in ('animal', 'person'):
    return 'nobody is such a thing'
  if not meaning.modifiers:
    return 'nothing is said of the noun'
  if len(set(meaning.modifiers)) < len(meaning.modifiers):
    return 'a modifier is said twice'
  for verb, noun in meaning.modifiers:
    if not verb.takes(noun):
      return 'the verb takes no such object'
    if noun.kind == 'speaker':
      return 'I did it to myself'
  for left, right in itertools.pairwise(meaning.modifiers):
    # 사과와 밥을 먹은, not 사과를 먹고 밥을 먹은.
    if left.verb == right.verb:
      return 'neighbouring modifiers would be said as one'
  return ''
