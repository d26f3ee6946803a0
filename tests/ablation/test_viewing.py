"""What is looked at inside a member: links, tables of positions."""

import types
from typing import Any

import numpy as np
import pytest

from tests.ablation.small import STUDY, changed
from tests.choices import base, parameter_shapes
from transformer_jax.ablation import declaration, viewing
from transformer_jax.ablation import study as study_lib
from transformer_jax.config import Config, ConfigError
from transformer_jax.data.cache import Batch
from transformer_jax.fields import override


def test_links_of_attention_that_is_the_gold_and_that_is_not(monkeypatch):
  texts = ['I ate the rice.', '나는 밥을 먹었다.']
  pieces = (
    ['▁I', '▁ate', '▁the', '▁rice', '.'],
    ['▁나는', '▁밥을', '▁먹었', '다.'],
  )
  # One head as the gold has it, 다. and </s> at the end; one at the full stop.
  most_HT = [[0, 3, 1, 5, 5, 0], [4, 4, 4, 4, 4, 0]]
  monkeypatch.setattr(
    viewing, '_most_seen', lambda *words: np.array([[most_HT, most_HT]])
  )
  config = override(Config(), {'data.pair': 'en-ko'})
  vocabularies: Any = [
    types.SimpleNamespace(
      decode=lambda rows, text=text: [text], pieces=lambda row, own=own: own
    )
    for text, own in zip(texts, pieces, strict=True)
  ]
  model: Any = None
  batch = Batch(*(np.full((2, 6), 5) for _ in texts))
  found = viewing.of_links(config, model, None, batch, vocabularies)
  assert found == dict(error=[[0.0, 1.0]], pairs=2)


@pytest.mark.parametrize('side', ['encoder', 'decoder'])
def test_the_table_of_positions_is_the_one_that_is_read(side):
  learned = override(base(), {'model.position': 'learned'})
  shape = parameter_shapes(learned)[f'{viewing.TABLES[side]}/w_TD']
  table_TD = np.arange(np.prod(shape)).reshape(shape)
  weights = {viewing.TABLES[side]: {'w_TD': table_TD}}
  found_TD = viewing._table(learned, weights, side, 3)
  np.testing.assert_array_equal(found_TD, table_TD[:3])
  narrow = override(
    base(), {'model.position_join': 'concat_narrow', 'model.d_position': 4}
  )
  sines_TD = viewing._table(narrow, {}, side, 3)
  assert sines_TD is not None and sines_TD.shape == (3, 4)
  rotary = override(base(), {'model.position': 'rotary'})
  assert viewing._table(rotary, {}, side, 3) is None


def test_views_are_written_down_where_there_are_any(tmp_path):
  assert 'views' not in study_lib.to_dict(STUDY)
  viewed = changed(views=('heads',))
  assert study_lib.from_dict(study_lib.to_dict(viewed)) == viewed
  declaration.declare(tmp_path, STUDY, seeds=None)
  with pytest.raises(ConfigError, match='its views differ'):
    declaration.declare(tmp_path, viewed, seeds=None)
