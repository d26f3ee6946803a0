"""experiments.evaluate and experiments.translate on a run's folder."""

import dataclasses
import errno
import gzip
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest

from experiments import attend as attend_program
from experiments import compare as compare_program
from experiments import evaluate as evaluate_program
from experiments import translate as translate_program
from transformer_jax import flags
from transformer_jax.config import Config, ConfigError, DecodeConfig
from transformer_jax.fields import flatten, override
from transformer_jax.inference import evaluate, restore, translate
from transformer_jax.training import record

PROGRAMS = {
  'attend': attend_program,
  'compare': compare_program,
  'evaluate': evaluate_program,
  'translate': translate_program,
}


@pytest.fixture(autouse=True)
def no_lasting_compilation_cache():
  yield
  jax.config.update('jax_compilation_cache_dir', None)


@pytest.fixture
def call(workdir, tmp_path, capsys, monkeypatch):
  """(program, flags..., stdin) -> exit code, stdout, stderr."""

  def run(program, *arguments, stdin=b''):
    stream = types.SimpleNamespace(buffer=io.BytesIO(stdin))
    monkeypatch.setattr('sys.stdin', stream)
    own = [] if any('--workdir' in a for a in arguments) else ['--workdir']
    own = [f'{flag}={workdir}' for flag in own]
    module = PROGRAMS[program]
    with pytest.raises(SystemExit) as left:
      flags.run(
        module.main,
        extra=module.EXTRA,
        base=restore.config_of,
        arguments=[*own, f'--data.cache_dir={tmp_path}', *arguments],
      )
    out = capsys.readouterr()
    return left.value.code or 0, out.out, out.err

  return run


def words(run, *ids):
  return ' '.join(run.vocabularies.source.pieces(ids))


def test_translate_keeps_lines(call, run):
  lines = [words(run, 5, 6, 7), '', words(run, 8), words(run, 4, 4)]
  code, out, _ = call('translate', stdin='\n'.join([*lines, '']).encode())
  assert code == 0
  assert out.endswith('\n') and out.count('\n') == 4
  translated = out.split('\n')[:4]
  assert translated[1] == ''
  # Backwards, and in two parts.
  code, out, _ = call('translate', stdin='\n'.join(lines[::-1]).encode())
  assert out.split('\n')[:4] == translated[::-1]


def test_progress_is_said_when_it_moved(call, run, monkeypatch):
  def translate_sentences(model, params, sentences, *, progress, **_):
    for done in (1, 1, 2, 2, 2):
      progress(done, 2)
    found = [[translate.Translation(text, 0.0, 0.0)] for text in sentences]
    return translate.Translations(found, 0.0)

  monkeypatch.setattr(translate, 'translate_sentences', translate_sentences)
  text = '\n'.join([words(run, 5, 6), words(run, 7)] * 2).encode()
  monkeypatch.setattr(translate_program, 'LINES', 2)
  told = call('translate', stdin=text)[2].partition('\n')[2]
  assert told == '\r1 of 4 lines\r2 of 4 lines\n\r3 of 4 lines\r4 of 4 lines\n'
  told = call('evaluate')[2]
  assert [told.count(f'translated {n} of 2') for n in (1, 2)] == [1, 1]


def test_parts_of_a_long_text_join_without_a_seam(call, run, monkeypatch):
  text = '\n'.join(words(run, 4 + i, 5, 6) for i in range(4)).encode()
  flags = ['--decode.strategy=sample', '--decode.n_best=2']
  found = []
  for lines in (4, 2):
    monkeypatch.setattr(translate_program, 'LINES', lines)
    out = call('translate', *flags, stdin=text)[1]
    found.append([line.rpartition(' ||| ')[0] for line in out.splitlines()])
  assert found[0] == found[1]
  assert [line.split(' ||| ')[0] for line in found[0]] == list('11223344')


