"""The line a person sees, and the event files."""

import os
import pathlib
import struct
import subprocess
import sys
import types
from typing import Any

import pytest

from transformer_jax.training import progress
from transformer_jax.training.progress import Progress


class Clock:
  """A clock that is set by hand."""

  def __init__(self):
    self.now = 1000.0

  def monotonic(self):
    return self.now

  time = monotonic


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress, 'time', clock)
  return clock


def calls(shown, clock, number, *, steps=2, seconds=40.0, loss=2.5):
  for _ in range(number):
    clock.now += seconds
    for _ in range(steps):
      shown.step(shown._step + 1, loss)
    shown.show([], 800.0)


def test_loss_speed_and_time_left_after_a_few_calls(clock, tmp_path, capsys):
  with Progress(str(tmp_path), 1000) as shown:
    clock.now += 500  # To compile is not to train.
    calls(shown, clock, 4)
  lines = capsys.readouterr().err.splitlines()
  # Two steps and 800 tokens in 40 s; 992 x 20 s = 5:30:40.
  assert lines == [
    'step 2/1000  loss 2.500  ? target tokens/s  ? left',
    'step 4/1000  loss 2.500  ? target tokens/s  ? left',
    'step 6/1000  loss 2.500  20 target tokens/s  5:31:20 left',
    'step 8/1000  loss 2.500  20 target tokens/s  5:30:40 left',
  ]


def test_the_speed_is_that_of_the_last_calls(clock, tmp_path, capsys):
  with Progress(str(tmp_path), 10_000) as shown:
    calls(shown, clock, 5, seconds=4000.0)
    calls(shown, clock, progress.MOST_CALLS)
  assert '20 target tokens/s' in capsys.readouterr().err.splitlines()[-1]


def test_a_line_is_not_written_too_often(clock, tmp_path, capsys):
  with Progress(str(tmp_path), 1000) as shown:
    calls(shown, clock, 32, seconds=1.0)
  assert capsys.readouterr().err.count('\n') == 2


def test_on_a_terminal_the_line_is_rewritten(
  clock, tmp_path, capsys, monkeypatch
):
  terminal = types.SimpleNamespace(isatty=lambda: True)
  with monkeypatch.context() as patch:
    patch.setattr('sys.stderr', terminal)
    shown = Progress(str(tmp_path), 1000)
  with shown:
    calls(shown, clock, 3)
    shown.say('something else')
  out = capsys.readouterr().err
  assert out.count('\r') == 3
  assert out.splitlines()[-1] == 'something else'
  assert out.count('\n') == 2


def events(path):
  """Events of a file: length, its sum, the bytes, their sum; see TFRecord."""
  from tensorboardX.proto import event_pb2

  proto: Any = event_pb2
  data, at = path.read_bytes(), 0
  while at < len(data):
    (length,) = struct.unpack_from('<Q', data, at)
    event = proto.Event()
    event.ParseFromString(data[at + 12 : at + 12 + length])
    yield event
    at += 16 + length


def test_rows_become_events_and_validations_a_line(clock, tmp_path, capsys):
  with Progress(str(tmp_path), 1000) as shown:
    shown.show([(4, 'train', {'loss': 1.5})], 10.0)
    values = {'loss': 2.5, 'tokens': 9.0, 'bleu_signature': 'how'}
    shown.show([(8, 'validation', values)], 0.0)
  assert capsys.readouterr().err == 'step 8 validation: loss 2.5\n'
  (path,) = (tmp_path / 'events').iterdir()
  found = list(events(path))
  # What a killed run wrote from step 4 on is void.
  assert found[1].step == 4 and found[1].session_log.status == 1
  scalars = [
    (event.step, value.tag, value.simple_value)
    for event in found
    for value in event.summary.value
  ]
  assert scalars == [
    (4, 'train/loss', 1.5),
    (8, 'validation/loss', 2.5),
    (8, 'validation/tokens', 9.0),
  ]


def test_events_that_cannot_be_written_are_an_error(tmp_path):
  (tmp_path / 'events').write_text('a file in the way')
  with pytest.raises(OSError), Progress(str(tmp_path), 1000) as shown:
    shown.show([(4, 'train', {'loss': 1.5})], 10.0)


def test_events_do_not_wait_for_torch(tmp_path):
  package = tmp_path / 'torch'
  package.mkdir()
  (package / '__init__.py').write_text('raise SystemExit("torch was loaded")')
  root = pathlib.Path(__file__).parent.parent.parent
  code = f"""
import pathlib, sys
from transformer_jax.training.progress import Events
Events(pathlib.Path({str(tmp_path)!r}), step=0).close()
assert "torch" not in sys.modules
"""
  path = os.pathsep.join([str(tmp_path), str(root)])
  subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': path},
    check=True,
  )
