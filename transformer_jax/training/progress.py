"""What a person sees while a run goes on: one live line, and TensorBoard."""

import contextlib
import pathlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from transformer_jax.config import BLEU_NAMES

# (step, split, {name: number}), and texts such as the signature of a score
Rows = Sequence[tuple[int, str, Mapping[str, float | str]]]

# Of a validation, or of a step that was left out.
SHOWN = ('loss', 'perplexity', 'accuracy', *BLEU_NAMES.values(), 'skipped')
LIVE_EVERY, LOG_EVERY = 0.5, 30.0  # seconds between lines
# Speed is taken over the last calls: the first ones compile, and those before
# a change of the machine's load say nothing any more.
FEWEST_CALLS, MOST_CALLS = 3, 64


class _Mark(NamedTuple):
  """What was done when the numbers of a call became known."""

  seconds: float
  step: int
  tokens: float


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
  """tensorboardX imports torch where there is one, and runs without it."""
  if 'torch' in sys.modules:
    yield
    return
  sys.modules['torch'] = cast(Any, None)  # An import of it now raises.
  try:
    yield
  finally:
    del sys.modules['torch']


class Events:
  """A TensorBoard event file, written by the caller's own thread.

  tensorboardX's own writer has a thread, which dies on a full disk; training
  would then wait for it for ever. Here the OSError is the caller's.
  """

  def __init__(self, folder: pathlib.Path, *, step: int):
    """A new file in `folder`; events from `step` on in older ones are void."""
    with _without_torch():
      from tensorboardX import event_file_writer
      from tensorboardX.proto import event_pb2, summary_pb2

    # Generated at import: a type checker does not know what is inside.
    event: Any = event_pb2
    summary: Any = summary_pb2
    self._event, self._summary = event.Event, summary.Summary
    folder.mkdir(parents=True, exist_ok=True)
    self._file = event_file_writer.EventsWriter(str(folder / 'events'))
    start = event.SessionLog(status=event.SessionLog.START)
    self._write(step, session_log=start)

  def scalar(self, name: str, value: float, step: int) -> None:
    one = self._summary.Value(tag=name, simple_value=value)
    self._write(step, summary=self._summary(value=[one]))

  def flush(self) -> None:
    self._file.flush()

  def close(self) -> None:
    self._file.close()

  def _write(self, step: int, **content: Any) -> None:
    event = self._event(wall_time=time.time(), step=step, **content)
    self._file.write_event(event)


class Progress:
  """A line on stderr, rewritten in place on a terminal, and event files."""

  def __init__(self, workdir: str, steps: int, *, silent: bool = False):
    """Of a run of `steps`; silent in the processes that leave it to another."""
    self._silent = silent
    self._folder = pathlib.Path(workdir).expanduser() / 'events'
    self._steps = steps
    self._events: Events | None = None
    self._live = sys.stderr.isatty()
    self._loss: float | None = None
    self._shown = 0.0
    self._open_line = False
    self._step = 0
    self._tokens = 0.0
    self._marks: deque[_Mark] = deque(maxlen=MOST_CALLS)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    self._end_line()
    if self._events is not None:
      # On a full disk the error that ended the run says more than this one.
      with contextlib.suppress(*([OSError] if kind else [])):
        self._events.close()

  def say(self, text: str) -> None:
    """A line that stays."""
    if self._silent:
      return
    self._end_line()
    print(text, file=sys.stderr, flush=True)

  def step(self, step: int, loss: float) -> None:
    """One more step is known; its loss joins a running mean."""
    mean = loss if self._loss is None else self._loss
    self._loss = 0.98 * mean + 0.02 * loss
    self._step = step

  def show(self, rows: Rows, tokens: float) -> None:
    """Rows of the metrics file, and the target tokens trained on since."""
    if self._silent:
      return
    now = time.monotonic()
    if tokens:
      self._tokens += tokens
      self._marks.append(_Mark(now, self._step, self._tokens))
    for step, split, values in rows:
      numbers = {k: v for k, v in values.items() if not isinstance(v, str)}
      for name, value in numbers.items():
        self._scalar(f'{split}/{name}', value, step)
      if split != 'train':
        self.say(
          f'step {step} {split}: '
          + ', '.join(
            f'{name} {value:.4g}'
            for name, value in numbers.items()
            if name in SHOWN
          )
        )
    if now - self._shown > (LIVE_EVERY if self._live else LOG_EVERY):
      self._line(now)
    if rows and self._events is not None:
      self._events.flush()

  def _scalar(self, name: str, value: float, step: int) -> None:
    if self._events is None:
      self._events = Events(self._folder, step=step)
    self._events.scalar(name, value, step)

  def _speed(self) -> tuple[float, float] | None:
    """Target tokens and steps a second; None before there are enough calls."""
    if len(self._marks) < FEWEST_CALLS:
      return None
    first, last = self._marks[0], self._marks[-1]
    seconds = max(last.seconds - first.seconds, 1e-9)
    return (
      (last.tokens - first.tokens) / seconds,
      (last.step - first.step) / seconds,
    )

  def _line(self, now: float) -> None:
    if self._loss is None:
      return
    rate, left = '?', '?'
    speed = self._speed()
    if speed is not None:
      rate = f'{speed[0]:,.0f}'
      left = _duration((self._steps - self._step) / speed[1])
      self._scalar('train/tokens_per_s', speed[0], self._step)
    text = (
      f'step {self._step}/{self._steps}  loss {self._loss:.3f}  '
      f'{rate} target tokens/s  {left} left'
    )
    self._shown = now
    if self._live:
      print('\r' + text.ljust(78)[:78], end='', file=sys.stderr, flush=True)
      self._open_line = True
    else:
      print(text, file=sys.stderr, flush=True)

  def _end_line(self) -> None:
    if self._open_line:
      print(file=sys.stderr)
      self._open_line = False


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
