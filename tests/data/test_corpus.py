"""Vocabulary, token cache and limits of a corpus of text."""

import gzip
import hashlib
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import prepare as prepare_program
from transformer_jax.config import Config, ConfigError
from transformer_jax.data import cache
from transformer_jax.data.batches import make_plan
from transformer_jax.data.corpus import open_corpus
from transformer_jax.data.sources import open_text
from transformer_jax.data.tokens import EOS
from transformer_jax.fields import flatten
from transformer_jax.training import record, setup


def corpus_of(data, workdir=None, progress=lambda line: None):
  folder = None if workdir is None else str(workdir)
  return open_corpus(data, workdir=folder, progress=progress)


def texts(corpus, split: str) -> list[tuple[str, str]]:
  """What the tokens of `split` say."""
  pairs = corpus.pairs(split)
  widths = [int(length_n.max()) for length_n in pairs.lengths]
  sides = pairs.gather(np.arange(len(pairs)), *widths)
  return list(
    zip(
      *(
        vocabulary.decode(rows.tolist())
        for vocabulary, rows in zip(corpus.vocabularies, sides, strict=True)
      ),
      strict=True,
    )
  )


@pytest.mark.parametrize('vocabulary', ['joint', 'separate'])
def test_tokens_say_what_the_files_say(data, vocabulary):
  data = replace(
    data, vocabulary=vocabulary, vocabulary_size=330, max_length=256
  )
  corpus = corpus_of(data)
  source, target = corpus.vocabularies
  assert (source is target) == (vocabulary == 'joint')
  for split, count in (('train', 200), ('validation', 30), ('test', 20)):
    assert texts(corpus, split) == corpus.references(split)
    assert len(corpus.pairs(split)) == count


def test_lengths_count_the_end(data):
  corpus = corpus_of(data)
  rows = corpus.vocabularies.source.encode(
    [source for source, _ in corpus.references('train')]
  )
  assert corpus.pairs('train').lengths[0].tolist() == [
    len(row) + 1 for row in rows
  ]
  batch = corpus.train.gather(np.array([0]), len(rows[0]) + 1, 200)
  assert batch.source_BS[0].tolist() == [*rows[0], EOS]


def test_encoded_once(data):
  lines: list[str] = []
  first = corpus_of(data, progress=lines.append)
  assert lines == [
    'learning 400 bpe pieces',
    'encoding train: 200 of 200 pairs',
  ]
  lines.clear()
  again = corpus_of(data, progress=lines.append)
  assert not lines
  assert again.fingerprint == first.fingerprint
  plans = [make_plan(corpus.train, data) for corpus in (first, again)]
  for batch, other in zip(*(plan.batch(0, 1) for plan in plans), strict=True):
    np.testing.assert_array_equal(batch, other)


def test_chunks_change_nothing(data, monkeypatch, tmp_path):
  whole = texts(corpus_of(data), 'train')
  monkeypatch.setattr(cache, '_CHUNK', 7)
  other = replace(data, cache_dir=str(tmp_path / 'other'))
  assert texts(corpus_of(other), 'train') == whole


def test_another_text_is_another_cache(data, folder):
  first = corpus_of(data)
  path = folder / 'train.en'
  path.write_text(path.read_text().replace('fox', 'cat'))
  second = corpus_of(data)
  assert second.fingerprint != first.fingerprint
  assert texts(second, 'train')[2][0].startswith('the cat')


def test_another_test_text_is_another_identity(data, folder):
  before = corpus_of(data)
  known = before.identity('test')
  path = folder / 'test.en.gz'
  text = gzip.decompress(path.read_bytes())
  path.write_bytes(gzip.compress(text.replace(b'fox', b'cat')))
  after = corpus_of(data)
  # What is trained on is the same.
  assert after.fingerprint == before.fingerprint
  assert after.identity('test') != known == before.identity('test')
  # Of a task too.
  task = replace(Config().data, source='task:reverse', task_held_out=8)
  other = replace(task, seed=task.seed + 1)
  prints = [corpus_of(one).identity('test') for one in (task, task, other)]
  assert prints[0] == prints[1] != prints[2]


def test_the_vocabulary_is_saved_with_the_run_and_used(data, tmp_path):
  workdir = tmp_path / 'run'
  first = corpus_of(data, workdir)
  assert (workdir / 'vocabulary' / 'joint.model').exists()
  # The run keeps its own, whatever would be learned now.
  again = corpus_of(replace(data, vocabulary_size=350), workdir)
  assert again.vocabularies.fingerprint == first.vocabularies.fingerprint
  assert again.fingerprint == first.fingerprint


