"""A score function from one user's file, without a fork."""

import contextlib
import hashlib
import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest

from experiments import ablate, studies, train
from tests.choices import BATCH, V, base
from transformer_jax import flags, plugins
from transformer_jax.ablation import cells, checks, declaration, runner
from transformer_jax.ablation import results as results_lib
from transformer_jax.ablation.screen import Screen
from transformer_jax.config import ConfigError
from transformer_jax.fields import FIELDS, from_json, override, to_json
from transformer_jax.inference import restore
from transformer_jax.nn import attention, implementations, layers, randomness
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import record
from transformer_jax.training.state import initial_state, numbers, train_step

EXAMPLE = 'experiments/examples/gaussian_score.py'
FILE = pathlib.Path(__file__).parent.parent / EXAMPLE


@contextlib.contextmanager
def process():
  """What a plugin adds is gone after it."""
  tables: list[Any] = [FIELDS, attention.SCORES, attention.SCALES]
  tables += [layers.NORM_ORDERS]
  before = [dict(table) for table in tables]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plugins, '_LOADED', {})
    patch.setattr(plugins, '_SUMS', {})
    yield
  for table, entries in zip(tables, before, strict=True):
    table.clear()
    table.update(entries)


@pytest.fixture(autouse=True)
def as_it_was():
  with process():
    yield


def test_a_score_from_a_file_is_a_choice_and_trains():
  words = ['--preset=test', f'--plugin={FILE}', '--model.score=gaussian']
  config, _ = flags.parse(words)
  assert config.model.score == 'gaussian'
  assert 'gaussian' in flags.help_text(lambda config, options: 0, ())
  assert from_json(to_json(config)) == config
  # Twice in a process is once.
  assert flags.parse(['--plugin', str(FILE), *words])[0] == config
  losses = []
  for changes in ({}, {'model.score': 'gaussian'}):
    config = override(base(), changes)
    model = Transformer(config.model, V, V)
    start = jax.jit(initial_state(config, model))(randomness.seed_key(0))
    step = jax.jit(train_step(config, model))
    found = step(start, BATCH, randomness.seed_key(0), numbers(config))[1]
    losses.append(float(found.losses.smoothed))
  assert np.isfinite(losses).all() and losses[0] != losses[1]


def test_the_example_is_its_formula():
  plugins.load([f'--plugin={FILE}'])
  key = randomness.seed_key(0)
  q, k = (randomness.normal(randomness.at(key, n), (2, 3, 2, 4)) for n in 'qk')
  found = attention.SCORES['gaussian'].scores(q, k, scale=0.5)
  for b, h, t, s in [(0, 0, 0, 0), (1, 1, 2, 0)]:
    wanted = -0.25 * np.sum(
      (np.asarray(q)[b, t, h] - np.asarray(k)[b, s, h]) ** 2
    )
    np.testing.assert_allclose(found[b, h, t, s], wanted, rtol=1e-5)


# A score with a parameter of its own, and a study of it.
MINE = """
from experiments.presets import PRESETS
from transformer_jax import plugins
from transformer_jax.ablation import checks
from transformer_jax.ablation.study import Primary, Study, arms
from transformer_jax.nn import attention, initializers

def scores(q_BTHK, k_BSHK, w_HK, *, scale):
  return attention.dot_scores(q_BTHK * w_HK[None, None], k_BSHK, scale=scale)

plugins.add(
  'model.score', 'mine', attention.SCORES,
  attention.Score(scores, 'w_mine_HK', draw=initializers.constant(2.0)),
)
STUDY = Study(
  name='own', question='Does it?', paper='-', axes=('model.score',),
  baseline={
    **{p: v for p, v in PRESETS['test'].overrides.items()
       if not checks.unread(p)},
    'train.steps': 4, 'train.evaluate_every': 4, 'mesh.data': 1,
  },
  arms=arms([{}, {'model.score': 'mine'}]),
  primary=(Primary('score=mine', 'baseline'),),
  seeds=1, looks=(1,),
)
"""


def written(path, text=MINE):
  """The words that name a file of this text."""
  path.write_text(text)
  return [f'--plugin={path}']


