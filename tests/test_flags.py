"""Flags: precedence, and one line for everything that is wrong."""

import functools
import io
import os
import pathlib
import subprocess
import sys
import types

import pytest

from transformer_jax import flags
from transformer_jax.config import Config, ConfigError
from transformer_jax.fields import FIELDS

ROOT = pathlib.Path(__file__).parent.parent
WORKDIR = flags.Flag('workdir', str, None, "the run's folder", required=True)
DRY_RUN = flags.Flag('dry_run', bool, False, 'only say what would run')


def parse(*words: str, **kwargs) -> tuple[Config, types.SimpleNamespace]:
  return flags.parse(words, **kwargs)


def test_every_field_is_a_flag_of_its_type():
  words = [f'--{path}={field.default}' for path, field in FIELDS.items()]
  config, options = parse(*words)
  assert config == Config()
  assert options.overrides == {path: f.default for path, f in FIELDS.items()}


@pytest.mark.parametrize(
  'path', [path for path, field in FIELDS.items() if field.choices]
)
def test_every_choice_is_taken_and_another_word_is_not(path):
  # The flags alone: a whole config may refuse some combinations.
  for choice in FIELDS[path].choices or ():
    values = flags.define()
    values(['program', f'--{path}={choice}'])
    assert values[path].value == choice
  with pytest.raises(ConfigError, match=f'--{path}=xyzzy is not one of'):
    parse(f'--{path}=xyzzy')


def test_preset_then_flagfile_then_flags(tmp_path):
  file = tmp_path / 'flags'
  file.write_text('# a comment\n--model.d_ff=100\n--model.heads=3\n')
  # The file loses to the flag although it comes last on the line.
  for words in (
    ['--preset=tiny', '--model.heads=5', f'--flagfile={file}'],
    ['--flagfile', str(file), '--model.heads', '5', '--preset=tiny'],
  ):
    config, options = parse(*words)
    assert config.model.layers == 4  # preset
    assert config.model.d_ff == 100  # file over preset
    assert config.model.heads == 5  # flag over file
    assert options.preset == 'tiny'


def test_a_flag_at_its_default_still_overrides_the_preset():
  config, _ = parse('--preset=tiny', '--model.layers=6')
  assert config.model.layers == 6


def test_base_is_what_preset_and_flags_are_laid_upon():
  def base(options):
    assert options.workdir == 'w'
    return flags.parse(['--preset=tiny'])[0]

  config, options = parse(
    '--workdir=w', '--decode.n_best=5', extra=[WORKDIR], base=base
  )
  assert config.decode.beam_size == 5
  assert options.overrides == {'decode.n_best': 5}


def test_what_another_strategy_reads_is_refused_when_given():
  beam = dict(beam_size=9, penalty='length', alpha=1.0, stop='count')
  for strategy, fields in (('greedy', beam), ('beam', dict(seed=3))):
    for name, value in fields.items():
      with pytest.raises(ConfigError, match=f'decode.{name}={value} is read'):
        parse(f'--decode.strategy={strategy}', f'--decode.{name}={value}')
  # What a preset or a run holds for its own strategy stands in no way.
  greedy, _ = parse('--preset=tiny', '--decode.strategy=greedy')
  assert greedy.decode.alpha == 1.0 != Config().decode.alpha
  parse('--decode.strategy=sample', '--decode.seed=3', '--decode.top_k=5')


def test_what_no_choice_reads_is_refused_when_given():
  """A number that changes nothing would be an ablation of nothing."""
  for words, reader in (
    (['--model.d_position=4'], '--model.position_join=concat_narrow'),
    (['--model.max_positions=300'], '--model.position=learned'),
    (
      ['--optim.warmup_steps=9', '--optim.schedule=constant'],
      '--optim.schedule=paper',
    ),
    (['--data.task_distance=3'], '--data.source=task:long_range'),
    (
      ['--data.task_noise=0.1', '--data.source=task:korean'],
      '--data.source=task:copy',
    ),
    (
      ['--data.task_train_size=9', '--data.source=files:here'],
      '--data.source=task:copy',
    ),
  ):
    with pytest.raises(
      ConfigError, match=f'{words[0][2:]} is read .* {reader}'
    ):
      parse(*words)
    # Of a study an arm may read it.
    parse(*words, base=lambda options: Config())
  parse('--model.max_positions=300', '--model.position_decoder=learned')
  parse('--optim.warmup_steps=9', '--optim.schedule=inverse_sqrt')
  parse('--data.task_train_size=9', '--data.source=task:korean')
  # What a preset holds stands in no way.
  parse('--preset=tiny', '--optim.schedule=constant')


