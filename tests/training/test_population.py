"""Populations: each member is the lone run, whoever else is there."""

import functools
import pathlib
import shutil
import signal
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generator import as_users_compile, passes_as_users_compile
from transformer_jax.config import Config, ConfigError
from transformer_jax.data.batches import Shape
from transformer_jax.data.corpus import open_corpus
from transformer_jax.fields import override
from transformer_jax.nn import implementations
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import fit, loop, population, replicas
from transformer_jax.training import place as place_lib
from transformer_jax.training import state as state_lib
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.population import Member, Population
from transformer_jax.training.replicas import Watcher
from transformer_jax.training.state import numbers

SYMBOLS = 12  # of the task, with the special ones
FIELDS = {'model.dropout': 0.1, 'data.cache_dir': '/nowhere'}
HERE = place_lib.on(jax.devices()[:1])
AT_ONCE = place_lib.Place('gpu', HERE.devices)


@pytest.fixture(scope='module')
def configs(config):
  """Three members: other seeds, rates and dropout; one program."""
  config = override(config, FIELDS)
  return [
    config,
    override(config, {'train.seed': 1, 'optim.learning_rate': 1e-3}),
    override(
      config,
      {'train.seed': 1, 'model.dropout': 0.4, 'model.scale': 'none'},
    ),
  ]


@pytest.fixture(scope='module')
def corpus(config):
  return open_corpus(config.data, workdir=None, progress=print)


def members(configs, folder):
  found = []
  for n, config in enumerate(configs):
    (folder / str(n)).mkdir(parents=True, exist_ok=True)
    found.append(Member(config, folder / str(n)))
  return found


def nobody(**others) -> Watcher:
  silent = dict(
    stop=lambda: 0,
    evaluated=lambda step, n, params: None,
    cut_back=lambda n, steps: '',
    progress=lambda steps: None,
    say=lambda text: None,
  )
  return Watcher(**{**silent, **others})


def leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same_bits(a, b) -> bool:
  return all(
    x.tobytes() == y.tobytes()
    for x, y in zip(leaves(a), leaves(b), strict=True)
  )


@functools.cache
def lone_step(model_config, optim):
  config = Config(model=model_config, optim=optim)
  model = Transformer(model_config, SYMBOLS, SYMBOLS)
  return jax.jit(state_lib.train_steps(config, model))


def lone(config, corpus, steps):
  """The state after `steps` of the run that the loop would make."""
  own = Population([Member(config, pathlib.Path())], corpus, HERE, 1)
  key, same = state_lib.run_key(config), state_lib.program(config)
  state = own.programs.start(key)
  step = lone_step(same.model, same.optim)
  done = 0
  while done < steps:
    count = min(own.steps_in_call(done), steps - done)
    batches = jax.tree.map(lambda x: x[0], own.batches(done, count))
    state, _ = step(state, batches, jnp.int32(count), key, numbers(config))
    done += count
  return state


def trained(own, steps, state=None):
  state, done = state or own.fresh(), 0
  bad = []
  while done < steps:
    count = min(own.steps_in_call(done), steps - done)
    state, _, bad_R = own.call(state, done, count)
    bad.append(np.asarray(bad_R))
    done += count
  return state, np.stack(bad)


@pytest.mark.parametrize(
  'names',
  [
    [
      'test_members_are_bitwise_the_lone_runs',
      'test_a_diverged_member_freezes_and_the_others_go_on',
    ],
    pytest.param(
      ['test_loop_writes_what_the_lone_loop_writes'], marks=pytest.mark.slow
    ),
  ],
)
def test_bits_as_users_compile(names):
  passes_as_users_compile(__file__, *names)


@as_users_compile
def test_members_are_bitwise_the_lone_runs(configs, corpus, tmp_path):
  own = Population(members(configs, tmp_path), corpus, HERE, room=4)
  found, bad = trained(own, 8)
  assert not bad.any()
  for n, config in enumerate(configs):
    assert same_bits(own.state(found, n), lone(config, corpus, 8)), n
  # The empty place has made no step.
  assert np.asarray(found.states.step).tolist() == [8, 8, 8, 0]


