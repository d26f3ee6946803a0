"""Embedded tasks: right answers, the same rows for ever, nothing leaks."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from transformer_jax.config import ConfigError, DataConfig
from transformer_jax.data import tasks
from transformer_jax.data.batches import held_out_batches, make_plan
from transformer_jax.data.corpus import EndlessPairs, open_corpus

DATA = DataConfig(
  task_symbols=8,
  task_min_length=2,
  task_max_length=6,
  task_held_out=64,
  task_distance=2,
  max_length=24,
  max_tokens=256,
  buckets=2,
)
SEQUENCES = {
  'copy': lambda words: words,
  'reverse': lambda words: words[::-1],
  'sort': sorted,
}


def recall(words):
  """`k3 5 k1 2 ? k1 k3` -> `2 5`, by a dictionary."""
  end = words.index('?')
  found = dict(zip(words[:end:2], words[1:end:2], strict=True))
  assert len(found) == end // 2 == len(words[end + 1 :])
  return [found[key] for key in words[end + 1 :]]


def long_range(words):
  return [words[words.index('?') - DATA.task_distance]]


LOOK_UPS = {'recall': recall, 'long_range': long_range}


def task(name: str, **changes):
  data = replace(DATA, source=f'task:{name}', **changes)
  return open_corpus(data, workdir=None, progress=print), data


def widest(data):
  name = data.source.removeprefix('task:')
  source, target = tasks.TASKS[name].longest(data)
  return source + 1, target + 1


def sequences(rows_BL: np.ndarray) -> list[tuple[int, ...]]:
  return [tuple(row_L[row_L != 0].tolist()) for row_L in rows_BL]


def test_every_task_has_its_answer_here():
  assert {*SEQUENCES, *LOOK_UPS} == tasks.TASKS.keys()


@pytest.mark.parametrize('name', SEQUENCES)
def test_answers(name):
  corpus, data = task(name)
  batch = make_plan(corpus.train, data).batch(0, 3)
  vocabulary = corpus.vocabularies.source
  pairs = list(
    zip(*(vocabulary.decode(rows.tolist()) for rows in batch), strict=True)
  )
  lengths = set()
  for source, target in corpus.references('test') + pairs:
    words = [int(word) for word in source.split()]
    assert [int(word) for word in target.split()] == SEQUENCES[name](words)
    assert min(words) >= 0 and max(words) < 8
    lengths.add(len(words))
  assert lengths == {2, 3, 4, 5, 6}


@pytest.mark.parametrize('name', LOOK_UPS)
def test_answers_that_are_looked_up(name):
  corpus, data = task(name)
  batch = make_plan(corpus.train, data).batch(0, 3)
  pairs = list(
    zip(
      *(corpus.vocabularies.source.decode(rows.tolist()) for rows in batch),
      strict=True,
    )
  )
  lengths, symbols = set(), set()
  for source, target in corpus.references('test') + pairs:
    words = source.split()
    assert target.split() == LOOK_UPS[name](words)
    symbols.update(words)
    lengths.add((len(words) - 1) // {'recall': 3, 'long_range': 1}[name])
  assert lengths == {2, 3, 4, 5, 6}
  keys = {f'k{n}' for n in range(8)} if name == 'recall' else set()
  assert symbols == {*map(str, range(8)), '?', *keys}


@pytest.mark.parametrize('name', [*SEQUENCES, *LOOK_UPS])
def test_noise_is_of_the_target_alone_and_stays(name):
  row_B = np.arange(20_000)
  noisy = replace(DATA, task_noise=0.4)
  clean, first, again = (
    tasks.generate(name, data, split='train', row_B=row_B[rows])
    for data, rows in (
      (DATA, slice(None)),
      (noisy, slice(None)),
      (noisy, slice(7, 9)),
    )
  )
  np.testing.assert_array_equal(first.source_BS, clean.source_BS)
  np.testing.assert_array_equal(first.target_length_B, clean.target_length_B)
  np.testing.assert_array_equal(first.target_BT[7:9], again.target_BT)
  column_T = np.arange(first.target_BT.shape[1])
  read_BT = column_T < first.target_length_B[:, None]
  wrong = (first.target_BT != clean.target_BT)[read_BT].mean()
  # One in eight of what is drawn at random is right.
  assert abs(wrong - 0.4 * 7 / 8) < 0.01
  assert first.target_BT[read_BT].max() == 7


def test_nothing_but_the_pair_tells_the_value():
  """Of one row, the value at another place is the answer one time in eight."""
  rows = tasks.generate('recall', DATA, split='train', row_B=np.arange(20_000))
  full = rows.source_length_B == 3 * 6 + 1
  first_key_B = rows.source_BS[full, 13]
  for pair in range(6):
    key_B, value_B = rows.source_BS[full, 2 * pair : 2 * pair + 2].T
    asked = key_B == first_key_B
    right = rows.target_BT[full, 0] == value_B
    assert abs(asked.mean() - 1 / 6) < 0.03
    assert right[asked].all()
    # That one key was asked for says nothing of the next.
    again = rows.source_BS[full, 14] == key_B
    assert abs(again[asked].mean() - 1 / 6) < 0.05
    assert abs(right[~asked].mean() - 1 / 8) < 0.02


def test_only_the_symbol_at_the_distance_tells_the_answer():
  rows = tasks.generate(
    'long_range', DATA, split='train', row_B=np.arange(20_000)
  )
  mark_B = np.argmax(rows.source_BS == 8, axis=1)
  assert mark_B.min() == 2 and mark_B.max() == 6
  answer_B = rows.target_BT[:, 0]
  share = np.bincount(answer_B) / len(answer_B)
  # Not quite even: of the 64 shortest sources some are held out.
  assert np.abs(share - 1 / 8).max() < 0.015
  for distance in (-2, -1, 1, 2, 3, 4):
    at_B = mark_B - distance
    there = (at_B >= 0) & (at_B < rows.source_length_B)
    symbol_B = rows.source_BS[there, at_B[there]]
    right = (symbol_B == answer_B[there]).mean()
    assert right == 1 if distance == 2 else abs(right - 1 / 8) < 0.02
  # Nor does a place: in the longest rows each is as good as another.
  long = rows.source_length_B == 7
  for column in range(5):
    right = (rows.source_BS[long, column] == answer_B[long]).mean()
    assert abs(right - (1 / 5 + 4 / 5 / 8)) < 0.04


@pytest.mark.parametrize('name', tasks.TASKS)
def test_held_out_sources_never_occur_in_training(name):
  corpus, data = task(name)
  plan = make_plan(corpus.train, data)
  seen = {
    row
    for seed in (0, 1)
    for step in range(400)
    for row in sequences(plan.batch(seed, step).source_BS)
  }
  held_out = {}
  for split in ('validation', 'test'):
    pairs = corpus.pairs(split)
    assert len(pairs) == 64
    every = pairs.gather(np.arange(64), *widest(data))
    held_out[split] = set(sequences(every.source_BS))
  assert len(seen) > 5000
  assert not seen & (held_out['validation'] | held_out['test'])
  assert not held_out['validation'] & held_out['test']


def test_held_out_rows_of_one_task_seed_are_held_out_of_all():
  first, second = (task('copy', seed=seed) for seed in (0, 1))
  assert first[0].references('test') != second[0].references('test')
  plan = make_plan(second[0].train, second[1])
  seen = {row for s in range(100) for row in sequences(plan.batch(0, s)[0])}
  held_out = first[0].pairs('test').gather(np.arange(64), 7, 7)
  assert not seen & set(sequences(held_out.source_BS))


def test_rows_are_a_function_of_seed_split_and_number():
  corpus, _ = task('copy')
  train = corpus.train
  assert isinstance(train, EndlessPairs)
  ids = train.ids(3, 100, 16)
  batch = train.gather(ids, 7, 7)
  for place in (0, 7, 15):
    alone = train.gather(ids[place : place + 1], 7, 7)
    np.testing.assert_array_equal(alone.source_BS[0], batch.source_BS[place])
  other = task('copy', seed=1)[0].train.gather(ids, 7, 7)
  assert (other.source_BS != batch.source_BS).any()
  assert (train.gather(train.ids(4, 100, 16), 7, 7)[0] != batch[0]).any()


def test_golden():
  """Seeds written into papers and results must mean the same rows for ever."""
  corpus, data = task('reverse')
  batch = make_plan(corpus.train, data).batch(1, 2)
  found = hashlib.sha256(batch.source_BS.tobytes()).hexdigest()[:16]
  assert found == '8a0ca819b412a7e1'


def test_lengths_and_symbols_are_uniform():
  corpus, _ = task('copy')
  ids = np.arange(20_000)
  rows = corpus.train.gather(ids, 7, 7).source_BS
  length = (rows > 3).sum(1)
  assert np.abs(np.bincount(length)[2:] / 20_000 - 1 / 5).max() < 0.015
  symbols = np.bincount(rows[rows > 3])[4:]
  assert np.abs(symbols / symbols.sum() - 1 / 8).max() < 0.01


def test_plan_without_end():
  corpus, data = task('copy', batches_per_run=4)
  plan = make_plan(corpus.train, data)
  (shape,) = plan.shapes
  assert shape == (32, 7, 7) == plan.shape(12345)
  assert [plan.left_in_run(step) for step in range(5)] == [4, 3, 2, 1, 4]
  assert plan.steps_per_epoch == 0
  first, second = plan.ids(0, 0), plan.ids(0, 1)
  assert second[0] == first[-1] + 1
  assert not set(plan.ids(1, 0)) & set(first)


def test_a_finite_training_set_has_epochs():
  corpus, data = task('sort', task_train_size=100)
  assert len(corpus.pairs('train')) == 100
  plan = make_plan(corpus.train, data)
  steps = range(plan.steps_per_epoch)
  ids = np.concatenate([plan.ids(5, step) for step in steps])
  assert sorted(ids[ids >= 0]) == list(range(100))


def test_held_out_batches_of_a_task():
  corpus, data = task('copy')
  ids = np.concatenate(
    [i for i, _ in held_out_batches(corpus.pairs('test'), data, 256)]
  )
  assert sorted(ids[ids >= 0]) == list(range(64))


@pytest.mark.parametrize(
  'changes, says',
  [
    ({'source': 'task:cpy'}, 'task:copy'),
    ({'task_symbols': 2}, 'raise data.task_symbols'),
    ({'task_symbols': 1, 'task_held_out': 1}, 'raise data.task_symbols'),
    ({'task_max_length': 24}, 'max_length=24'),
    ({'source': 'task:recall', 'task_symbols': 5}, 'too few for data.task_max'),
    (
      {'source': 'task:long_range', 'task_distance': 3},
      '=3 symbols: give 1 to',
    ),
    ({'test_split': 'val'}, 'there is: train, validation, test'),
  ],
)
def test_refused(changes, says):
  data = replace(DATA, source='task:copy')
  with pytest.raises(ConfigError) as error:
    open_corpus(replace(data, **changes), workdir=None, progress=print)
  assert says in str(error.value) and '\n' not in str(error.value)


def test_vocabulary_of_another_task_is_refused(tmp_path):
  data = replace(DATA, source='task:copy')
  first = open_corpus(data, workdir=str(tmp_path), progress=print)
  again = open_corpus(data, workdir=str(tmp_path), progress=print)
  assert again.fingerprint == first.fingerprint
  with pytest.raises(ConfigError, match='vocabulary saved with this run'):
    open_corpus(
      replace(data, task_symbols=9), workdir=str(tmp_path), progress=print
    )


def test_fingerprint_follows_what_is_generated():
  corpora = [
    task('copy'),
    task('sort'),
    task('copy', seed=1),
    task('copy', task_max_length=7),
    task('copy', task_train_size=10),
    task('copy', task_noise=0.1),
  ]
  assert len({corpus.fingerprint for corpus, _ in corpora}) == 6


@pytest.mark.parametrize(
  'name, digest',
  [('recall', '5c6cc1b90ac17dc0'), ('long_range', '014b4fb58ef7bce4')],
)
def test_golden_of_look_ups(name, digest):
  corpus, data = task(name)
  batch = make_plan(corpus.train, data).batch(1, 2)
  content = batch.source_BS.tobytes() + batch.target_BT.tobytes()
  assert hashlib.sha256(content).hexdigest()[:16] == digest
