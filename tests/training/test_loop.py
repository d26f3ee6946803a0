"""A run: resumed, preempted, extended, refused, out of disk, out of numbers."""

import gzip
import json
import os
import pathlib
import resource
import shutil
import signal
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train as program
from tests.training.conftest import arrays
from transformer_jax import flags
from transformer_jax.config import Config, ConfigError
from transformer_jax.data.batches import Shape
from transformer_jax.data.corpus import open_corpus
from transformer_jax.fields import override
from transformer_jax.nn import implementations
from transformer_jax.training import compiled, loop, setup
from transformer_jax.training import place as place_lib
from transformer_jax.training.checkpoint import CheckpointError, Checkpoints
from transformer_jax.training.population import Member, Population


class Killed(BaseException):
  """Ends a run as a kill would: nothing after it is done."""


@pytest.fixture(scope='module')
def unbroken(config, tmp_path_factory):
  """The folder of a run of 24 steps that nothing disturbed."""
  folder = tmp_path_factory.mktemp('unbroken')
  assert loop.train(config, workdir=str(folder)) == loop.FINISHED
  return folder


@pytest.fixture
def train(config, tmp_path, capfd):
  """(**fields) -> exit code and stderr of training in one folder."""

  def run(**fields):
    values = {name.replace('__', '.'): value for name, value in fields.items()}
    code = loop.train(override(config, values), workdir=str(tmp_path / 'run'))
    return code, capfd.readouterr().err

  return run


@pytest.fixture
def before_step(monkeypatch):
  """(step, action): `action()` once, before the call that makes `step` + 1."""
  stacked = loop.stacked

  def plan(step, action):
    left = [action]

    def make(run, first, count):
      if first >= step and left:
        left.pop()()
      return stacked(run, first, count)

    monkeypatch.setattr(loop, 'stacked', make)

  return plan


def steps_of(folder) -> list[int]:
  names = os.listdir(folder / 'checkpoints')
  return sorted(int(name) for name in names if name.isdecimal())


def rows(folder) -> list[dict]:
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def assert_same_run(folder, unbroken, step=24):
  """The same bytes of metrics, parameters and moments."""
  assert (folder / 'metrics.jsonl').read_bytes() == (
    unbroken / 'metrics.jsonl'
  ).read_bytes()
  assert arrays(folder, step) == arrays(unbroken, step)


def damage(folder, step):
  """Flip a bit in the largest file of a checkpoint."""
  files = (folder / 'checkpoints' / str(step)).rglob('*')
  path = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def test_a_call_is_made_before_the_numbers_of_the_last_are_read(
  train, monkeypatch
):
  order = []
  make, write = compiled.Steps.__call__, loop.write

  def call(self, state, *rest):
    order.append(f'call {int(state.step)}')
    return make(self, state, *rest)

  def read(run, pending):
    if pending is not None:
      order.append(f'read {pending[0]}')
    write(run, pending)

  monkeypatch.setattr(compiled.Steps, '__call__', call)
  monkeypatch.setattr(loop, 'write', read)
  assert train(train__steps=8)[0] == 0
  # Calls are of two steps. Before a save all has been read.
  assert order == [
    *('call 0', 'call 2', 'read 0', 'call 4', 'read 2'),
    *('call 6', 'read 4', 'read 6'),
  ]


def test_what_a_run_leaves(unbroken):
  assert [(row['step'], row['split']) for row in rows(unbroken)] == [
    (4, 'train'),
    (8, 'train'),
    (8, 'validation'),
    (12, 'train'),
    (16, 'train'),
    (16, 'validation'),
    (20, 'train'),
    (24, 'train'),
    (24, 'validation'),
  ]
  first, last = rows(unbroken)[2], rows(unbroken)[-1]
  assert last['loss'] < first['loss']
  np.testing.assert_allclose(last['perplexity'], np.exp(last['loss']))
  assert steps_of(unbroken) == [8, 16, 24]
  assert sorted(path.name for path in unbroken.iterdir()) == [
    'checkpoints',
    'config.json',
    'events',
    'metrics.jsonl',
    'vocabulary',
  ]
  about = json.loads((unbroken / 'config.json').read_text())
  assert set(about) == {'config', 'fingerprints', 'versions'}
  assert about['config']['train.steps'] == 24


