"""Signals that ask to stop, and the watchdog."""

import os
import signal
import threading

import pytest

from transformer_jax.training import guard


@pytest.mark.parametrize('number', [*guard.SIGNALS, signal.SIGINT])
def test_a_signal_is_noted_and_the_next_one_acts(number, capfd):
  seen = []
  before = signal.signal(number, lambda *_: seen.append('before'))
  try:
    with guard.stop_signal() as stop:
      assert stop() == 0
      os.kill(os.getpid(), number)
      assert stop() == number and seen == []
      os.kill(os.getpid(), number)
      assert seen == ['before']
    assert capfd.readouterr().err == 'signal: saving, then leaving\n'
  finally:
    signal.signal(number, before)


def test_one_of_another_kind_is_no_second_one(capfd):
  """A Ctrl-C reaches a helper, and so does what its starter tells it then."""
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = [signal.signal(n, lambda *_: pytest.fail('ended')) for n in numbers]
  try:
    with guard.stop_signal() as stop:
      for number in numbers:
        os.kill(os.getpid(), number)
      assert stop() == signal.SIGINT
    assert capfd.readouterr().err == 'signal: saving, then leaving\n'
  finally:
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


def test_a_job_in_the_background_is_not_meant_by_a_ctrl_c():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with guard.stop_signal() as stop:
      os.kill(os.getpid(), signal.SIGINT)
      assert stop() == 0
  finally:
    signal.signal(signal.SIGINT, before)


def test_programs_with_nothing_to_save_leave_with_75(capfd):
  with pytest.raises(SystemExit) as left, guard.leave_on_signal():
    os.kill(os.getpid(), signal.SIGTERM)
  assert left.value.code == 75
  assert 'run the same command again' in capfd.readouterr().err
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_outside_the_main_thread_signals_are_left_alone():
  asked = []

  def other():
    with guard.stop_signal() as stop:
      asked.append(stop())

  thread = threading.Thread(target=other)
  thread.start()
  thread.join()
  assert asked == [0]


def watched(monkeypatch, seconds, beats):
  """Exit codes of a watchdog whose seconds pass as quickly as they are read.

  Args:
    seconds: of silence allowed.
    beats: a sign of life after each so many seconds; 0: never.
  """
  codes, left = [], threading.Event()
  dog = guard.Watchdog(
    seconds, leave=lambda code: (codes.append(code), left.set())
  )
  passed = [0]

  def wait(_):
    passed[0] += 1
    if beats and passed[0] % beats == 0:
      dog.beat()
    return passed[0] > 1000 or left.is_set()

  monkeypatch.setattr(dog._ended, 'wait', wait)
  with dog:
    dog._thread.join(60)
  return codes


def test_silence_ends_the_process_with_its_stacks(monkeypatch, capfd):
  assert watched(monkeypatch, 100, 0) == [guard.STUCK]
  text = capfd.readouterr().err
  assert 'nothing was done for 100 s' in text
  assert 'MainThread' in text or 'Current thread' in text
  assert 'test_guard.py' in text


def test_signs_of_life_keep_it_quiet(monkeypatch, capfd):
  assert watched(monkeypatch, 100, 90) == []
  assert capfd.readouterr().err == ''


def of_the_name(name):
  return [each for each in threading.enumerate() if each.name == name]


def test_what_repeats_ends_by_itself_or_with_its_block():
  calls = []

  def act():
    calls.append(len(calls))
    return len(calls) == 3

  with guard.repeating(act, seconds=0.001, name='thrice'):
    for thread in of_the_name('thrice'):
      thread.join(60)
    assert calls == [0, 1, 2]
  with guard.repeating(lambda: None, seconds=0.001, name='endless'):
    assert of_the_name('endless')
  assert not of_the_name('endless')


def test_no_time_limit_is_no_thread():
  with guard.Watchdog(0) as dog:
    assert not dog._thread.is_alive()
    assert dog.hears(lambda: 7)() == 7
