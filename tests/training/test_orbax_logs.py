"""Only what is known to be said twice is kept from the screen."""

import asyncio
import logging
import sys
import types
from typing import Any

import pytest

from transformer_jax.training import orbax_logs


@pytest.fixture
def heard(monkeypatch):
  """What reaches the hook that was there before."""
  heard = []
  monkeypatch.setattr(sys, 'unraisablehook', heard.append)
  orbax_logs.keep_out()
  orbax_logs.keep_out()
  return heard


def closed_loop_error() -> RuntimeError:
  loop = asyncio.new_event_loop()
  loop.close()
  with pytest.raises(RuntimeError) as found:
    loop.call_soon_threadsafe(print)
  return found.value


def test_late_answers_are_dropped_and_others_are_not(heard):
  def unraisable(error, about=None) -> Any:
    return types.SimpleNamespace(exc_value=error, object=about)

  sys.unraisablehook(unraisable(closed_loop_error()))
  assert heard == []
  others = [
    unraisable(RuntimeError('something else')),
    unraisable(closed_loop_error(), about=print),
    unraisable(OSError('Event loop is closed')),
  ]
  for other in others:
    sys.unraisablehook(other)
  assert heard == others


def test_repeated_tracebacks_are_dropped_and_others_are_not(heard, caplog):
  logger = logging.getLogger('absl')
  logger.error('_SignalingThread.run() raised: pages')
  logger.error('something else')
  assert caplog.messages == ['something else']
