"""Sentences of each split, from a seed.

Held out for ever, whatever the seed: verb and object pairs that training
never joins; nouns it has only as subjects; names it has only with 은/는; and
of everything else the questions (`meaning.question`) of two hash classes, one
for validation and one for test. Clauses go to 3 in training.

The splits besides train, validation and test ask one thing each:

- unseen_pair: an object of a verb that it was never seen with;
- subject_nouns: as an object, what was a subject only;
- topic_names: with 이/가 or 을/를, a name seen only with 은/는;
- long_predicate: a predicate noun after 4 to 8 modifiers and one;
- far_pronoun: a pronoun behind 4 to 8 relative clauses.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from transformer_jax.data.korean.lexicon import (
  ADJECTIVES,
  ADVERBS,
  FORMS,
  IS_NOT,
  NOT,
  NOUNS,
  ROBOTS,
  SPEAKER,
  TENSES,
  VERBS,
  Noun,
  Verb,
  named,
  of_kind,
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
  question,
)
from transformer_jax.data.korean.particles import closed
from transformer_jax.data.korean.render import LANGUAGES, morphemes

TRAIN_SIZE = 20_000  # pairs of training when no number is asked for
NEAR, FAR = range(4), range(4, 9)  # clauses of training, and beyond

UNSEEN = frozenset(
  (VERBS[verb], named(noun))
  for verb, noun in (
    ('eat', 'banana'),
    ('eat', 'bread'),
    ('buy', 'rice'),
    ('buy', 'apple'),
    ('see', 'bear'),
    ('see', 'instructor'),
    ('meet', 'rabbit'),
    ('meet', 'student'),
    ('find', 'bridge'),
    ('find', 'book'),
  )
)
SUBJECT_ONLY = tuple(map(named, ('fox', 'deer', 'singer', 'king')))
TOPIC_ONLY = tuple(named(f'robot {n}') for n in 'M 3 8 10 C T 4 65'.split())

_CLASSES = 8  # of questions: one is for validation, one for test
_PATIENCE = 5000  # draws in vain before a split is said to be exhausted
_SAMPLE = 4096  # random numbers made at once
_STREAMS = 0x6B6F << 48  # far from the keys of epochs in a batch plan

_Item = TypeVar('_Item')


class Dice:
  """Random choices that are a function of two numbers.

  From the raw bits of Philox, which numpy promises to keep.
  """

  def __init__(self, seed: int, stream: int):
    self._bits = np.random.Philox(key=(seed, _STREAMS + stream))
    self._left: list[int] = []

  def pick(self, options: Sequence[_Item]) -> _Item:
    if not self._left:
      self._left = self._bits.random_raw(_SAMPLE).tolist()
    return options[self._left.pop() * len(options) >> 64]


def _by_sound(nouns: Sequence[Noun]) -> tuple[tuple[Noun, ...], ...]:
  """Those that end in a consonant and those that do not."""
  return tuple(
    tuple(noun for noun in nouns if closed(noun.korean) is sound)
    for sound in (True, False)
  )


_ACTORS = {
  'animal': of_kind('animal'),
  'person': of_kind('person'),
  'speaker': (SPEAKER,),
}
_WITNESSES = of_kind('person', 'speaker')
_NAMES = _by_sound(ROBOTS)
_OBJECTS = tuple(noun for noun in (*NOUNS, SPEAKER) if noun not in SUBJECT_ONLY)
_OBJECT_NAMES = _by_sound([noun for noun in ROBOTS if noun not in TOPIC_ONLY])
_PREDICATES = tuple(
  noun for noun in _OBJECTS if noun.kind in ('animal', 'person')
)
_BY_KIND = {
  kind: tuple(noun for noun in _OBJECTS if noun.kind == kind)
  for kind in ('animal', 'person', 'speaker', 'food', 'thing', 'place')
}
# Only books are read: half as often as anything else is done.
_ACTS = tuple(
  verb
  for verb in VERBS.values()
  for _ in range(1 if verb.base == 'read' else 2)
)
_POLARITIES = ('affirmed', 'negated')


def _actor(dice: Dice) -> Noun:
  """A subject; a robot's name is closed or open with equal chance."""
  kind = dice.pick(('animal', 'animal', 'person', 'person', 'robot', 'speaker'))
  if kind == 'robot':
    return dice.pick(dice.pick(_NAMES))
  return dice.pick(_ACTORS[kind])


