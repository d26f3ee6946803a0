"""launch.sweep: shards that cover a study, wherever the workers are."""

import shlex

import pytest
import yaml

from launch import local, sweep

STUDY = ['--study=two_heads', '--workdir=runs/it']


def printed(capsys, *words):
  assert sweep.main([*words, *STUDY, '--seeds=4', '--dry_run']) == 0
  return capsys.readouterr().out


def test_local_workers_cover_the_study(capsys):
  lines = printed(capsys, '--on=local', '--workers=3').splitlines()
  assert [shlex.split(line)[-2:] for line in lines] == [
    [f'--shard={i}/3', '--seeds=4'] for i in range(3)
  ]
  assert lines[0].startswith('python -m experiments.ablate --study=two_heads ')


def test_slurm_takes_an_array(capsys):
  words = shlex.split(printed(capsys, '--on=slurm', '--workers=8'))
  assert words[:2] == ['sbatch', '--array=0-7']
  assert words[2].endswith('launch/slurm/study.sbatch')
  assert words[3:] == [*STUDY, '--seeds=4']


def test_pods_are_an_indexed_job(capsys):
  text = printed(
    capsys, '--on=kubernetes', '--workers=5', '--image=i:1', '--claim=c'
  )
  job = yaml.safe_load(text)
  assert job['metadata']['name'] == 'two-heads'
  spec = job['spec']
  assert spec['completions'] == spec['parallelism'] == 5
  worker = spec['template']['spec']['containers'][0]
  assert worker['image'] == 'i:1'
  assert worker['resources']['limits'] == {'nvidia.com/gpu': 1}
  assert worker['args'] == [
    'experiments.ablate',
    *STUDY,
    '--shard=$(JOB_COMPLETION_INDEX)/5',
    '--seeds=4',
  ]


def test_wrong_words_are_refused():
  for words in (
    ['--on=local', '--workers=0', *STUDY],
    ['--on=moon', '--workers=1', *STUDY],
    ['--on=kubernetes', '--workers=1', *STUDY],
    ['--on=local', *STUDY],
    ['--on=local', '--workers=1', '--retries=-1', *STUDY],
  ):
    with pytest.raises(SystemExit) as left:
      sweep.parse(words)
    assert left.value.code == 2


@pytest.mark.parametrize(
  ('place', 'flag'),
  [
    ('slurm', '--retries=9'),
    ('slurm', '--platform=cpu'),
    ('slurm', '--image=i'),
    ('local', '--gpus=1'),
    ('kubernetes', '--retries=3'),
  ],
)
def test_what_a_place_does_not_read_is_refused(place, flag, capsys):
  with pytest.raises(SystemExit) as left:
    sweep.parse([f'--on={place}', '--workers=1', flag, *STUDY])
  assert left.value.code == 2
  told = f'--on={place} does not read {flag.partition("=")[0]}\n'
  assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize(
  ('words', 'program'),
  [
    (['--on=slurm'], 'sbatch'),
    (['--on=kubernetes', '--image=i', '--claim=c'], 'kubectl'),
  ],
)
def test_a_machine_without_the_cluster_is_told_so(
  words, program, tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('PATH', str(tmp_path))
  assert sweep.main([*words, '--workers=1', *STUDY]) == 2
  told = capsys.readouterr().err
  assert told.startswith(f'error: {program} is not found')
  assert told.count('\n') == 1


def test_a_workdir_that_takes_no_logs_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(local.Stop, 'listen', lambda self: None)
  (tmp_path / 'file').touch()
  words = ['--on=local', '--workers=1', '--study=s']
  assert sweep.main([*words, f'--workdir={tmp_path}/file']) == 2


def test_gpus_that_may_not_be_seen_are_refused(tmp_path, monkeypatch):
  # In one line of the launcher's, not by a traceback in each worker's thread.
  monkeypatch.setattr(local.Stop, 'listen', lambda self: None)
  monkeypatch.setattr(local, 'run_once', lambda *_, **__: 0)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
  words = ['--on=local', '--workers=2', '--study=s', '--platform=cuda']
  assert sweep.main([*words, f'--workdir={tmp_path}/run']) == 2
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('ends', 'code'), [([0, 0], 0), ([0, 2], 2), ([1, 2], 2), ([1, 75], 75)]
)
def test_local_workers_are_run_and_their_worst_end_told(
  ends, code, tmp_path, monkeypatch
):
  monkeypatch.setattr(local.Stop, 'listen', lambda self: None)
  seen = []

  def run_once(commands, stop, *, grace, shown):
    number, count = commands[0].words[-1].split('=')[1].split('/')
    seen.append((int(number), int(count), commands[0].log.name))
    return ends[int(number)]

  monkeypatch.setattr(local, 'run_once', run_once)
  options = ['--on=local', '--workers=2', '--retries=0', '--study=s']
  assert sweep.main([*options, f'--workdir={tmp_path}']) == code
  assert sorted(seen) == [(0, 2, 'worker0.log'), (1, 2, 'worker1.log')]