def test_own_flags():
  _, options = parse('--workdir=w', '--dry_run', extra=[WORKDIR, DRY_RUN])
  assert (options.workdir, options.dry_run) == ('w', True)
  _, options = parse('--workdir=w', '--nodry_run', extra=[WORKDIR, DRY_RUN])
  assert options.dry_run is False


WRONG = {
  '--model.d_modl=3': r'no flag --model\.d_modl \(did you mean model\.d_model',
  '--model.d_model=x': '--model.d_model=x takes an integer',
  '--model.d_model=1.5': 'takes an integer',
  '--optim.epsilon=nan': 'takes a finite number',
  '--model.norm_order=pots': r'not one of post, pre \(did you mean post\?\)',
  '--model.d_model=3': 'model.d_model=3 must be even',
  '--dry_run=maybe': '--dry_run=maybe is neither true nor false',
  '--preset=tin': r'not one of .*tiny.* \(did you mean tiny\?\)',
  '--flagfile=/no/such': '/no/such',
  '--flagfile': 'needs the name of a file',
  '--model.layers': 'Missing value for flag --model.layers',
  'word': "stray word 'word'",
  '--': None,
}


@pytest.mark.parametrize('word', WRONG)
def test_one_line_and_exit_code_2(word, capsys):
  def main(config, options):
    del config, options
    return 0

  with pytest.raises(SystemExit) as exit:
    flags.run(main, extra=[DRY_RUN], arguments=[word])
  text = capsys.readouterr().err
  if WRONG[word] is None:
    assert exit.value.code == 0
    return
  assert exit.value.code == 2
  assert text.startswith('error: ') and text.count('\n') == 1
  with pytest.raises(ConfigError, match=WRONG[word]):
    parse(word, extra=[DRY_RUN])


def test_stray_word_between_flags():
  with pytest.raises(ConfigError, match=r"stray word 'model\.layers=2'"):
    parse('--model.heads=2', 'model.layers=2', '--model.d_ff=4')


def test_needed_flag():
  with pytest.raises(ConfigError, match='--workdir is needed: the run'):
    parse(extra=[WORKDIR])
  # `--workdir=$RUN`, and there is no RUN: not the current folder.
  with pytest.raises(ConfigError, match='--workdir is empty: the run'):
    parse('--workdir=', extra=[WORKDIR])


@pytest.mark.parametrize('result, code', [(None, None), (75, 75)])
def test_exit_code_of_main(result, code):
  with pytest.raises(SystemExit) as exit:
    flags.run(lambda config, options: result, arguments=[])
  assert exit.value.code == code


def test_config_error_inside_main_is_one_line(capsys):
  def main(config, options):
    del config, options
    raise ConfigError('no folder here\nsecond line')

  with pytest.raises(SystemExit) as exit:
    flags.run(main, arguments=[])
  assert exit.value.code == 2
  assert capsys.readouterr().err == 'error: no folder here second line\n'


def test_ctrl_c_inside_main_is_one_line(capsys):
  def main(config, options):
    raise KeyboardInterrupt

  with pytest.raises(SystemExit) as exit:
    flags.run(main, arguments=[])
  assert exit.value.code == 130
  assert capsys.readouterr().err == 'interrupted\n'


def test_stdout_is_utf8_whatever_the_locale(monkeypatch):
  written = io.BytesIO()
  monkeypatch.setattr('sys.stdout', io.TextIOWrapper(written, 'latin-1'))
  with pytest.raises(SystemExit):
    flags.run(lambda config, options: print('한', flush=True), arguments=[])
  assert written.getvalue() == '한\n'.encode()


def test_help_and_preset_list_need_nothing_else(capsys):
  main = lambda config, options: 1  # noqa: E731
  for word in ('--help', '--preset=list'):
    with pytest.raises(SystemExit) as exit:
      flags.run(main, extra=[WORKDIR], arguments=[word])
    assert exit.value.code == 0
  text = capsys.readouterr().out
  for path, field in FIELDS.items():
    assert f'--{path}=' in text and field.help in text
  assert '--model.norm_order=post|pre' in text
  assert 'tiny       Multi30k' in text


def test_refused_before_jax_is_imported(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(
    'import sys\n'
    'from transformer_jax import flags\n'
    'def main(config, options):\n'
    "  print('jax' in sys.modules, config.model.layers)\n"
    'flags.run(main)\n'
  )
  command = [sys.executable, str(program), '--preset=test']
  run = functools.partial(
    subprocess.run,
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  done = run(command)
  assert done.stdout == 'False 1\n'
  done = run([*command, 'x'])
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr == "error: stray word 'x': flags look like --NAME=VALUE\n"
