"""Files and TFDS: what is read, and one clear line for what cannot be."""

import gzip
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest
import tensorflow_datasets
from tensorflow_datasets.core.download import util

from transformer_jax import flags
from transformer_jax.config import ConfigError
from transformer_jax.data.batches import make_plan
from transformer_jax.data.corpus import open_corpus
from transformer_jax.data.sources import open_text


def refused(data, split: str = 'train') -> str:
  """The one line with which reading `split` is refused."""
  with pytest.raises(ConfigError) as error:
    text = open_text(data)
    text.check(split)
    text.size(split)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_pairs_are_aligned_and_in_the_order_asked_for(data):
  text = open_text(data)
  source, target = next(text.pairs('train'))
  assert source.startswith('the elephant ate the apple')
  assert target.startswith('코끼리는 사과를 먹었다')
  turned = open_text(replace(data, pair='ko-en'))
  assert next(turned.pairs('train')) == (target, source)
  assert turned.languages == ('ko', 'en')


def test_packed_files_are_the_same_text(data, folder):
  text = open_text(data)
  packed = list(text.pairs('test'))
  identity = text.identity('test')
  for language in ('en', 'ko'):
    path = folder / f'test.{language}.gz'
    (folder / f'test.{language}').write_bytes(
      gzip.decompress(path.read_bytes())
    )
    path.unlink()
  plain = open_text(data)
  assert list(plain.pairs('test')) == packed
  assert plain.identity('test') == identity
  assert plain.size('test') == len(packed) == 20


def test_identity_is_of_the_content(data, folder):
  before = open_text(data).identity('train')
  path = folder / 'train.en'
  path.write_text(path.read_text().replace('fox', 'cat', 1))
  assert open_text(data).identity('train') != before


def test_only_a_newline_ends_a_line(data, folder):
  (folder / 'odd.en').write_bytes('a\u2028b\rc\r\nd'.encode())
  (folder / 'odd.ko').write_bytes('\ufeff가\n나\n'.encode())
  text = open_text(data)
  assert text.size('odd') == 2
  assert list(text.pairs('odd')) == [('a\u2028b\rc', '가'), ('d', '나')]


def test_files_of_different_length(data, folder):
  with open(folder / 'train.ko', 'a') as file:
    file.write('하나 더\n')
  line = refused(data)
  assert '200' in line and '201' in line and 'train.ko' in line


def test_invalid_utf8_names_file_and_line(data, folder):
  lines = (folder / 'train.ko').read_bytes().split(b'\n')
  lines[6] += b'\xff'
  (folder / 'train.ko').write_bytes(b'\n'.join(lines))
  assert 'train.ko, line 7:' in refused(data)


def test_a_character_cut_off_at_the_end_is_invalid_too(data, folder):
  with open(folder / 'train.ko', 'ab') as file:
    file.write('가'.encode()[:2])
  assert 'train.ko, line 201:' in refused(data)


def test_missing_language(data, folder):
  (folder / 'train.ko').unlink()
  assert 'missing file' in refused(data) and 'train.ko' in refused(data)


def test_empty_file(data, folder):
  (folder / 'train.ko').write_bytes(b'')
  assert refused(data).endswith('train.ko is empty')


def test_split_that_does_not_exist(data):
  line = refused(data, 'valid')
  assert "'valid'" in line and line.endswith('test, train, validation')


def test_without_a_test_split_another_that_is_held_out_is_named(data, folder):
  for path in folder.glob('test.*'):
    path.unlink()
  told = 'there is: train, validation; --data.test_split=validation would do'
  assert refused(data, 'test').endswith(told)
  for path in folder.glob('validation.*'):
    path.unlink()
  assert refused(data, 'test').endswith('there is: train')


def test_a_split_that_is_there_plain_and_packed(data, folder):
  (folder / 'test.en').write_text('another text\n')
  line = refused(data, 'test')
  assert f'{folder}/test.en and {folder}/test.en.gz are both' in line
  assert line.endswith('remove one')


def test_half_a_gzip_file(data, folder):
  path = folder / 'test.en.gz'
  path.write_bytes(path.read_bytes()[:-20])
  assert 'test.en.gz' in refused(data, 'test')