def test_a_parameter_is_drawn_as_the_entry_says(tmp_path):
  for entry, start in (('draw=initializers.constant(2.0)', 2.0), ('', None)):
    with process():
      text = MINE.replace('draw=initializers.constant(2.0)', entry)
      plugins.load(written(tmp_path / f'mine{start}.py', text))
      config = override(base(), {'model.score': 'mine'})
      model = Transformer(config.model, V, V)
      start_of = jax.jit(initial_state(config, model))
      params = start_of(randomness.seed_key(0)).params
      w_NHK = params['encoder']['layers']['self_attention']['w_mine_HK']
      K = config.model.d_k
      assert w_NHK.shape[1:] == (config.model.heads, K)
      if start is not None:
        np.testing.assert_array_equal(w_NHK, start)
      else:
        assert 0.3 < np.std(w_NHK) * K**0.5 < 2


def test_a_parameter_has_letters_that_a_score_knows(tmp_path):
  plugins.load(
    written(tmp_path / 'mine.py', MINE.replace('w_mine_HK', 'w_mine_HZ'))
  )
  config = override(base(), {'model.score': 'mine'})
  told = "model.score=mine: .* letters of H, K .* 'w_mine_HZ'"
  with pytest.raises(ConfigError, match=told):
    implementations.choose(config.model, platform='cpu')
  with pytest.raises(ConfigError, match=told):
    jax.eval_shape(
      initial_state(config, Transformer(config.model, V, V)),
      randomness.seed_key(0),
    )


QUARTER = """
from transformer_jax import plugins
from transformer_jax.nn import attention, layers

plugins.add(
  'model.scale', 'quarter', attention.SCALES,
  attention.Scale(lambda d_k: 0.25, parameters=('scale_H',)),
)
plugins.add(
  'model.norm_order', 'twice', layers.NORM_ORDERS,
  layers.NormOrder(*3 * [lambda norm, x: norm(x)]),
)
"""


@pytest.mark.slow
def test_one_entry_is_enough_for_an_axis_of_several_parts(tmp_path, capsys):
  """Of a scale: factor, fold and parameter; of an order: all places."""
  words = [*written(tmp_path / 'quarter.py', QUARTER), '--preset=test']
  words += ['--model.scale=quarter', '--model.norm_order=twice']
  with pytest.raises(SystemExit) as ended:
    own = [*words, f'--workdir={tmp_path}', '--dry_run', '--mesh.data=1']
    own += [f'--data.cache_dir={tmp_path}']
    flags.run(train.main, extra=train.EXTRA, arguments=own)
  assert not ended.value.code, capsys.readouterr().err
  config, _ = flags.parse(words)
  assert numbers(config).scales.cross == 0.25
  model = Transformer(config.model, V, V)
  params = initial_state(config, model)
  shapes = jax.eval_shape(params, randomness.seed_key(0)).params
  assert 'scale_H' in shapes['encoder']['layers']['self_attention']
  assert {'encoder_norm', 'decoder_norm'} <= shapes.keys()


def test_a_score_is_of_one_query_and_one_key(tmp_path):
  """One that is normed over the keys would be another in each block."""
  product = 'attention.dot_scores(q_BTHK * w_HK[None, None], k_BSHK, '
  among = MINE.replace(product, f'among({product}').replace(
    '=scale)', '=scale))'
  )
  among = among.replace(
    'def scores', 'import jax\namong = jax.nn.softmax\n\ndef scores'
  )
  for n, (text, refused) in enumerate([(MINE, False), (among, True)]):
    with process():
      plugins.load(written(tmp_path / f'{n}.py', text))
      model = override(base(), {'model.score': 'mine'}).model
      if refused:
        with pytest.raises(ConfigError, match='model.score=mine gives a query'):
          implementations.choose(model, platform='cpu')
      else:
        assert implementations.choose(model, platform='cpu')