def test_scores_of_the_n_best_are_those_of_their_pairs(call, run):
  source = words(run, 5, 6, 7)
  code, out, _ = call(
    'translate',
    '--decode.n_best=2',
    '--decode.alpha=0',
    stdin=source.encode(),
  )
  found = [line.split(' ||| ') for line in out.splitlines()]
  assert code == 0 and [line for line, _, _ in found] == ['1', '1']
  pairs = ''.join(f'{source}\t{text}\n' for _, text, _ in found)
  code, out, _ = call('translate', '--score', stdin=pairs.encode())
  assert code == 0
  for line, (_, text, score) in zip(out.splitlines(), found, strict=True):
    total, each = map(float, line.split('\t'))
    np.testing.assert_allclose(total, float(score), atol=1e-5)
    np.testing.assert_allclose(each, total / (len(text.split()) + 1), atol=1e-5)


def test_evaluate_prints_one_line_and_keeps_it(call, workdir):
  code, out, _ = call('evaluate', '--split=test', '--decode.average=2')
  assert code == 0
  assert out.count('\n') == 1
  found = json.loads(out)
  assert found['split'] == 'test'
  assert found['checkpoint_steps'] == [24, 16]
  assert found['sentences'] == 32
  assert (found['tokenize'], found['files']) == ('13a', [])
  assert 'tok:13a' in found['bleu_signature'] and found['chrf_signature']
  for name in """loss perplexity accuracy exact bleu chrf seconds
      sentences_per_second padding_steps exact_translations""".split():
    assert found[name] >= 0
  kept = pathlib.Path(workdir, 'results').glob('test-beam2-*-step24-average2*')
  assert json.loads(next(kept).read_text()) == found


def test_evaluate_says_which_parts_of_korean_are_right(monkeypatch):
  golds = ['곰은 밥을 먹었다.', '나는 의사다.']
  config = override(
    Config(), {'data.source': 'task:korean', 'data.pair': 'en-ko'}
  )
  found = [
    [translate.Translation(gold, 0.0, 0.0)] for gold in (golds[0], '나는')
  ]
  run: Any = types.SimpleNamespace(config=config)
  for name, value in (
    ('scored', [evaluate.PairScore(-1.0, 1, 1)] * 2),
    ('translated', translate.Translations(found, 0.0)),
  ):
    monkeypatch.setattr(evaluate_program, name, lambda *_, value=value: value)

  def korean(**options):
    options = types.SimpleNamespace(**{'tokenize': '', 'source': '', **options})
    pairs = [('', gold) for gold in golds]
    result = evaluate_program.scores(run, pairs, options, lambda: None)
    return result.get('korean')

  assert korean() == {
    'exact': 0.5,
    'particle': 1,
    'tense': 0.5,
    'negation': 0.5,
  }
  # Lines of a file need not be sentences of the task.
  assert korean(source='a file') is None
  run.config = override(config, {'data.source': 'files:a folder'})
  assert korean() is None