@pytest.mark.parametrize('pair', ['', 'en', 'en-', '-ko'])
def test_pair_missing(data, pair):
  assert '--data.pair=en-de' in refused(replace(data, pair=pair))


@pytest.mark.parametrize('source', ['files:', 'file:x', 'en', 'files:/none'])
def test_unknown_source(data, source):
  assert f'data.source={source}' in refused(replace(data, source=source))


# Builders register when their class is made, and stay registered: so each is
# made in a process of its own, as a user's would be.
BUILDER = """
import sys
import tensorflow_datasets as tfds

class TinyPairs(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    feature = tfds.features.Translation(('en', 'ko'))
    return tfds.core.DatasetInfo(builder=self, features=feature)

  def _split_generators(self, manager):
    return {'train': self._generate_examples(70),
            'dev': self._generate_examples(9)}

  def _generate_examples(self, count):
    for i in range(count):
      yield i, {'en': f'sentence {i}', 'ko': f'문장 {i}'}
"""
PREPARED = """
TinyPairs(
  data_dir=sys.argv[1], file_format='array_record'
).download_and_prepare()
"""
# As training comes too early, and then the program that was to come first.
PROGRAM = """
from experiments import prepare
from transformer_jax import flags
from transformer_jax.config import ConfigError
from transformer_jax.data.corpus import open_corpus

config, _ = flags.parse(sys.argv[1:])
try:
  open_corpus(config.data, workdir=None, progress=print)
except ConfigError as error:
  print(error)
flags.run(prepare.main, arguments=sys.argv[1:])
"""


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  place = tmp_path_factory.mktemp('tfds')
  subprocess.run(
    [sys.executable, '-c', BUILDER + PREPARED, str(place)],
    check=True,
    capture_output=True,
  )
  return str(place)


@pytest.fixture
def tfds_data(data, tfds_dir):
  return replace(data, source='tfds:tiny_pairs', tfds_dir=tfds_dir)


def test_tfds_reads_every_row_of_a_real_builder(tfds_data):
  text = open_text(replace(tfds_data, pair='ko-en'))
  pairs = list(text.pairs('train'))
  assert text.size('train') == len(pairs) == 70
  assert sorted(pairs) == sorted(
    (f'문장 {i}', f'sentence {i}') for i in range(70)
  )
  assert text.identity('train') != text.identity('dev')


