"""What Orbax says beside the error that it raises: kept from the screen.

A full disk is one line. Orbax logs three pages for an error that it raises as
well, and closes its event loop at the first write that fails; each of the
other writes, which know nothing of it, then answers with a traceback.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any


class _RepeatedTracebacks(logging.Filter):
  """Drops the log of an error that is raised as well."""

  def filter(self, record: logging.LogRecord) -> bool:
    return '_SignalingThread.run() raised' not in str(record.msg)


class _LateAnswers:
  """A sys.unraisablehook that drops answers to a closed loop."""

  def __init__(self, others: Callable[[Any], Any]):
    self._others = others

  def __call__(self, unraisable: Any) -> None:
    error = unraisable.exc_value
    late = isinstance(error, RuntimeError) and unraisable.object is None
    if not (late and str(error) == 'Event loop is closed'):
      self._others(unraisable)


def keep_out() -> None:
  """From now on; once is enough, and more than once is the same."""
  absl_logger = logging.getLogger('absl')
  if not any(isinstance(x, _RepeatedTracebacks) for x in absl_logger.filters):
    absl_logger.addFilter(_RepeatedTracebacks())
  if not isinstance(sys.unraisablehook, _LateAnswers):
    sys.unraisablehook = _LateAnswers(sys.unraisablehook)
