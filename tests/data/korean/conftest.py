"""Sentences of the generated language, made once."""

import itertools

import pytest

from transformer_jax.data.korean import generate
from transformer_jax.data.korean.meaning import Meaning


def some(split: str, count: int, seed: int = 0) -> list[Meaning]:
  return list(itertools.islice(generate.sentences(split, seed), count))


@pytest.fixture(scope='session')
def train() -> list[Meaning]:
  return some('train', 4000)


@pytest.fixture(scope='session')
def held_out() -> dict[str, list[Meaning]]:
  return {split: some(split, 512) for split in generate.SPLITS[1:]}