def test_tfds_is_prepared_by_its_program_and_only_read_by_training(
  data, tmp_path, monkeypatch
):
  fields = dict(
    source='tfds:tiny_pairs',
    validation_split='dev',
    test_split='dev',
    vocabulary_size=290,
    tfds_dir=str(tmp_path / 'tfds'),
  )
  data = replace(data, **fields)
  words = [f'--data.{name}={value}' for name, value in asdict(data).items()]
  done = subprocess.run(
    [sys.executable, '-c', BUILDER + PROGRAM, *words],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  too_early, *lines = done.stdout.splitlines()
  assert 'is not prepared' in too_early
  assert 'experiments.prepare --data.source=tfds:tiny_pairs' in too_early
  text = '\n'.join(lines)
  assert 'train: 70 pairs' in text and 'dev: 9 pairs' in text

  def download(*_, **__):
    raise AssertionError('training never downloads')

  builder = tensorflow_datasets.core.DatasetBuilder
  monkeypatch.setattr(builder, 'download_and_prepare', download)
  corpus = open_corpus(data, workdir=str(tmp_path / 'run'), progress=print)
  assert f'fingerprint: {corpus.fingerprint}' in lines
  batch = make_plan(corpus.train, data).batch(0, 0)
  said = corpus.vocabularies.source.decode(batch.source_BS[:1].tolist())
  assert said[0].startswith('sentence ')


def test_tfds_part_of_a_split(tfds_data):
  text = open_text(tfds_data)
  whole = list(text.pairs('train'))
  parts = 'train[:10%]', 'train[10%:]'
  first, rest = (list(text.pairs(part)) for part in parts)
  assert (first, rest) == (whole[:7], whole[7:])
  assert text.size(parts[0]) == 7
  assert len({text.identity(s) for s in ('train', *parts)}) == 3
  assert "no split 'train[:x%]'" in refused(tfds_data, 'train[:x%]')
  line = refused(tfds_data, 'train[:0%]')
  assert line == "split 'train[:0%]' of tfds:tiny_pairs has no pairs"


def test_tfds_needs_no_tensorflow(tfds_data):
  list(open_text(tfds_data).pairs('dev'))
  assert 'tensorflow' not in sys.modules


def test_tfds_unknown_split_and_language(tfds_data):
  line = refused(tfds_data, 'validation')
  assert 'there is: train, dev' in line
  assert line.endswith('; --data.validation_split=dev would do')
  line = refused(replace(tfds_data, pair='en-de'))
  assert "'de'" in line and 'en, ko' in line


def test_tfds_that_lost_rows_is_refused(tfds_data, monkeypatch):
  text = open_text(tfds_data)
  monkeypatch.setattr(text, 'size', lambda split: 71)
  with pytest.raises(ConfigError, match='holds 70 rows .* says 71'):
    next(text.pairs('train'))


def test_a_tfds_row_with_a_line_end_inside_is_one_sentence(
  tfds_data, monkeypatch
):
  text: Any = open_text(tfds_data)
  rows = [{'en': b'a\nb', 'ko': '가\r\n나'.encode()}]
  monkeypatch.setattr(text, 'size', lambda split: 1)
  monkeypatch.setattr(text._builder, 'as_data_source', lambda split: rows)
  assert list(text.pairs('train')) == [('a b', '가  나')]


@pytest.mark.parametrize(
  ('error', 'told'),
  [
    (OSError(28, 'No space left on device'), 'No space left on device'),
    (ConnectionError('no route to host\nmore'), 'no route to host'),
    (AssertionError('Manual directory is empty'), 'Manual directory'),
    (util.DownloadError('HTTP code: 404'), 'HTTP code: 404'),
    (ImportError('tensorflow'), "pip install -e '.[tf]'"),
  ],
)
def test_tfds_that_cannot_be_prepared_says_why_in_one_line(
  data, tmp_path, monkeypatch, error, told
):
  source = 'tfds:wmt14_translate/de-en'
  text: Any = open_text(
    replace(data, source=source, pair='en-de', tfds_dir=str(tmp_path))
  )

  def fail():
    raise error

  monkeypatch.setattr(text._builder, 'download_and_prepare', fail)
  with pytest.raises(ConfigError) as refused:
    text.prepare()
  line = str(refused.value)
  assert line.startswith(f'{source} ') and told in line and '\n' not in line


def test_tfds_stored_in_another_format_is_refused(tfds_data, tmp_path):
  place = tmp_path / 'tfds'
  shutil.copytree(tfds_data.tfds_dir, place)
  (record,) = place.rglob('dataset_info.json')
  text = record.read_text()
  assert '"array_record"' in text
  record.write_text(text.replace('"array_record"', '"tfrecord"'))
  line = refused(replace(tfds_data, tfds_dir=str(place)))
  assert 'is stored as tfrecord' in line and 'another --data.tfds_dir' in line


def test_wmt14_resolves_and_says_how_to_prepare_it(data, tmp_path):
  source = 'tfds:wmt14_translate/de-en'
  wmt = replace(
    data,
    source=source,
    pair='en-de',
    train_split='train[:10%]',
    tfds_dir=str(tmp_path),
  )
  line = refused(wmt)
  assert "'--data.train_split=train[:10%]'" in line
  *_, program, words = line.partition('run: python -m experiments.prepare ')
  assert program and shlex.split(words)
  # Everything that is not at its default: the same data.
  config, _ = flags.parse(shlex.split(words))
  assert config.data == wmt
  assert '--data.seed' not in words


def test_tfds_that_is_no_translation_or_not_known(data):
  line = refused(replace(data, source='tfds:mnist'))
  assert 'no Translation feature' in line and 'label' in line
  assert 'nosuch' in refused(replace(data, source='tfds:nosuch'))
  line = refused(replace(data, source='tfds:wmt14_translate/de-xx'))
  assert 'de-xx not found' in line
