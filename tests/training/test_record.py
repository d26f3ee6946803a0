"""A run's folder: what is written whole, cut back and refused."""

import json

import pytest

from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import override
from transformer_jax.training import record

ROWS = [
  (4, 'train', {'loss': 0.1 + 0.2, 'tokens': 7.0}),
  (8, 'train', {'loss': 1e-30}),
  (8, 'validation', {'loss': 3.5}),
  (12, 'train', {'loss': 2.0}),
]


@pytest.fixture
def metrics(tmp_path):
  found = record.MetricsFile(tmp_path)
  found.append(ROWS)
  return found


def test_a_row_is_a_line(metrics, tmp_path):
  assert list(metrics.lines()) == [
    dict(step=step, split=split, **values) for step, split, values in ROWS
  ]
  metrics.append([])
  assert (tmp_path / 'metrics.jsonl').read_text().count('\n') == 4


def test_rows_are_on_the_disk(metrics, tmp_path, monkeypatch):
  path = tmp_path / 'metrics.jsonl'
  synced = []
  monkeypatch.setattr(
    record.os, 'fsync', lambda number: synced.append(path.read_text())
  )
  metrics.append([(16, 'train', {'loss': 1.0})])
  assert synced == [path.read_text()]


def test_cut_back_keeps_every_byte_up_to_the_step(metrics, tmp_path):
  path = tmp_path / 'metrics.jsonl'
  before = path.read_bytes()
  metrics.cut_back(12)
  assert path.read_bytes() == before
  metrics.cut_back(8)
  assert path.read_bytes() == b''.join(before.splitlines(True)[:3])
  metrics.cut_back(0)
  assert path.read_bytes() == b''


@pytest.mark.parametrize('left', [1, 20, -2, -1])
def test_a_half_written_line_is_not_there(metrics, tmp_path, left):
  path = tmp_path / 'metrics.jsonl'
  lines = path.read_bytes().splitlines(True)
  path.write_bytes(b''.join(lines[:3]) + lines[3][:left])
  whole = 4 if left == -1 else 3  # All of it but the end of the line.
  assert len(list(metrics.lines())) == whole
  metrics.cut_back(12)
  metrics.append([(16, 'train', {'loss': 1.0})])
  assert [line['step'] for line in metrics.lines()] == (
    [*[4, 8, 8, 12][:whole], 16]
  )


@pytest.mark.parametrize('line', [b'3', b'\xff{}', b'{"split": "train"}'])
def test_lines_end_at_the_first_that_is_damaged(metrics, tmp_path, line):
  path = tmp_path / 'metrics.jsonl'
  first, second, *rest = path.read_bytes().splitlines(True)
  path.write_bytes(b''.join([first, second, line, b'\n', *rest]))
  assert [line['step'] for line in metrics.lines()] == [4, 8]


def test_metrics_of_no_run():
  assert list(record.MetricsFile(record.pathlib.Path('/nowhere')).lines()) == []


def test_write_atomically_keeps_the_old_text(tmp_path):
  path = tmp_path / 'a'
  record.write_atomically(path, 'one')
  with pytest.raises(UnicodeEncodeError):
    record.write_atomically(path, '\ud800')
  assert path.read_text() == 'one'
  record.write_atomically(path, 'two')
  assert path.read_text() == 'two'


def test_config_and_what_may_change(tmp_path):
  config = Config()
  fingerprints = dict(data='a', vocabulary='b')
  text = record.describe(config, fingerprints)
  record.write_atomically(tmp_path / 'config.json', text)
  assert record.read_config(tmp_path) == config
  assert json.loads(text)['versions']['jax'][0].isdigit()
  record.admit(tmp_path, override(config, {'train.steps': 7}))
  record.admit(tmp_path, override(config, {'train.log_every': 7}))
  record.admit_data(tmp_path, fingerprints)
  with pytest.raises(ConfigError) as refused:
    record.admit(
      tmp_path,
      override(config, {'optim.beta1': 0.5, 'train.seed': 3, 'train.steps': 7}),
    )
  told = str(refused.value)
  assert 'optim.beta1 0.9 -> 0.5, train.seed 0 -> 3' in told
  assert 'train.steps' not in told and '\n' not in told
  for path, other in (
    ('model.attention_implementation', 'blockwise'),
    ('model.layer_loop', 'unroll'),
  ):
    with pytest.raises(ConfigError, match=f'{path} .* -> {other}; take'):
      record.admit(tmp_path, override(config, {path: other}))
  with pytest.raises(ConfigError, match='the vocabulary of .* is not what'):
    record.admit_data(tmp_path, dict(data='a', vocabulary='c'))
  with pytest.raises(ConfigError, match='the data of .* is not what'):
    record.admit_data(tmp_path, dict(data='c', vocabulary='b'))


@pytest.mark.parametrize('text', ['{', '{}', '[]', '{"config": {"a.b": 1}}'])
def test_a_config_that_cannot_be_read(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ConfigError, match='config.json cannot be read'):
    record.read_config(tmp_path)


@pytest.mark.parametrize('place', ['file/run', 'file'])
def test_a_folder_that_cannot_be(tmp_path, place):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    ConfigError, match='file.* cannot be written: '
  ) as refused:
    record.open_folder(str(tmp_path / place))
  assert '\n' not in str(refused.value)


def test_a_folder_without_room():
  # Nobody can make a file here, not even root.
  with pytest.raises(ConfigError, match='/proc/run cannot be written'):
    record.open_folder('/proc/run')