def test_a_finished_run_says_so(config, unbroken, capfd, monkeypatch):
  monkeypatch.setattr(loop, 'go_on', None)
  before = {p: p.stat().st_mtime_ns for p in unbroken.rglob('checkpoints/**/*')}
  metrics = (unbroken / 'metrics.jsonl').read_bytes()
  for fields in ({}, {'train.log_every': 2, 'data.tfds_dir': '/other'}):
    changed = override(config, fields)
    assert loop.train(changed, workdir=str(unbroken)) == 0
    assert f'{unbroken} is finished at step 24' in capfd.readouterr().err
  assert (unbroken / 'metrics.jsonl').read_bytes() == metrics
  assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_finished_run_is_tidied(config, unbroken, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'go_on', None)
  folder = tmp_path / 'run'
  shutil.copytree(unbroken, folder)
  # As a kill leaves it while the steps before the last save are removed.
  (folder / 'checkpoints/8').rename(folder / 'checkpoints/8.removed')
  fields = {'train.keep_latest': 1, 'train.keep_best': 1}
  assert loop.train(override(config, fields), workdir=str(folder)) == 0
  assert os.listdir(folder / 'checkpoints') == ['24']


def test_more_steps_go_on(train, unbroken, tmp_path):
  assert train(train__steps=8)[0] == 0
  assert steps_of(tmp_path / 'run') == [8]
  code, err = train()
  assert code == 0 and 'resumed at step 8' in err
  assert_same_run(tmp_path / 'run', unbroken)