def _object(dice: Dice, verb: Verb) -> Noun:
  """An object that training may join with `verb`."""
  while True:
    kind = dice.pick(verb.objects)
    if kind == 'robot':
      return dice.pick(dice.pick(_OBJECT_NAMES))
    options = _BY_KIND[kind] if kind in _BY_KIND else (named(kind),)
    noun = dice.pick(options)
    if (verb, noun) not in UNSEEN:
      return noun


def _plain(dice: Dice, verb: Verb, noun: Noun) -> Plain:
  tense = dice.pick(TENSES)
  agreeing = [word for word in ADVERBS.values() if tense in word.tenses]
  return Plain(
    subject=_actor(dice),
    verb=verb,
    object=noun,
    tense=tense,
    polarity=dice.pick(_POLARITIES),
    # As often none as one.
    adverb=dice.pick([*agreeing, *[None] * len(agreeing)]),
  )


# A draw takes (dice, clauses, how many sentences of this type and number of
# clauses there are already) and gives a meaning, perhaps with a fault. What
# is an answer is not drawn but dealt by that count, so that no answer is
# more frequent than another.
Draw = Callable[[Dice, int, int], Meaning]


def _draw_plain(dice: Dice, clauses: int, turn: int) -> Plain:
  del clauses, turn
  verb = dice.pick(_ACTS)
  return _plain(dice, verb, _object(dice, verb))


def _draw_copula(dice: Dice, clauses: int, turn: int) -> Copula:
  del clauses, turn
  noun = dice.pick(_PREDICATES)
  if dice.pick((False, True)):
    noun = dice.pick(dice.pick(_OBJECT_NAMES))
  return Copula(
    subject=_actor(dice),
    noun=noun,
    tense=dice.pick(TENSES[:2]),
    polarity=dice.pick(_POLARITIES),
  )


def _alike(left: Clause, right: Clause) -> bool:
  return left.subject == right.subject or left.verb == right.verb


def _draw_pronoun(dice: Dice, clauses: int, turn: int) -> Pronoun:
  kind, verb = dice.pick((('place', 'cross'), ('thing', 'buy')))
  noun = dice.pick(_BY_KIND[kind])
  fitting = 'animal' if turn % 2 else kind
  describing = [
    verb
    for verb in VERBS.values()
    if verb.describes(noun) and (verb, noun) not in UNSEEN
  ]
  said: list[Clause] = []
  free: list[Noun] = []
  while len(said) < clauses:
    # Everybody acts once before anybody acts again.
    free = free or list(_WITNESSES)
    clause = Clause(dice.pick(free), dice.pick(describing))
    if clause in said or (said and _alike(said[-1], clause)):
      continue
    free.remove(clause.subject)
    said.append(clause)
  return Pronoun(
    subject=dice.pick(_ACTORS['animal']),
    verb=VERBS[verb],
    object=noun,
    clauses=tuple(said),
    adjective=dice.pick(
      [word for word in ADJECTIVES.values() if word.kind == fitting]
    ),
  )


def _draw_predicate(dice: Dice, clauses: int, turn: int) -> Predicate:
  said: list[Modifier] = []
  while len(said) <= clauses:
    verb = dice.pick(_ACTS)
    if said and said[-1].verb == verb:
      continue
    modifier = Modifier(verb, _object(dice, verb))
    if modifier not in said and modifier.object != SPEAKER:
      said.append(modifier)
  return Predicate(tuple(said), _PREDICATES[turn % len(_PREDICATES)])


# Of train, validation and test: types as often as they stand here.
_SHARES = (
  *('plain',) * 3,
  'copula',
  *('pronoun',) * 2,
  *('predicate',) * 2,
)


def _draw_unseen_pair(dice: Dice, clauses: int, turn: int) -> Plain:
  del clauses, turn
  return _plain(dice, *dice.pick(_UNSEEN_IN_ORDER))


def _draw_subject_noun(dice: Dice, clauses: int, turn: int) -> Plain:
  del clauses, turn
  verb = VERBS[dice.pick(('see', 'meet', 'find'))]
  return _plain(dice, verb, dice.pick(SUBJECT_ONLY))


def _draw_topic_name(dice: Dice, clauses: int, turn: int) -> Plain | Copula:
  del clauses, turn
  name = dice.pick(TOPIC_ONLY)
  if dice.pick((False, True)):
    tense = dice.pick(TENSES[:2])
    return Copula(_actor(dice), name, tense, 'negated')
  return _plain(dice, VERBS[dice.pick(('see', 'meet', 'find'))], name)


