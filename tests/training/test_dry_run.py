"""--dry_run: what is said, what is left alone, what is refused."""

import pytest

from experiments import train as program
from transformer_jax import flags
from transformer_jax.training import fit, loop


@pytest.fixture
def call(config, capsys):
  """(workdir, *flags) -> exit code, stdout and stderr of the program."""

  def run(workdir, *words):
    with pytest.raises(SystemExit) as left:
      flags.run(
        program.main,
        extra=program.EXTRA,
        arguments=[
          '--preset=test',
          f'--data.cache_dir={config.data.cache_dir}',
          f'--workdir={workdir}',
          *words,
        ],
      )
    said = capsys.readouterr()
    return left.value.code, said.out, said.err

  return run


def rows(out):
  return dict(line.split('  ', 1) for line in out.splitlines())


def contents(folder):
  return {
    path: path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


def test_a_new_run_is_described_and_not_begun(call, tmp_path):
  words = ['--dry_run', '--train.steps=40', '--data.task_train_size=200']
  code, out, err = call(tmp_path / 'run', *words)
  assert code == 0, err
  assert not (tmp_path / 'run').exists()
  found = {name: value.strip() for name, value in rows(out).items()}
  assert found['folder'] == f'{tmp_path}/run, from initial values'
  assert 'train.steps=40' in found['changed'].split()
  assert 'model.d_model=16' in found['changed'].split()
  assert 'model.score' not in found['changed']
  assert found['train'] == '200 pairs' and found['test'] == '32 pairs'
  assert found['vocabulary'].endswith(' pieces')
  assert found['steps'].startswith('40, ')
  assert ' an epoch: ' in found['steps']
  assert 'rows x source + target' in found['batches']
  assert int(found['parameters'].replace(',', '')) > 1000
  assert ' MiB of ' in found['peak memory']
  assert '%), on each of 1 x cpu' in found['peak memory']
  assert ' GFLOP a step of ' in found['products']


@pytest.mark.slow
def test_a_run_on_a_mesh_is_described_as_one(call, tmp_path):
  words = ['--dry_run', '--mesh.data=2', '--mesh.fsdp=4']
  words += ['--optim.accumulate=2']
  code, out, err = call(tmp_path / 'run', *words)
  assert code == 0, err
  assert 'on each of 8 x cpu' in rows(out)['peak memory']
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_run_that_is_there_stays_as_it_is(call, config, tmp_path):
  folder = tmp_path / 'run'
  assert loop.train(config, workdir=str(folder)) == 0
  before = contents(folder)
  code, out, _ = call(folder, '--dry_run', '--train.steps=48')
  assert code == 0 and f'{folder}, goes on from step 24' in out
  place = folder / 'checkpoints' / '24'
  new = tmp_path / 'new'
  code, out, _ = call(new, '--dry_run', f'--init_from={folder}')
  assert code == 0 and f'{new}, from the parameters of {place}' in out
  code, out, err = call(folder, '--dry_run', '--optim.beta1=0.5')
  assert (code, out) == (2, '') and 'optim.beta1 0.9 -> 0.5' in err
  assert contents(folder) == before and not new.exists()


def test_what_does_not_fit_is_refused(call, tmp_path, monkeypatch):
  monkeypatch.setattr(fit, 'device_memory', lambda device: 1000.0)
  code, out, err = call(tmp_path / 'run', '--dry_run')
  assert (code, out) == (2, '') and 'a step needs' in err
  assert not (tmp_path / 'run').exists()