@pytest.mark.parametrize('step', [3, 15])
def test_killed_between_checkpoints(
  train, unbroken, tmp_path, before_step, step
):
  def kill():
    raise Killed

  before_step(step, kill)
  with pytest.raises(Killed):
    train()
  # The kill fell in the middle of a line.
  with open(tmp_path / 'run' / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 9, "spl')
  code, err = train()
  assert code == 0
  assert ('resumed at step 8' in err) == (step > 8)
  assert_same_run(tmp_path / 'run', unbroken)


@pytest.mark.parametrize(
  ('number', 'step'), [(signal.SIGTERM, 4), (signal.SIGUSR1, 12)]
)
def test_a_signal_saves_and_leaves(
  train, unbroken, tmp_path, before_step, number, step
):
  before_step(step, lambda: os.kill(os.getpid(), number))
  handlers = [signal.getsignal(number)]
  code, err = train()
  assert code == 75
  assert 'signal: saving' in err
  saved = step + 2  # At the end of the call of two steps.
  assert steps_of(tmp_path / 'run')[-1] == saved
  assert f'saved at step {saved}' in err
  code, err = train()
  assert code == 0 and f'resumed at step {saved}' in err
  assert_same_run(tmp_path / 'run', unbroken)
  assert handlers == [signal.getsignal(number)]


@pytest.fixture
def in_evaluation(monkeypatch):
  """(step, action): `action()` once, in the evaluation of `step`."""
  evaluation = loop.evaluation

  def plan(step, action):
    left = [action]

    def make(run, stop, bleu):
      now = [0]

      def ask():
        if now[0] == step and left:
          left.pop()()
        return stop()

      evaluate = evaluation(run, ask, bleu)

      def wrapped(step, state):
        now[0] = step
        return evaluate(step, state)

      return wrapped

    monkeypatch.setattr(loop, 'evaluation', make)

  return plan


@pytest.mark.parametrize('step', [16, 24])
def test_a_signal_in_an_evaluation_is_obeyed_and_the_evaluation_made_up_for(
  train, unbroken, tmp_path, in_evaluation, step
):
  in_evaluation(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
  code, err = train()
  assert code == 75 and f'saved at step {step}' in err
  folder = tmp_path / 'run'
  assert (step, 'validation') not in [
    (r['step'], r['split']) for r in rows(folder)
  ]
  code, err = train()
  assert code == 0 and f'step {step} validation: loss' in err
  assert_same_run(folder, unbroken)
  # The metric as well, and with it what retention keeps.
  for made in steps_of(unbroken):
    manifests = [
      json.loads((run / f'checkpoints/{made}/manifest.json').read_text())
      for run in (folder, unbroken)
    ]
    assert manifests[0]['metric'] == manifests[1]['metric']
  assert steps_of(folder) == steps_of(unbroken)
  assert 'is finished' in train()[1]


def test_killed_between_a_late_evaluation_and_its_metric(
  train, unbroken, tmp_path, in_evaluation, monkeypatch
):
  in_evaluation(24, lambda: os.kill(os.getpid(), signal.SIGTERM))
  assert train()[0] == 75

  def kill(*_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, 'score', kill)
    with pytest.raises(Killed):
      train()
  assert train()[0] == 0
  assert_same_run(tmp_path / 'run', unbroken)


def test_a_signal_in_the_last_call_is_made_up_for(
  train, unbroken, tmp_path, before_step
):
  before_step(22, lambda: os.kill(os.getpid(), signal.SIGTERM))
  assert train()[0] == 75
  assert train()[0] == 0
  assert_same_run(tmp_path / 'run', unbroken)


def test_a_bad_checkpoint_is_made_again(train, unbroken, tmp_path):
  train(train__steps=16)
  damage(tmp_path / 'run', 16)
  code, err = train()
  assert code == 0
  assert '16 is bad' in err and 'resumed at step 8' in err
  assert_same_run(tmp_path / 'run', unbroken)


def test_a_run_does_not_begin_again_beside_bad_checkpoints(train, tmp_path):
  train(train__steps=16)
  folder = tmp_path / 'run'
  metrics = (folder / 'metrics.jsonl').read_bytes()
  damage(folder, 16)
  (folder / 'checkpoints' / '8' / 'manifest.json').unlink()
  for _ in range(2):
    with pytest.raises(CheckpointError, match='16.bad, 8.bad') as refused:
      train()
    assert '\n' not in str(refused.value)
  assert (folder / 'metrics.jsonl').read_bytes() == metrics
  # What its words advise.
  (folder / 'checkpoints' / '8.bad').rename(folder / 'checkpoints' / '8')
  with pytest.raises(CheckpointError):
    train()


def test_patience_stops_and_stays(train, tmp_path):
  # Nothing is learnt, so no evaluation is better than the first.
  still = dict(optim__learning_rate=0.0, train__patience=1)
  code, err = train(**still)
  assert code == 0 and 'finished at step 16' in err
  metrics = (tmp_path / 'run' / 'metrics.jsonl').read_bytes()
  code, err = train(**still, train__steps=100)
  assert code == 0 and 'is finished at step 16' in err
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == metrics


def test_patience_is_counted_from_the_best(set_up):
  run = set_up(train__patience=2, train__best_metric='accuracy')

  def after(*accuracies):
    run.metrics.cut_back(0)
    validations = [
      (n, 'validation', {'accuracy': a}) for n, a in enumerate(accuracies, 1)
    ]
    run.metrics.append([*validations, (9, 'train', {'accuracy': 1.0})])
    return loop.out_of_patience(run)

  assert not after()
  assert not after(0.5, 0.4)
  assert after(0.5, 0.4, 0.5)
  assert not after(0.5, 0.4, 0.6)
  assert not after(0.5, 0.4, 0.6, 0.5)
  assert after(0.5, 0.4, 0.6, 0.5, 0.5)


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_held_out_pairs_beyond_the_positions_are_refused(
  config, set_up, monkeypatch, tmp_path, split
):
  learned = {'model.position_decoder': 'learned', 'model.max_positions': 16}
  corpus = open_corpus(config.data, workdir=None, progress=print)
  whole = corpus.pairs(split)
  lengths = whole.lengths[0] + 99, whole.lengths[1] + 17
  short = {
    'validation': corpus.pairs('validation'),
    'test': corpus.pairs('test'),
  }
  long = types.SimpleNamespace(lengths=lengths)
  monkeypatch.setattr(
    corpus, 'pairs', lambda name: {**short, split: long}[name]
  )
  monkeypatch.setattr(setup, 'open_corpus', lambda *_, **__: corpus)
  told = f'a pair of {split} has .. tokens for the decoder, .*max_positions=16'
  with pytest.raises(ConfigError, match=told):
    set_up(**{name.replace('.', '__'): x for name, x in learned.items()})
  member = Member(override(config, learned), tmp_path)
  with pytest.raises(ConfigError, match=told):
    Population([member], corpus, place_lib.on(jax.devices()[:1]), 1)


# BLEU is best at step 16, the loss at 24.
@pytest.mark.parametrize(
  ('field', 'best'),
  [
    ({'train.best_metric': 'bleu'}, 16),
    ({'train.evaluate_bleu': 'always'}, 24),
  ],
)
def test_bleu_chooses_the_best_when_asked(config, tmp_path, capfd, field, best):
  scores = iter([3.0, 9.0, 5.0])

  def bleu(params, corpus, pairs, check, say):
    check()
    say('the signature')
    assert len(pairs) == config.data.task_held_out
    return {'bleu': next(scores), 'bleu_signature': 'how'}

  chosen = override(config, field)
  with pytest.raises(ConfigError, match='needs a scorer'):
    loop.train(chosen, workdir=str(tmp_path))
  assert loop.train(chosen, workdir=str(tmp_path), bleu=bleu) == 0
  validations = [row for row in rows(tmp_path) if row['split'] == 'validation']
  assert [row['bleu'] for row in validations] == [3.0, 9.0, 5.0]
  assert {row['bleu_signature'] for row in validations} == {'how'}
  err = capfd.readouterr().err
  assert err.count('the signature') == 3 and err.count(', bleu 9\n') == 1
  mode = 'max' if 'train.best_metric' in field else 'min'
  checkpoints = Checkpoints(
    tmp_path / 'checkpoints', keep_latest=9, keep_best=1, best_metric_mode=mode
  )
  assert checkpoints.best() == best


def test_bleu_of_separated_tokens_has_its_own_name():
  chosen = override(Config(), {'train.best_metric': 'bleu'})
  assert loop.best_metric(chosen) == 'bleu'
  tokens = override(chosen, {'data.text': 'pretokenized'})
  assert loop.best_metric(tokens) == 'tokenized_bleu'
  assert loop.best_metric(Config()) == 'loss'


def spoilt(monkeypatch, **changes):
  """The loop as it would be with other numbers than its config's."""
  numbers = loop.numbers
  monkeypatch.setattr(
    loop, 'numbers', lambda config: numbers(config)._replace(**changes)
  )


def test_a_loss_that_is_no_number_ends_the_run(train, tmp_path, monkeypatch):
  train(train__steps=8)
  folder = tmp_path / 'run'
  before = arrays(folder, 8)
  with monkeypatch.context() as patch:
    spoilt(patch, learning_rate=1e30)
    with pytest.raises(loop.TrainingError) as stopped:
      train()
  told = str(stopped.value)
  assert 'the loss of step 10 is not a number' in told
  assert 'checkpoint 8 stands' in told and '\n' not in told
  assert steps_of(folder) == [8] and arrays(folder, 8) == before
  assert all(np.isfinite(row['loss']) for row in rows(folder))
  assert train()[0] == 0


def poisoned(monkeypatch, *steps):
  """The loss of these steps is not a number, whatever their batch is."""
  made = setup.train_steps

  def train_steps(config, model, layout):
    run = made(config, model, layout)

    def call(state, batches, count, key, numbers):
      # The smoothing that makes a loss of NaN, in calls of one step.
      bad = jnp.isin(state.step + 1, jnp.array(steps))
      smoothing = jnp.where(bad, jnp.nan, numbers.label_smoothing)
      numbers = numbers._replace(label_smoothing=smoothing)
      return run(state, batches, count, key, numbers)

    return call

  monkeypatch.setattr(setup, 'train_steps', train_steps)
  monkeypatch.setattr(loop, 'steps_in_call', lambda run, step: 1)


def test_steps_without_a_finite_loss_are_skipped_and_counted(
  train, tmp_path, monkeypatch
):
  poisoned(monkeypatch, 3, 9, 10)
  before = {}
  save = Checkpoints.save

  def remember(self, step, state, *, metric):
    before[step] = jax.device_get(state)
    save(self, step, state, metric=metric)

  monkeypatch.setattr(Checkpoints, 'save', remember)
  limit = dict(train__max_skipped_steps=2, train__save_every=1)
  with pytest.raises(loop.TrainingError) as stopped:
    train(**limit)
  told = str(stopped.value)
  assert 'loss of step 10 is not a number' in told
  assert 'after 2 skipped steps; checkpoint 9 stands' in told
  # Nothing but the count of steps moved; the count of Adam did not.
  for skipped in (3, 9):
    old, new = before[skipped - 1], before[skipped]
    assert new.step == old.step + 1 == skipped
    for x, y in zip(
      jax.tree.leaves(old[1:]), jax.tree.leaves(new[1:]), strict=True
    ):
      assert x.tobytes() == y.tobytes()
  # More may be allowed, and what was skipped stays counted.
  code, err = train(train__max_skipped_steps=3)
  assert code == 0 and 'step 10 skipped: skipped 3' in err
  found = rows(tmp_path / 'run')
  assert [(r['step'], r['skipped']) for r in found if 'skipped' in r] == [
    (3, 1),
    (9, 2),
    (10, 3),
  ]


def test_skipped_steps_are_counted_by_the_first_process(set_up, monkeypatch):
  run = set_up(train__max_skipped_steps=9)
  monkeypatch.setattr(loop.hosts, 'agreed', lambda own: own + 4)
  assert loop.one_more_skipped(run, [(1, 'skipped', {})], '') == 6


def test_parameters_that_are_no_numbers_are_not_saved(
  train, tmp_path, monkeypatch
):
  # The loss of step 1 is good; what its update made is not.
  spoilt(monkeypatch, learning_rate=np.inf)
  with pytest.raises(loop.TrainingError, match='after step 1 are not finite'):
    train(train__save_every=1)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_validation_that_is_no_number_ends_the_run(
  train, tmp_path, monkeypatch
):
  spoilt(monkeypatch, learning_rate=1e30)
  with pytest.raises(loop.TrainingError, match='validation loss of step 1 is'):
    train(train__evaluate_every=1)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.fixture
def file_limit():
  """(bytes): no file of this process may grow beyond; None: as before."""
  before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limit(size):
    resource.setrlimit(
      resource.RLIMIT_FSIZE, (before if size is None else size, hard)
    )

  yield limit
  limit(None)


# The first holds metrics and events, but no arrays; the other nothing.
@pytest.mark.parametrize('size', [8192, 100])
def test_a_full_disk_is_one_line(
  train, unbroken, tmp_path, before_step, file_limit, size
):
  train(train__steps=8)
  before_step(9, lambda: file_limit(size))
  with pytest.raises(ConfigError) as stopped:
    train()
  file_limit(None)
  told = str(stopped.value)
  assert 'File too large' in told and '\n' not in told
  assert ('8 is whole' in told) == (size == 8192)
  assert steps_of(tmp_path / 'run') == [8]
  code, err = train()
  assert code == 0 and 'resumed at step 8' in err
  assert_same_run(tmp_path / 'run', unbroken)


@pytest.fixture
def call(config, capfd):
  """(workdir, *flags) -> exit code and stderr of the program."""

  def run(workdir, *words):
    with pytest.raises(SystemExit) as left:
      flags.run(
        program.main,
        extra=program.EXTRA,
        arguments=[
          '--preset=test',
          '--train.steps=24',
          f'--data.cache_dir={config.data.cache_dir}',
          f'--workdir={workdir}',
          *words,
        ],
      )
    return left.value.code, capfd.readouterr().err

  return run


def test_the_program_refuses_in_one_line(call, unbroken, tmp_path):
  (tmp_path / 'file').write_text('')
  for workdir, words, told in [
    (unbroken, ['--optim.beta1=0.5'], 'optim.beta1 0.9 -> 0.5; take'),
    (unbroken, ['--data.seed=3'], 'data.seed 0 -> 3'),
    (tmp_path / 'file' / 'run', [], 'cannot be written: Not a directory'),
    (tmp_path / 'file', [], 'cannot be written: File exists'),
    ('/proc/run', [], '/proc/run cannot be written'),
    (tmp_path / 'odd', ['--model.d_model=15'], 'd_model=15 must be even'),
    (tmp_path / 'odd', ['--optim.accumulate=7'], 'accumulate=7 does not'),
    (tmp_path / 'odd', ['--data.source=task:xyzzy'], 'xyzzy'),
  ]:
    code, err = call(workdir, *words)
    assert code == 2 and told in err, err
    assert err.startswith('error: ') and err.count('\n') == 1
  # What was refused does not stand in the way of what is right.
  assert not (tmp_path / 'odd' / 'config.json').exists()
  assert call(unbroken)[0] == 0


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


def test_calls_end_where_something_is_due(set_up):
  run = set_up(
    data__batches_per_run=4,
    train__save_every=6,
    train__evaluate_every=9,
    train__steps=11,
  )
  cuts, step = [], 0
  while step < 11:
    step += loop.steps_in_call(run, step)
    cuts.append(step)
  assert cuts == [4, 6, 8, 9, 11]
  batches = loop.stacked(run, 4, 2)
  assert batches.source_BS.shape[0] == 4
  np.testing.assert_array_equal(
    batches.source_BS[1], run.plan.batch(0, 5).source_BS
  )


def test_defaults_of_the_paper_are_a_run():
  assert loop.numbers(Config()).label_smoothing == 0.1


def test_the_program_of_the_widest_shape_is_said(config):
  served = implementations.serve(config.model, platform='cpu')
  for rows, name in ((8, 'the formula'), (10**6, 'blocks')):
    shapes = (Shape(8, 4, 4), Shape(rows, 5, 9))
    plan: Any = types.SimpleNamespace(shapes=shapes)
    found = setup.at_the_widest(config, served, plan)
    assert found == f'; of {rows} sentences of 9 tokens: {name}'


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


def assert_told(left, told):
  code, err = left
  assert code == 2
  assert 'Traceback' not in err and err.count('error: ') == 1
  assert err.splitlines()[-1].startswith('error: ') and told in err


@pytest.mark.parametrize('name', BAD)
def test_bad_input_leaves_with_2_and_one_line(call, pairs, tmp_path, name):
  folder, fields = pairs
  spoil, words, told = BAD[name]
  if spoil:
    spoil(folder)
  flags = [f'--{path}={value}' for path, value in fields.items()]
  assert_told(call(tmp_path / 'run', *flags, *words), told)


@pytest.mark.slow
def test_no_number_and_a_full_disk_leave_with_one_line(
  call, tmp_path, monkeypatch, before_step, file_limit
):
  with monkeypatch.context() as patch:
    spoilt(patch, learning_rate=1e30)
    found = call(tmp_path / 'run')
  assert_told(found, 'is not a number')
  before_step(9, lambda: file_limit(8192))
  found = call(tmp_path / 'other')
  file_limit(None)
  assert_told(found, 'File too large')
