"""A small corpus, made here: English and Korean, with an emoji."""

import gzip
import pathlib

import pytest

from transformer_jax.config import DataConfig

ANIMALS = [
  ('elephant', '코끼리는'),
  ('rabbit', '토끼는'),
  ('fox', '여우는'),
  ('bear 🐻', '곰🐻은'),
]
FOODS = [('apple', '사과를'), ('rice', '밥을'), ('bread', '빵을')]
ENDINGS = [
  ('ate the {}', '{} 먹었다'),
  ('will not buy the {} today', '오늘 {} 사지 않을 것이다'),
  ('eats the {}', '{} 먹는다'),
]


def sentences(count: int) -> tuple[list[str], list[str]]:
  """`count` aligned sentences of different lengths."""
  source, target = [], []
  for number in range(count):
    animal = ANIMALS[number % 4]
    food = FOODS[number // 4 % 3]
    ending = ENDINGS[number // 12 % 3]
    # Some sentences are several times as long as others.
    again = 1 + number * number % 5
    clauses = [f'the {animal[0]} {ending[0].format(food[0])}'] * again
    source.append(' and '.join(clauses) + f' {number} .')
    clauses = [f'{animal[1]} {ending[1].format(food[1])}'] * again
    target.append(' , '.join(clauses) + f' {number} .')
  return source, target


def write(folder: pathlib.Path, split: str, count: int) -> None:
  for language, lines in zip(('en', 'ko'), sentences(count), strict=True):
    text = ''.join(line + '\n' for line in lines)
    (folder / f'{split}.{language}').write_text(text, encoding='utf-8')


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """train (200 pairs), validation (30) and test (20, packed) of en and ko."""
  place = tmp_path / 'corpus'
  place.mkdir()
  for split, count in (('train', 200), ('validation', 30), ('test', 20)):
    write(place, split, count)
  for language in ('en', 'ko'):
    plain = place / f'test.{language}'
    with gzip.open(place / f'test.{language}.gz', 'wb') as file:
      file.write(plain.read_bytes())
    plain.unlink()
  return place


@pytest.fixture
def data(folder, tmp_path) -> DataConfig:
  return DataConfig(
    source=f'files:{folder}',
    pair='en-ko',
    vocabulary_size=400,
    max_length=96,
    max_tokens=768,
    buckets=4,
    cache_dir=str(tmp_path / 'cache'),
  )
