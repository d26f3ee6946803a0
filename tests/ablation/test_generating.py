"""What a member writes at its end, and how it is scored."""

import dataclasses
import pathlib
import types
from typing import Any

import pytest

from experiments import ablate, studies
from tests.ablation.small import changed
from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import generating
from transformer_jax.training.population import Member


def test_pronouns_are_counted_by_their_distance():
  """Three golds of 0 and 2 clauses; one of the two near ones is wrong."""
  golds = [
    '동물이 너무 피곤해서 길을 건너지 않았다.',
    '길이 너무 넓어서 동물은 건너지 않았다.',
    '동물이 너무 피곤해서 가수가 읽고 의사가 산 책을 사지 않았다.',
  ]
  written = [golds[0], '동물이 너무 넓어서 길을 건너지 않았다.', golds[2]]
  found = generating.by_distance(written, golds, 'ko')
  assert found == {'0': dict(right=1, asked=2), '2': dict(right=1, asked=1)}
  assert generating.pronoun(written, golds, 'ko') == pytest.approx(2 / 3)
  assert generating.by_distance(['x'], ['나는 코끼리다.'], 'ko') == {}


def test_distances_are_kept_beside_the_total(monkeypatch):
  gold = '동물이 너무 피곤해서 길을 건너지 않았다.'
  monkeypatch.setattr(
    generating,
    'translate_sentences',
    lambda *model, **options: types.SimpleNamespace(texts=[gold]),
  )
  study = changed(free_running=('pronoun',))
  config = cells_lib.arm_config(study, study.arms[0])
  corpus: Any = types.SimpleNamespace(
    references=lambda split: [('en', gold)], vocabularies=None
  )
  members = [Member(config, pathlib.Path())]
  found = generating.Generating(study, members, corpus)
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, pair='en-ko')
  )
  model: Any = None
  assert found._scores(config, model, None) == {
    'pronoun': 1.0,
    'pronoun_by_distance': {'0': dict(right=1, asked=1)},
  }


def test_what_a_member_writes_is_computed_in_one_way_in_all_arms():
  study = studies.load(ablate.DEFAULT)
  pairs = cells_lib.shared_pairs(study, 'cpu')
  config = cells_lib.arm_config(study, study.arms[0])
  size: Any = types.SimpleNamespace(size=8)
  corpus: Any = types.SimpleNamespace(
    references=lambda split: [],
    vocabularies=types.SimpleNamespace(source=size, target=size),
  )
  members = [Member(config, pathlib.Path())]
  own = generating.Generating(study, members, corpus)
  attend: Any = own.model(config).attention_fn
  assert pairs and attend.keywords == {'pairs': pairs}
  # Members of one program compile it once.
  assert own.model(config) == own.model(config)