@pytest.mark.slow
def test_several_devices_share_out_members(configs, corpus, tmp_path):
  several = place_lib.on(jax.devices()[:2])
  own = Population(members(configs, tmp_path), corpus, several, room=3)
  one = Population(members(configs, tmp_path), corpus, HERE, room=4)
  assert own.room == 4
  found, bad = trained(own, 8)
  assert not bad.any()
  assert len(found.diverged_R.sharding.device_set) == 2
  # From a checkpoint they go on where they were.
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(8, found, metric=None)
  checkpoints.wait()
  found = trained(own, 4, checkpoints.restore(own.shapes()))[0]
  wanted = trained(one, 4, trained(one, 8)[0])[0]
  for a, b in zip(leaves(found), leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  scores = [p.scores(s, 'test') for p, s in ((own, found), (one, wanted))]
  assert all(abs(a.loss - b.loss) < 1e-6 for a, b in zip(*scores, strict=True))


def test_neighbours_change_nothing(configs, corpus, tmp_path):
  alone = Population(members(configs[1:2], tmp_path), corpus, HERE, room=4)
  among = Population(members(configs, tmp_path), corpus, HERE, room=4)
  one, many = trained(alone, 6)[0], trained(among, 6)[0]
  assert same_bits(alone.state(one, 0), among.state(many, 1))


@pytest.mark.slow
def test_at_once_is_the_same_within_rounding(configs, corpus, tmp_path):
  at_once = Population(members(configs, tmp_path), corpus, AT_ONCE, room=3)
  in_turn = Population(members(configs, tmp_path), corpus, HERE, room=4)
  a, b = trained(at_once, 4)[0], trained(in_turn, 4)[0]
  for n in range(3):
    for x, y in zip(
      leaves(at_once.state(a, n).params),
      leaves(in_turn.state(b, n).params),
      strict=True,
    ):
      np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_same_seed_same_data(configs, corpus, tmp_path):
  own = Population(members(configs, tmp_path), corpus, HERE, room=4)
  source_RKBS, _ = own.batches(0, 2)
  assert (source_RKBS[1] == source_RKBS[2]).all()
  assert (source_RKBS[0] != source_RKBS[1]).any()


@as_users_compile
def test_a_diverged_member_freezes_and_the_others_go_on(
  configs, corpus, tmp_path
):
  bad = override(configs[1], {'optim.learning_rate': 1e30})
  own = Population(members([configs[0], bad], tmp_path), corpus, HERE, room=4)
  found, bad_KR = trained(own, 8)
  marked = int(np.asarray(found.diverged_R)[1])
  assert 0 < marked <= 4
  assert np.asarray(found.diverged_R).tolist() == [0, marked, 0, 0]
  # Said once, in the call where it happened.
  assert bad_KR[:, 1].tolist().count(marked) == 1
  assert all(np.isfinite(x).all() for x in leaves(own.state(found, 1)))
  assert same_bits(own.state(found, 0), lone(configs[0], corpus, 8))


def test_another_program_is_refused(configs, corpus, tmp_path):
  wider = override(configs[0], {'model.d_ff': 64})
  undropped = override(configs[0], {'model.dropout': 0.0})
  for other in (wider, undropped):
    with pytest.raises(ConfigError, match='a population of 2 programs'):
      Population(members([configs[0], other], tmp_path), corpus, HERE, room=2)


def test_population_is_split_to_fit(configs, corpus, monkeypatch, tmp_path):
  # What a compiled program says of itself is seen in the next test.
  monkeypatch.setattr(Population, 'bytes', lambda own: 1000 * own.room)

  def sizes(free, workers=1):
    parts = population.split(
      members(configs, tmp_path),
      corpus,
      place=HERE,
      room=4,
      free=free,
      workers=workers,
    )
    return [len(part.members) for part in parts]

  assert sizes(0) == sizes(5000) == [3]
  assert sizes(4999) == sizes(2500) == sizes(5000, workers=2) == [2, 1]
  # Alone it may take what others would.
  assert sizes(1000) == sizes(1000, workers=8) == [1, 1, 1]
  with pytest.raises(ConfigError, match=r'one run needs 9.31e-07 GiB of a cpu'):
    sizes(999)
  assert place_lib.free_memory(HERE) > 0


def results(configs, corpus, folder, **watching):
  return replicas.train(
    members(configs, folder),
    corpus,
    folder=folder / 'population',
    place=HERE,
    room=4,
    watcher=nobody(**watching),
  )


def lines(folder):
  return [
    (folder / str(n) / 'metrics.jsonl').read_text().splitlines()
    for n in range(3)
  ]


class Whole(NamedTuple):
  """An unbroken run: its folder, outcomes, and what its watcher was told."""

  folder: pathlib.Path
  outcomes: list[replicas.Outcome]
  seen: list[tuple[int, int]]


@pytest.fixture(scope='module')
def unbroken(configs, corpus, tmp_path_factory):
  folder, seen = tmp_path_factory.mktemp('unbroken'), []
  found = results(
    configs,
    corpus,
    folder,
    evaluated=lambda step, n, params: seen.append((step, n)),
  )
  assert found is not None
  return Whole(folder, found, seen)


def test_loop_stopped_anywhere_gives_the_unbroken_results(
  configs, corpus, tmp_path, unbroken
):
  whole = unbroken.outcomes
  assert unbroken.seen == [(s, n) for s in (0, 8, 16, 24) for n in range(3)]
  said, calls = [], []

  def stop():
    calls.append(0)
    return signal.SIGTERM if len(calls) in (3, 9) else 0

  broken = tmp_path / 'broken'
  tries = 0
  found = None
  while found is None:
    found = results(configs, corpus, broken, stop=stop, say=said.append)
    tries += 1
  assert tries == 3
  assert [line for line in said if 'resumed' in line]
  assert lines(broken) == lines(unbroken.folder)
  assert [x.scores for x in found] == [x.scores for x in whole]
  assert {x.diverged_step for x in found} == {None}
  assert whole[0].memory > 0 and whole[0].step_seconds > 0
  assert whole[0].parameters == sum(
    x.size for x in leaves(lone(configs[0], corpus, 0).params)
  )


def test_a_record_with_a_hole_begins_again(configs, corpus, tmp_path, capsys):
  calls, asked = [], []

  def stop():
    calls.append(0)
    return signal.SIGTERM * (len(calls) == 5)

  def resume(**watching):
    part = Population(members(configs, tmp_path), corpus, HERE, room=4)
    folder = tmp_path / 'population' / replicas._name(part)
    run = replicas._Run(part, folder, nobody(**watching), first=0)
    return run.step_of(run.start_or_resume())

  def cut_back(n, steps):
    asked.append((n, steps))
    return 'probes.jsonl' if n == 1 and steps else ''

  assert results(configs, corpus, tmp_path, stop=stop) is None
  saved = tmp_path / 'saved'
  shutil.copytree(tmp_path / 'population', saved)
  kept, step = lines(tmp_path), resume()
  assert step > 8 and lines(tmp_path) == kept
  path = tmp_path / '1' / 'metrics.jsonl'
  path.write_text('{"step":' + path.read_text())
  assert resume() == 0
  assert lines(tmp_path) == [[]] * 3
  assert not any((tmp_path / 'population').iterdir())
  text = f'warning: {path} is damaged: all that is trained with it begins again'
  assert text in capsys.readouterr().err
  shutil.copytree(saved, tmp_path / 'population', dirs_exist_ok=True)
  for n, whole in enumerate(kept):
    (tmp_path / str(n) / 'metrics.jsonl').write_text('\n'.join(whole))
  assert resume(cut_back=cut_back) == 0
  assert asked == [(0, [0, 8]), (1, [0, 8]), (0, []), (1, []), (2, [])]
  assert '1/probes.jsonl is damaged' in capsys.readouterr().err


def test_members_of_parts_keep_their_numbers(
  configs, corpus, tmp_path, unbroken, monkeypatch
):
  def split(members, *_, **__):
    parts = members[:2], members[2:]
    return [Population(part, corpus, HERE, room=4) for part in parts]

  monkeypatch.setattr(population, 'split', split)
  seen = []
  found = results(
    configs,
    corpus,
    tmp_path,
    evaluated=lambda step, n, params: seen.append((step, n)),
  )
  assert found is not None
  assert sorted(seen) == sorted(unbroken.seen)
  assert lines(tmp_path) == lines(unbroken.folder)


def test_time_is_of_the_steps_alone(configs, corpus, tmp_path, monkeypatch):
  now = [0.0]

  def passes(seconds):
    now[0] += seconds

  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(replicas, 'time', clock)
  # A step of a member lasts a second; looking at its weights lasts long.
  found = results(
    configs,
    corpus,
    tmp_path,
    progress=passes,
    evaluated=lambda step, n, weights: passes(1000),
  )
  assert found is not None
  assert [outcome.step_seconds for outcome in found] == [1.0] * 3


@pytest.mark.slow
def test_time_to_compile_is_not_of_the_steps(configs, tmp_path, monkeypatch):
  now, compiled = [0.0], []

  def passes(seconds):
    now[0] += seconds

  compile_ = jax.stages.Lowered.compile

  def slowly(own, *rest):
    compiled.append(own)
    passes(1000)
    return compile_(own, *rest)

  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(replicas, 'time', clock)
  monkeypatch.setattr(jax.stages.Lowered, 'compile', slowly)
  # Two shapes; of the smaller one there is no batch before step 6.
  fields = {'data.task_train_size': 64, 'data.max_tokens': 64}
  two = override(configs[0], {**fields, 'train.steps': 8})
  corpus = open_corpus(two.data, workdir=None, progress=print)
  found = results([two], corpus, tmp_path, progress=passes)
  assert found is not None
  assert len(compiled) == 2
  assert found[0].step_seconds == 1.0


def test_memory_is_that_of_the_largest_shape(
  configs, corpus, tmp_path, monkeypatch
):
  asked = []
  monkeypatch.setattr(Population, 'compiled', lambda own, x: asked.append(x))
  monkeypatch.setattr(fit, 'peak', lambda found: 0)
  own = Population(members(configs, tmp_path), corpus, HERE, room=4)
  # The first has more places for tokens, the second more pairs of them.
  shapes = [Shape(64, 8, 8), Shape(16, 32, 31)]
  monkeypatch.setattr(own.plan, 'shapes', shapes)
  own.bytes()
  assert asked == [shapes[1]]


@pytest.mark.slow
@as_users_compile
def test_loop_writes_what_the_lone_loop_writes(configs, corpus, tmp_path):
  found = results(configs[:1], corpus, tmp_path)
  assert found is not None
  config = override(configs[0], {'data.cache_dir': str(tmp_path / 'cache')})
  assert loop.train(config, workdir=str(tmp_path / 'lone')) == loop.FINISHED
  alone = loop.record.MetricsFile(tmp_path / 'lone')
  own = loop.record.MetricsFile(tmp_path / '0')
  wanted = [x for x in alone.lines() if x['split'] == 'train']
  assert [x for x in own.lines() if x['split'] == 'train'] == wanted
  pairs = zip(alone.lines(), own.lines(), strict=True)
  assert all(abs(a['loss'] - b['loss']) < 1e-6 for a, b in pairs)


def test_loop_marks_the_diverged(configs, corpus, tmp_path):
  said = []
  bad = override(configs[1], {'optim.learning_rate': 1e30})
  found = results([configs[0], bad], corpus, tmp_path, say=said.append)
  assert found is not None
  good, diverged = found
  assert good.diverged_step is None and good.scores is not None
  assert diverged.diverged_step is not None and diverged.scores is None
  assert f'seed 1 diverged at step {diverged.diverged_step}' in said[0]


def test_noise_seed_changes_values_and_not_data(config, corpus, tmp_path):
  other = override(config, {'train.noise_seed': 1})
  own = Population(members([config, other], tmp_path), corpus, HERE, room=4)
  state = own.fresh()
  assert not same_bits(own.state(state, 0).params, own.state(state, 1).params)
  source_RKBS, _ = own.batches(0, 2)
  assert (source_RKBS[0] == source_RKBS[1]).all()


def test_what_is_compared_trains_by_one_program(config, monkeypatch):
  """And is scored by each its own."""
  seen = []

  def steps(config, model, place):
    seen.append(model.attention_fn)
    return state_lib.train_steps(config, model)

  monkeypatch.setattr(population, 'population_steps', steps)
  devices = jax.local_devices()[:1]
  for pairs in (0, 5):
    place = place_lib.on(devices, pairs=pairs)
    programs = population._programs(config, (16, 16), place, 1)
    assert programs.model.attention_fn is implementations.by_shape
  assert seen[0] is implementations.by_shape
  assert seen[1].func is seen[0] and seen[1].keywords == {'pairs': 5}