@pytest.mark.slow
def test_two_runs_are_compared_on_the_same_sentences(call, workdir, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(workdir, other)
  shutil.rmtree(other / 'checkpoints' / '24')
  names = ('loss', 'bleu')
  alone = [
    json.loads(call('evaluate', f'--workdir={folder}')[1])
    for folder in (workdir, other)
  ]
  code, out, _ = call('compare', f'--against={other}')
  assert code == 0 and out.count('\n') == 1
  found = json.loads(out)
  assert found['checkpoint_steps'] == [[24], [16]]
  assert 'for these two checkpoints' in found['interval']
  for name in names:
    one = found[name]
    wanted = alone[0][name] - alone[1][name]
    np.testing.assert_allclose(one['difference'], wanted, atol=1e-5)
    assert one['ci_low'] <= one['difference'] <= one['ci_high']
  same = json.loads(call('compare', f'--against={workdir}')[1])
  for name in names:
    assert set(same[name].values()) == {
      0.0,
      'not told apart for these two checkpoints',
    }


def test_what_cannot_be_compared_is_told(call, workdir, tmp_path):
  code, _, err = call('compare', f'--against={tmp_path}')
  assert code == 2 and str(tmp_path) in err
  for name in ('source', 'reference'):
    (tmp_path / name).write_text('a b\n' * 19)
  sides = [f'--{name}={tmp_path / name}' for name in ('source', 'reference')]
  code, _, err = call('compare', f'--against={workdir}', *sides)
  assert code == 2 and 'source has 19 sentences' in err


def test_evaluate_on_files_is_evaluate_on_their_split(call, run, tmp_path):
  pairs = evaluate_program.split_pairs(run.config.data, 'test', None)
  for side, name in enumerate(('source', 'reference')):
    lines = '\n'.join(pair[side] for pair in pairs)
    (tmp_path / name).write_text(lines, encoding='utf-8')
  split = json.loads(call('evaluate')[1])
  files = json.loads(
    call(
      'evaluate',
      f'--source={tmp_path}/source',
      f'--reference={tmp_path}/reference',
    )[1]
  )
  for name in ('loss', 'accuracy', 'bleu', 'chrf', 'tokens', 'sentences'):
    assert files[name] == split[name]


def test_tokenised_text_is_scored_as_it_stands_and_says_so(
  call, run, workdir, tmp_path
):
  folder = tmp_path / 'tokens'
  folder.mkdir()
  for name in ('vocabulary', 'checkpoints'):
    (folder / name).symlink_to(pathlib.Path(workdir, name))
  about = json.loads(pathlib.Path(workdir, 'config.json').read_text())
  about['config']['data.text'] = 'pretokenized'
  (folder / 'config.json').write_text(json.dumps(about))
  (tmp_path / 'text').write_text(words(run, 5, 6))
  text = (f'--{side}={tmp_path}/text' for side in ('source', 'reference'))
  arguments = [f'--workdir={folder}', '--decode.strategy=greedy', *text]
  code, out, err = call('evaluate', '--tokenize=13a', *arguments)
  assert (code, out) == (2, '') and err.count('\n') == 1
  assert 'tokenize=13a does not go with data.text=pretokenized' in err
  found = json.loads(call('evaluate', *arguments)[1])
  assert found['tokenize'] == 'none'
  assert 'tok:none' in found['tokenized_bleu_signature']
  assert 'tokenized_chrf' in found and not {'bleu', 'chrf'} & set(found)


def test_results_of_other_settings_have_other_names(workdir, tmp_path):
  def path(split='test', *, decode=(), tokenize='13a', files=()):
    own = dataclasses.asdict(DecodeConfig(**dict(decode)))
    return evaluate_program.results_path(
      workdir,
      split,
      dict(
        decode=own,
        tokenize=tokenize,
        files=list(files),
        checkpoint_steps=[24],
      ),
    )

  found = [
    path(),
    path(tokenize='intl'),
    path(files=['/a/x', '/a/y']),
    path(files=['/b/x', '/b/y']),
    *(
      path(decode={name: value})
      for name, value in (
        *(('temperature', 0.5), ('top_k', 3), ('seed', 1)),
        *(('extra_length', 9), ('average', 5)),
      )
    ),
  ]
  assert len(set(found)) == len(found)
  assert path() == path() and '/results/test-beam4-alpha0.6-step24' in path()
  assert '/results/2016-test-beam4' in path('2016/test')


@pytest.mark.parametrize(
  'spoil',
  [
    lambda data: data[:-20],
    lambda data: data[:10] + b'\xff' + data[11:],  # No block begins so.
    lambda data: data[:-8] + bytes(8),
  ],
  ids=['short', 'packed', 'sum'],
)
def test_a_damaged_gzip_is_refused(tmp_path, spoil):
  path = tmp_path / 'a.gz'
  path.write_bytes(spoil(gzip.compress(bytes(range(48, 122)) * 40)))
  with pytest.raises(ConfigError, match='a.gz cannot be read'):
    evaluate_program.file_lines(str(path))


@pytest.mark.parametrize(
  ('arguments', 'stdin', 'told'),
  [
    (['--workdir=/nowhere'], b'', 'holds no run'),
    (['--model.d_model=8'], b'', 'only decode.* flags'),
    (['--preset=tiny'], b'', 'only decode.* flags'),
    ([], b'a\n\xff\n', 'stdin, line 2: not valid UTF-8'),
    (['--score'], b'a\tb\nc\n', 'stdin, line 2: 0 tabs'),
    (['--decode.n_best=9'], b'', 'decode.n_best=9 is more than'),
    (['--decode.top_k=5'], b'', 'take --decode.strategy=sample'),
    (['--score', '--decode.n_best=2'], b'', '--decode.n_best has no effect'),
  ],
)
def test_translate_refuses_in_one_line(call, arguments, stdin, told):
  code, out, err = call('translate', *arguments, stdin=stdin)
  assert code == 2 and out == ''
  assert told in err and err.count('\n') == 1


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    (['--source=a'], 'given together'),
    (['--source=/nowhere', '--reference=/nowhere'], 'cannot be read'),
    (['--split=train2'], "no split 'train2'"),
  ],
)
def test_evaluate_refuses_in_one_line(call, arguments, told):
  code, out, err = call('evaluate', *arguments)
  assert code == 2 and out == ''
  assert told in err and err.count('\n') == 1