def test_an_unfinished_cache_is_ignored(data, tmp_path):
  corpus = corpus_of(data)
  place = tmp_path / 'cache'
  (done,) = place.glob('tokens-*')
  # What a process leaves that is killed while it encodes.
  killed = place / f'unfinished-{done.name}-0'
  done.rename(killed)
  (killed / 'source.tokens').write_bytes(b'\1\2')
  again = corpus_of(data)
  assert texts(again, 'train') == corpus.references('train')
  assert done.exists()


def _zeroed(content: bytes) -> bytes:
  middle = len(content) // 4 * 2
  return content[:middle] + bytes(512) + content[middle + 512 :]


@pytest.mark.parametrize(
  ('file', 'spoil'),
  [
    ('source.tokens', lambda content: content[:-100]),
    ('source.tokens', lambda content: content[:-101]),
    ('target.tokens', lambda content: b''),
    ('target.tokens', _zeroed),
    ('target.offsets.npy', lambda content: content[:-8]),
    ('target.offsets.npy', _zeroed),
    ('source.offsets.npy', lambda content: b''),
    ('types.json', lambda content: content[:9]),
    ('types.json', None),
  ],
)
def test_a_damaged_cache_is_told_and_encoded_again(data, tmp_path, file, spoil):
  corpus = corpus_of(data)
  (place,) = (tmp_path / 'cache').glob('tokens-*')
  path = place / file
  content = path.read_bytes()
  path.unlink()
  if spoil is not None:
    path.write_bytes(spoil(content))
  lines: list[str] = []
  again = corpus_of(data, progress=lines.append)
  assert f'the token cache {place} is damaged (' in lines[0]
  assert lines[0].endswith('): removed')
  assert lines[1:] == ['encoding train: 200 of 200 pairs']
  assert path.read_bytes() == content
  assert texts(again, 'train') == corpus.references('train')


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  done: list[str] = []

  def sync(descriptor: int) -> None:
    done.append(os.readlink(f'/proc/self/fd/{descriptor}'))

  def rename(old: str, new: str) -> None:
    done.append('renamed')
    os.replace(old, new)

  monkeypatch.setattr(os, 'fsync', sync)
  monkeypatch.setattr(os, 'rename', rename)

  def write(unfinished: str) -> None:
    (tmp_path / unfinished / 'a').touch()

  cache.build_folder(str(tmp_path / 'place'), write)
  file, folder, *rest = done
  assert file == f'{folder}/a' and folder.startswith(f'{tmp_path}/unfinished')
  assert rest == ['renamed', str(tmp_path)]


def test_a_process_that_comes_second_keeps_what_is_there(tmp_path):
  final = tmp_path / 'place'

  def slower(unfinished: str) -> None:
    cache.build_folder(str(final), faster)
    (tmp_path / unfinished / 'slow').touch()

  def faster(unfinished: str) -> None:
    (tmp_path / unfinished / 'fast').touch()

  cache.build_folder(str(final), slower)
  assert os.listdir(final) == ['fast']
  assert os.listdir(tmp_path) == ['place']


def test_a_cache_folder_that_cannot_be_made(data, folder):
  blocked = replace(data, cache_dir=str(folder / 'train.en' / 'cache'))
  with pytest.raises(ConfigError, match='cannot write .*train.en/cache'):
    corpus_of(blocked)


def test_no_room_for_the_cache(data, tmp_path):
  corpus_of(data)
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
  try:
    with pytest.raises(ConfigError, match='cannot write .*make room'):
      corpus_of(data).pairs('validation')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  assert not list((tmp_path / 'cache').glob('unfinished-*'))


def test_a_folder_of_files_may_move_and_not_change(data, folder, tmp_path):
  workdir = tmp_path / 'run'

  def admitted(source: str) -> dict[str, str]:
    own = replace(Config(), data=replace(data, source=source))
    found = setup.admitted(
      own,
      workdir,
      vocabulary_in=str(workdir),
      init_from='',
      say=lambda line: None,
    ).fingerprints
    text = record.describe(own, found)
    record.write_atomically(workdir / 'config.json', text)
    return found

  before = admitted(data.source)
  moved = folder.rename(tmp_path / 'moved')
  assert admitted(f'files:{moved}') == before
  with pytest.raises(ConfigError, match=r'data.source files:.* -> task:'):
    admitted('task:korean')
  path = moved / 'train.en'
  path.write_text(path.read_text().replace('fox', 'cat', 1))
  with pytest.raises(ConfigError, match='the data of .* is not what'):
    admitted(f'files:{moved}')