@pytest.mark.slow
def test_a_study_from_a_file_runs(tmp_path):
  file, place = tmp_path / 'mine.py', tmp_path / 'study'
  place.mkdir()
  with process():
    words = [*written(file), '--study=own', '--workdir=-']
    _, options = flags.parse(words, extra=ablate.EXTRA, base=ablate.base)
    assert 'own' in studies.names()
    study = studies.load(options.study)
    cache = {'data.cache_dir': str(tmp_path / 'cache')}
    study = checks.with_overrides(study, cache)
    job = runner.Job(
      folder=place,
      study=declaration.declare(place, study, seeds=None),
      seeds=1,
      shard=runner.Shard(),
      tuned=studies.tuned('own'),
      stop=lambda: 0,
      screen=Screen(place, 'own', quiet=True),
    )
    assert runner.run(job) == 0
    results = results_lib.read_results(place, study)
    assert [r.body['status'] for r in results] == ['finished'] * 2
    sums = [r.body.get('plugins') for r in results]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert sums == [None, {'plugin model.score=mine': sha256}]


def test_the_text_of_a_file_is_part_of_its_study(tmp_path):
  """A changed formula finds no old result done."""
  file, place = tmp_path / 'mine.py', tmp_path / 'study'
  place.mkdir()
  with process():
    plugins.load(written(file))
    study = studies.load('own')
    names = [one.identity for one in cells.cells(study, [0], None)]
    declaration.declare(place, study, seeds=None)
    assert declaration.declare(place, study, seeds=None) == study
  with process():
    plugins.load(written(file, MINE.replace('2.0', '3.0')))
    study = studies.load('own')
    others = [one.identity for one in cells.cells(study, [0], None)]
    # What uses nothing of the file is what it was.
    assert others[0] == names[0] and others[1] != names[1]
    with pytest.raises(ConfigError, match='restore its file or take another'):
      declaration.declare(place, study, seeds=None)


def test_a_run_is_of_the_text_it_began_with(tmp_path):
  file = tmp_path / 'mine.py'
  mine = {'model.score': 'mine'}
  with process():
    plugins.load(written(file))
    config = override(base(), mine)
    (tmp_path / 'config.json').write_text(
      record.describe(config, plugins.used(config))
    )
    record.admit_data(tmp_path, plugins.used(config))
    assert plugins.used(base()) == {}
  with process():
    plugins.load(written(file, MINE.replace('2.0', '3.0')))
    config = override(base(), mine)
    with pytest.raises(ConfigError, match='the plugin model.score=mine of'):
      record.admit_data(tmp_path, plugins.used(config))
    with pytest.raises(ConfigError, match='the plugin model.score=mine of'):
      restore.load_run(str(tmp_path), config)


def test_a_study_from_a_file_has_a_name_of_its_own(tmp_path):
  for n, (old, new, text) in enumerate(
    [
      ("name='own'", "name='paper'", "named 'paper', which is taken"),
      ('STUDY = Study(', 'STUDY = dict(', 'is not a Study'),
    ]
  ):
    with process():
      plugins.load(written(tmp_path / f'{n}.py', MINE.replace(old, new)))
      with pytest.raises(ConfigError, match=text):
        studies.names()


def test_the_study_of_the_example_can_be_run():
  plugins.load([f'--plugin={FILE}'])
  study = studies.load('gaussian')
  assert study.doc.startswith('A score from outside')
  assert [arm.name for arm in study.arms] == ['baseline', 'score=gaussian']


def test_what_is_wrong_is_one_line(tmp_path):
  bad = tmp_path / 'bad.py'
  bad.write_text('import not_there\n')
  listed = tmp_path / 'flags'
  listed.write_text(f'--plugin={FILE}\n')
  for words, text in [
    (['--plugin=nothing.py'], 'is not a Python file'),
    ([f'--plugin={bad}'], "ModuleNotFoundError: No module named 'not_there'"),
    ([f'--flagfile={listed}'], '--plugin is read before any --flagfile'),
    (['--model.score=gaussian'], 'is not one of'),
  ]:
    with pytest.raises(ConfigError, match=re.escape(text)):
      flags.parse(words)
  with pytest.raises(ConfigError, match='is there already'):
    plugins.add('model.score', 'dot', attention.SCORES, None)
  with pytest.raises(ConfigError, match='no field with named values'):
    plugins.add('model.layers', 'many', {}, None)