@pytest.mark.parametrize('name', ['stdin', 'stdout'])
def test_translate_needs_both_ends(workdir, monkeypatch, name):
  options = types.SimpleNamespace(workdir=workdir)
  monkeypatch.setattr(sys, name, None)  # As `<&-` and `>&-` leave it.
  with pytest.raises(ConfigError, match='stdin or stdout is closed'):
    translate_program.main(Config(), options)


def test_a_line_beyond_the_positions_is_refused_before_any_work(
  call, run, monkeypatch
):
  monkeypatch.setattr(translate_program, 'LINES', 2)
  model = run.model.config
  short = dataclasses.replace(model, position='learned', max_positions=4)
  limited = run._replace(model=run.model.clone(config=short))
  monkeypatch.setattr(restore, 'load_run', lambda *_: limited)
  lines = [words(run, 5)] * 4 + [words(run, 4, 5, 6, 7)]
  code, out, err = call('translate', stdin='\n'.join(lines).encode())
  assert code == 2 and out == ''
  assert 'line 5 has 5 tokens' in err


def test_a_home_folder_is_not_made_anew(config, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(tmp_path)
  evaluate_program.split_pairs(config.data, 'test', '~/run')
  assert [path.name for path in tmp_path.iterdir()] == ['home']


def test_what_a_run_has_may_be_given(workdir):
  own = restore.config_of(types.SimpleNamespace(workdir=workdir, overrides={}))
  flat = flatten(own)
  given = {path: flat[path] for path in ('model.d_model', 'train.seed')}
  options = types.SimpleNamespace(workdir=workdir, overrides=given)
  assert restore.config_of(options) == own


@pytest.mark.parametrize(
  ('program', 'module', 'name'),
  [
    ('evaluate', evaluate_program, 'split_pairs'),
    ('translate', restore, 'load_run'),
  ],
)
def test_the_system_is_answered_in_one_line(
  call, monkeypatch, program, module, name
):
  def fail(*arguments):
    raise PermissionError(13, 'Permission denied', '/data/test.en')

  monkeypatch.setattr(module, name, fail)
  code, out, err = call(program)
  assert code == 2 and out == ''
  assert err.startswith('error: /data/test.en: Permission denied; mend this')
  assert err.count('\n') == 1


def test_files_that_moved_can_be_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = override(Config(), {'data.source': 'files:corpus'})
  record.write_atomically(tmp_path / 'config.json', record.describe(config, {}))

  def parse(*words):
    return flags.parse(
      [f'--workdir={tmp_path}', *words],
      extra=evaluate_program.EXTRA,
      base=restore.config_of,
    )

  found, options = parse('--data.source=files:moved')
  assert found.data.source == 'files:moved'
  # Another folder, another result.
  assert evaluate_program.named_files(options) == [f'{tmp_path}/moved']
  assert evaluate_program.named_files(parse()[1]) == []
  with pytest.raises(ConfigError, match='data.source belongs to the run'):
    parse('--data.source=task:reverse')


def test_attention_is_computed_as_this_machine_can(tmp_path, workdir, config):
  """Whatever computed it in training: `kernel` is for a GPU."""
  for name in ('checkpoints', 'vocabulary'):
    (tmp_path / name).symlink_to(f'{workdir}/{name}')
  own = 'model.attention_implementation'
  trained = override(config, {own: 'kernel'})
  record.write_atomically(
    tmp_path / 'config.json', record.describe(trained, {})
  )

  def parse(*words):
    return flags.parse(
      [f'--workdir={tmp_path}', *words],
      extra=evaluate_program.EXTRA,
      base=restore.config_of,
    )[0]

  assert parse().model.attention_implementation == 'auto'
  assert parse(f'--{own}=naive').model.attention_implementation == 'naive'
  restore.load_run(str(tmp_path), parse())
  with pytest.raises(ConfigError, match='is for a GPU'):
    restore.load_run(str(tmp_path), trained)


def test_checkpoints_are_chosen_and_averaged(workdir, config):
  def load(**changes):
    values = {f'decode.{name}': value for name, value in changes.items()}
    return restore.load_run(workdir, override(config, values))

  newest, three = load(), load(average=9)
  assert newest.steps == [24]
  assert three.steps == [24, 16, 8]
  assert load(checkpoint='best').steps == [16]
  assert load(checkpoint='best', average=2).steps == [16, 8]
  each = [load(checkpoint='best'), newest, three]
  leaf = [jax.tree.leaves(run.params)[0] for run in each]
  eight = 3 * leaf[2] - leaf[0] - leaf[1]
  pair = jax.tree.leaves(load(checkpoint='best', average=2).params)[0]
  np.testing.assert_allclose(pair, (leaf[0] + eight) / 2, atol=1e-6)


def test_what_is_kept_as_best_alone_joins_no_average(workdir, config, capsys):
  def load(**changes):
    values = {name.replace('__', '.'): x for name, x in changes.items()}
    found = restore.load_run(workdir, override(config, values)).steps
    return found, capsys.readouterr().err

  # Of 8, 16 and 24 the first is there only for its metric.
  steps, err = load(decode__average=3, train__keep_latest=2)
  assert steps == [24, 16]
  assert 'decode.average=3, but only 2 such checkpoints' in err
  assert '24, 16' in err and 'train.keep_latest (now 2)' in err
  assert err.count('\n') == 1
  assert load(decode__average=2, train__keep_latest=2) == ([24, 16], '')
  every = dict(train__keep_latest=1, train__keep_every=8)
  assert load(decode__average=3, **every) == ([24, 16, 8], '')
  # The best one counts, wherever it lies.
  best = dict(decode__checkpoint='best', train__keep_latest=1)
  assert load(**best) == ([16], '')
  assert load(decode__average=2, **best)[0] == [16]


def test_the_best_of_what_was_not_kept_for_it_is_refused(workdir, config):
  kept_by_age = override(config, {'train.keep_best': 0})
  assert restore.load_run(workdir, kept_by_age).steps == [24]
  best = override(kept_by_age, {'decode.checkpoint': 'best'})
  with pytest.raises(ConfigError, match='take --decode.checkpoint=latest'):
    restore.load_run(workdir, best)


def test_a_run_without_checkpoints_is_refused(workdir, config, tmp_path):
  vocabulary = pathlib.Path(workdir, 'vocabulary')
  (tmp_path / 'vocabulary').symlink_to(vocabulary)
  with pytest.raises(ConfigError, match='no latest checkpoint yet'):
    restore.load_run(str(tmp_path), config)


def test_a_reader_that_has_enough_is_no_error(workdir, run, tmp_path):
  reader, writer = os.pipe()
  os.close(reader)
  try:
    left = subprocess.run(
      [
        *(sys.executable, '-m', 'experiments.translate'),
        *(f'--workdir={workdir}', '--decode.strategy=greedy'),
        f'--data.cache_dir={tmp_path}',
      ],
      cwd=pathlib.Path(__file__).parent.parent.parent,
      input=words(run, 5, 6).encode(),
      stdout=writer,
      stderr=subprocess.PIPE,
      timeout=300,
    )
  finally:
    os.close(writer)
  assert left.returncode == 0, left.stderr
  assert b'BrokenPipe' not in left.stderr and b'Traceback' not in left.stderr


def test_that_a_reader_has_enough_is_known_to_all(monkeypatch, capsys):
  translate_program.put(['a', 'b'])
  assert capsys.readouterr().out == 'a\nb\n'
  # As the first process tells the others, whose own output goes nowhere.
  monkeypatch.setattr(
    translate_program.hosts, 'agreed', lambda own: own or errno.EPIPE
  )
  with pytest.raises(BrokenPipeError):
    translate_program.put([])


def test_that_stdout_is_full_is_told_in_one_line(monkeypatch):
  # To close it is what Python does at exit: nothing is left to fail.
  with open('/dev/full', 'w') as full:
    monkeypatch.setattr('sys.stdout', full)
    with pytest.raises(ConfigError, match='stdout cannot be written: No space'):
      translate_program.put(['a'])
