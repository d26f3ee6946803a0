"""Data, files and flags that a run cannot begin with."""

import gzip
import pathlib

import numpy as np
import pytest

from tests.training.runs import assert_told
from transformer_jax.config import ConfigError
from transformer_jax.fields import override
from transformer_jax.training import loop, setup


@pytest.fixture
def pairs(tmp_path):
  """Files of sentence pairs; flags that name them."""
  folder = tmp_path / 'text'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for split, lines in dict(train=200, val=20, test=20).items():
    numbers = rng.integers(0, 8, (lines, 5))
    text = '\n'.join(' '.join(f'w{n}' for n in row) for row in numbers)
    for language in ('en', 'de'):
      (folder / f'{split}.{language}').write_text(text + '\n')
  return folder, {
    'data.source': f'files:{folder}',
    'data.pair': 'en-de',
    'data.validation_split': 'val',
    'data.text': 'pretokenized',
    'data.vocabulary_size': 270,
  }


@pytest.mark.parametrize('split', ['train.en', 'val.de'])
def test_other_data_are_refused(config, tmp_path, pairs, split):
  folder, fields = pairs
  changed = override(config, fields)

  def set_up() -> setup.Run:
    progress = loop.Progress(str(tmp_path / 'run'), 1)
    return setup.set_up(changed, str(tmp_path / 'run'), progress)

  first = set_up()
  assert set_up().corpus.fingerprint == first.corpus.fingerprint
  path = folder / split
  path.write_text(path.read_text().replace('w1', 'w2'))
  with pytest.raises(ConfigError, match='the data of .* is not what'):
    set_up()


def test_another_vocabulary_is_refused(config, tmp_path, pairs):
  _, fields = pairs
  changed = override(config, fields)
  other = override(config, fields | {'data.vocabulary_size': 271})
  for folder, wanted in (('run', changed), ('other', other)):
    progress = loop.Progress(str(tmp_path / folder), 1)
    setup.set_up(wanted, str(tmp_path / folder), progress)
  own = tmp_path / 'run' / 'vocabulary'
  for path in pathlib.Path(tmp_path, 'other', 'vocabulary').iterdir():
    (own / path.name).write_bytes(path.read_bytes())
  with pytest.raises(ConfigError, match='is not what the run began with'):
    setup.set_up(changed, str(tmp_path / 'run'), loop.Progress('', 1))


def packed_half(folder):
  path = folder / 'train.en'
  packed = gzip.compress(path.read_bytes())
  (folder / 'train.en.gz').write_bytes(packed[: len(packed) // 2])
  path.unlink()


# What is wrong with the files, flags, and what stderr says.
BAD = {
  'lengths': (lambda f: (f / 'train.de').write_text('w1\n'), [], 'has 1:'),
  'utf8': (
    lambda f: (f / 'train.de').write_bytes(b'w1\n\xff\n'),
    [],
    'train.de, line 2: not valid UTF-8',
  ),
  'language': (lambda f: (f / 'val.de').unlink(), [], 'missing file'),
  'empty': (lambda f: (f / 'train.en').write_text(''), [], 'is empty'),
  'gzip': (packed_half, [], 'not a whole gzip file'),
  'pieces': (None, ['--data.vocabulary_size=9000'], 'data.vocabulary_size'),
  'long': (
    None,
    ['--data.max_length=4', '--data.over_length=refuse'],
    'have more than data.max_length=4 tokens',
  ),
  'preset': (None, ['--preset=tiyn'], 'did you mean tiny?'),
  'flag': (None, ['--model.d_modle=8'], 'did you mean model.d_model?'),
  'value': (None, ['--model.norm=bach'], 'did you mean batch?'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_leaves_with_2_and_one_line(call, pairs, tmp_path, name):
  folder, fields = pairs
  spoil, words, told = BAD[name]
  if spoil:
    spoil(folder)
  flags = [f'--{path}={value}' for path, value in fields.items()]
  assert_told(call(tmp_path / 'run', *flags, *words), told)