def test_long_training_pairs_are_dropped_and_counted(data):
  lines: list[str] = []
  corpus = corpus_of(replace(data, max_length=40), progress=lines.append)
  dropped = corpus.dropped['train']
  assert 0 < dropped == 200 - len(corpus.pairs('train'))
  assert max(map(max, corpus.pairs('train').lengths)) <= 40
  assert lines[-1] == (
    f'{dropped} of 200 pairs of train have more than data.max_length=40 '
    'tokens: dropped'
  )
  plan = make_plan(corpus.train, data)
  steps = range(plan.steps_per_epoch)
  ids = np.concatenate([plan.ids(0, step) for step in steps])
  assert sorted(ids[ids >= 0]) == list(range(200 - dropped))


def fingerprint(data, corpus, *more: str) -> str:
  text = open_text(data)
  parts = [text.identity(split) for split in ('train', 'validation')]
  parts += [corpus.vocabularies.fingerprint, *more]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def test_training_pairs_with_an_empty_side_are_dropped_and_counted(
  data, folder
):
  before = corpus_of(data)
  assert before.fingerprint == fingerprint(data, before)
  blank = {'train': {3: ('', 'x'), 5: (' ', ''), 8: ('x', '')}}
  blank['validation'] = {0: ('', 'x')}
  for split, changes in blank.items():
    for side, language in enumerate(('en', 'ko')):
      path = folder / f'{split}.{language}'
      rows = path.read_text().split('\n')
      for number, pair in changes.items():
        rows[number] = pair[side]
      path.write_text('\n'.join(rows))
  lines: list[str] = []
  corpus = corpus_of(data, progress=lines.append)
  assert lines[-1] == '3 of 200 pairs of train have an empty side: dropped'
  assert corpus.dropped['train'] == 3
  kept = [n for n in range(200) if n not in blank['train']]
  every = corpus.references('train')
  assert texts(corpus, 'train') == [every[number] for number in kept]
  # Held-out data is as it is.
  assert len(corpus.pairs('validation')) == 30
  assert corpus.dropped['validation'] == 0
  assert texts(corpus, 'validation')[0] == ('', 'x')
  # Other data than what was trained on with them.
  assert corpus.fingerprint == fingerprint(data, corpus, 'empty sides dropped')


def test_held_out_pairs_are_never_dropped(data):
  corpus = corpus_of(replace(data, max_length=40))
  for split, count in (('validation', 30), ('test', 20)):
    assert len(corpus.pairs(split)) == len(corpus.references(split)) == count
    assert corpus.dropped[split] == 0


def test_long_training_pairs_can_be_refused(data):
  data = replace(data, max_length=40, over_length='refuse')
  with pytest.raises(ConfigError, match='--data.over_length=drop'):
    corpus_of(data)
  with pytest.raises(ConfigError, match='nothing is left'):
    corpus_of(replace(data, max_length=2, over_length='drop'))


def test_a_missing_test_split_is_said_before_any_work(data):
  lines: list[str] = []
  with pytest.raises(ConfigError, match="no split 'later'"):
    corpus_of(replace(data, test_split='later'), progress=lines.append)
  assert not lines


def test_small_and_large_vocabularies():
  assert cache.token_type(1 << 16) is np.uint16
  assert cache.token_type((1 << 16) + 1) is np.uint32


def prepare(data) -> subprocess.CompletedProcess[str]:
  values = flatten(replace(Config(), data=data))
  words = [
    f'--{path}={value}'
    for path, value in values.items()
    if path.startswith('data.')
  ]
  return subprocess.run(
    [sys.executable, '-m', 'experiments.prepare', *words],
    capture_output=True,
    text=True,
  )


def test_prepare_prints_what_is_there(data):
  done = prepare(replace(data, max_length=64))
  assert done.returncode == 0, done.stderr
  corpus = corpus_of(replace(data, max_length=64))
  said = done.stdout
  assert 'vocabulary: 400 pieces for both sides' in said
  assert f'train: {len(corpus.pairs("train"))} pairs' in said
  assert f'{corpus.dropped["train"]} dropped' in said
  assert 'validation: 30 pairs' in said and 'test: 20 pairs' in said
  assert '% padding' in said and corpus.fingerprint in said


def test_prepare_answers_bad_input_in_one_line(data):
  done = prepare(replace(data, train_split='trian'))
  assert done.returncode == 2
  assert not done.stdout
  assert done.stderr.count('\n') == 1 and "'trian'" in done.stderr


def test_prepare_answers_the_system_in_one_line(data, monkeypatch):
  def fail(data):
    raise PermissionError(13, 'Permission denied', '/data/train.en')

  monkeypatch.setattr(prepare_program, 'prepare', fail)
  told = '/data/train.en cannot be prepared: Permission denied'
  with pytest.raises(ConfigError, match=told):
    prepare_program.main(replace(Config(), data=data), SimpleNamespace())
