"""Gold links by character span: between the languages and inside a sentence.

A link is sure (content words; `it` and its antecedent) or possible (did,
will, not with 않-; because with -서; `,` and `and` with -고). Articles and
particles have none. Spans are projected to subwords where these overlap.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from transformer_jax.data.korean.meaning import (
  Copula,
  Meaning,
  Plain,
  Predicate,
  Pronoun,
)
from transformer_jax.data.korean.render import Morpheme, morphemes


class Span(NamedTuple):
  """Characters start to end of a sentence, end not included."""

  start: int
  end: int


class Link(NamedTuple):
  source: Span
  target: Span
  strength: str  # sure or possible


class Relation(NamedTuple):
  """Two places of one sentence: `name` leads from the first to the second."""

  name: str
  start: Span
  end: Span


class Projected(NamedTuple):
  """Pairs of subwords (source, target); the sure are possible as well."""

  sure: frozenset[tuple[int, int]]
  possible: frozenset[tuple[int, int]]


def spans(parts: Sequence[Morpheme]) -> list[Span]:
  """Where each morpheme stands, without the space before it."""
  found, at = [], 0
  for part in parts:
    end = at + len(part.text)
    found.append(Span(end - len(part.text.lstrip(' ')), end))
    at = end
  return found


def links(meaning: Meaning, languages: tuple[str, str]) -> list[Link]:
  """Links between its sentences in two languages, source first."""
  source, target = (morphemes(meaning, language) for language in languages)
  found = []
  for left, at in zip(source, spans(source), strict=True):
    for right, there in zip(target, spans(target), strict=True):
      if set(left.sure) & set(right.sure):
        found.append(Link(at, there, 'sure'))
      elif set(left.possible) & set(right.possible):
        found.append(Link(at, there, 'possible'))
  return found


def relations(meaning: Meaning, language: str) -> list[Relation]:
  """What belongs together inside the sentence.

  `object` leads from a verb to its object, `antecedent` from `it` to the noun
  it stands for (English only: Korean names the noun instead), `predicate`
  from a subject to its predicate noun.
  """
  parts = morphemes(meaning, language)
  place = {
    tag: span
    for part, span in zip(parts, spans(parts), strict=True)
    for tag in part.sure
  }
  return [
    Relation(name, place[start], place[end])
    for name, start, end in _related(meaning)
    # The named antecedent carries the tag of `it`: no way from it to itself.
    if place[start] != place[end]
  ]


def _related(meaning: Meaning) -> list[tuple[str, str, str]]:
  """(name, tag, tag)."""
  if isinstance(meaning, Plain):
    return [('object', 'verb', 'object')]
  if isinstance(meaning, Copula):
    return [('predicate', 'subject', 'noun')]
  if isinstance(meaning, Pronoun):
    clauses = range(len(meaning.clauses))
    return [
      ('object', 'verb', 'object'),
      *(('object', f'clause{number}.verb', 'object') for number in clauses),
      ('antecedent', 'it', meaning.reading),
    ]
  assert isinstance(meaning, Predicate)
  return [
    ('predicate', 'subject', 'noun'),
    *(
      ('object', f'modifier{number}.verb', f'modifier{number}.object')
      for number in range(len(meaning.modifiers))
    ),
  ]


def piece_spans(pieces: Iterable[str], text: str) -> list[Span]:
  """Characters of `text` that each sentencepiece piece covers.

  Args:
    pieces: written forms, with `▁` for a space and `<0xEA>` for a byte.
    text: the sentence they were made of.

  Returns:
    One span a piece, without a space at its start; a byte covers the
    character it is a part of.

  Raises:
    ValueError: the pieces do not spell the text.

  >>> piece_spans(['▁곰', '은', '▁길'], '곰은 길')
  [Span(start=0, end=1), Span(start=1, end=2), Span(start=3, end=4)]
  """
  # A space is put before the sentence, as sentencepiece does.
  whole = f' {text}'.encode()
  character = [i for i, c in enumerate(f' {text}') for _ in c.encode()]
  found, at = [], 0
  for piece in pieces:
    if piece.startswith('<0x') and piece.endswith('>'):
      written = bytes([int(piece[3:-1], 16)])
    else:
      written = piece.replace('▁', ' ').encode()
    if not written or whole[at : at + len(written)] != written:
      raise ValueError(f'{piece!r} does not continue {text!r} at byte {at}')
    first, last = at, at + len(written) - 1
    if written.startswith(b' ') and len(written) > 1:
      first += 1
    found.append(Span(max(character[first] - 1, 0), character[last]))
    at += len(written)
  if at != len(whole):
    raise ValueError(f'the pieces end before {text!r} does')
  return found


def project(
  gold: Iterable[Link], source: Sequence[Span], target: Sequence[Span]
) -> Projected:
  """Links between subwords: those whose spans overlap a linked pair.

  Args:
    gold: from `links`.
    source: spans of the source's subwords, from `piece_spans`.
    target: spans of the target's.
  """
  found: dict[str, set[tuple[int, int]]] = {'sure': set(), 'possible': set()}
  for link in gold:
    found[link.strength].update(
      (i, j)
      for i in overlapping(link.source, source)
      for j in overlapping(link.target, target)
    )
  return Projected(
    frozenset(found['sure']), frozenset(found['sure'] | found['possible'])
  )


def overlapping(span: Span, pieces: Sequence[Span]) -> list[int]:
  """Which of `pieces` share a character with `span`."""
  return [
    number
    for number, piece in enumerate(pieces)
    if piece.start < span.end and span.start < piece.end
  ]


def alignment_error_rate(
  found: Iterable[tuple[int, int]], gold: Projected
) -> float:
  """1 - (|A & S| + |A & P|) / (|A| + |S|); 0 is right, 1 is all wrong.

  Args:
    found: A, pairs (source subword, target subword).
    gold: S, sure, and P, possible pairs.

  Raises:
    ValueError: neither found nor sure pairs: nothing is measured.

  Reference: Och and Ney (2003), section 2.1.

  >>> gold = Projected(frozenset({(0, 0)}), frozenset({(0, 0), (1, 1)}))
  >>> alignment_error_rate({(0, 0), (1, 1)}, gold)
  0.0
  """
  pairs = set(found)
  if not pairs and not gold.sure:
    raise ValueError('no pair was found and none is sure')
  hits = len(pairs & gold.sure) + len(pairs & gold.possible)
  return 1 - hits / (len(pairs) + len(gold.sure))