_UNSEEN_IN_ORDER = sorted(UNSEEN, key=lambda pair: (pair[0][0], pair[1][0]))
_SPECIAL = (
  'unseen_pair',
  'subject_nouns',
  'topic_names',
  'long_predicate',
  'far_pronoun',
)
# Type of sentence or special split -> how it is drawn, with how many clauses.
_DRAWS: dict[str, tuple[Draw, Sequence[int]]] = {
  'plain': (_draw_plain, (0,)),
  'copula': (_draw_copula, (0,)),
  'pronoun': (_draw_pronoun, NEAR),
  'predicate': (_draw_predicate, NEAR),
  'unseen_pair': (_draw_unseen_pair, (0,)),
  'subject_nouns': (_draw_subject_noun, (0,)),
  'topic_names': (_draw_topic_name, (0,)),
  'long_predicate': (_draw_predicate, FAR),
  'far_pronoun': (_draw_pronoun, FAR),
}
SPLITS = ('train', 'validation', 'test', *_SPECIAL)


def split_class(meaning: Meaning) -> str:
  """The split among train, validation and test that may ask this."""
  content = repr(question(meaning)).encode()
  number = hashlib.sha256(content).digest()[0] % _CLASSES
  return {0: 'validation', 1: 'test'}.get(number, 'train')


def sentences(split: str, seed: int) -> Iterator[Meaning]:
  """Sentences of `split`, the same for the same seed, in one order.

  Training goes on for ever and may repeat a short question; its first
  sentences bring every word of the lexicon. A held-out split says nothing
  twice and ends when nothing new is found.
  """
  found = _draws(split, seed)
  if split != 'train':
    return found
  return _every_word_first(found)


def _draws(split: str, seed: int) -> Iterator[Meaning]:
  dice = Dice(seed, SPLITS.index(split))
  turns: Counter[tuple[str, int]] = Counter()
  said: set[Meaning] = set()
  vain = 0
  while vain < _PATIENCE:
    vain += 1
    name = split if split in _SPECIAL else dice.pick(_SHARES)
    draw, clauses = _DRAWS[name]
    number = dice.pick(clauses)
    meaning = draw(dice, number, turns[name, number])
    ours = split in _SPECIAL or split_class(meaning) == split
    if not ours or meaning in said or fault(meaning):
      continue
    if split != 'train':
      said.add(meaning)
    turns[name, number] += 1
    vain = 0
    yield meaning


def _every_word_first(found: Iterator[Meaning]) -> Iterator[Meaning]:
  """Those that bring a new word before the others, for small training sets."""
  missing = set(WORDS)
  later = []
  for meaning in found:
    new = missing.intersection(words(meaning))
    if not new:
      later.append(meaning)
      continue
    yield meaning
    missing -= new
    if not missing:
      break
  yield from later
  yield from found


def words(meaning: Meaning) -> set[tuple[str, str]]:
  """(language, word) of its sentences: morphemes, and what spaces part."""
  found = set()
  for language in LANGUAGES:
    parts = [part.text for part in morphemes(meaning, language)]
    parts[0] = parts[0].lower() if len(parts[0]) > 1 else parts[0]
    written = [*(part.strip() for part in parts), *''.join(parts[:-1]).split()]
    found.update((language, word) for word in written)
  return found


def _lexicon() -> Iterator[tuple[str, str]]:
  """Every word that the ordinary language uses, in every form."""
  for noun in (*NOUNS, SPEAKER, *ROBOTS):
    yield from (('en', word) for word in noun.english.split())
    yield from (('ko', word) for word in noun.korean.split())
  yield from (('en', 'me'), ('ko', '내'))
  for verb in VERBS.values():
    yield from (('en', word) for word in (verb.base, verb.third, verb.past))
    for name, form in zip(FORMS, verb.forms, strict=True):
      # Nothing that is found is ever not found.
      if (verb.base, name) != ('find', 'ji'):
        yield 'ko', form.text.split()[0]
  for form in (*NOT.values(), *IS_NOT.values()):
    yield 'ko', form.text.split()[0]
  for adjective in ADJECTIVES.values():
    yield from (('en', adjective.english), ('ko', adjective.reason.text))
  for adverb in ADVERBS.values():
    yield from (('en', adverb.english), ('ko', adverb.korean))


WORDS = frozenset(_lexicon())


def smallest_training(seed: int) -> int:
  """Training pairs that it takes to bring every word."""
  missing = set(WORDS)
  for number, meaning in enumerate(sentences('train', seed), 1):
    missing -= words(meaning)
    if not missing:
      return number
  raise AssertionError('training never ends')
