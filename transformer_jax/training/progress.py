"""What a person sees while a run goes on: one live line, and TensorBoard."""

import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any


class Progress:
  """A line on stderr, rewritten in place on a terminal, and event files."""

  def __init__(self, workdir: str, steps: int):
    self._folder = pathlib.Path(workdir).expanduser() / 'events'
    self._steps = steps
    self._writer: Any = None
    self._live = sys.stderr.isatty()
    self._loss: float | None = None
    self._shown = 0.0
    self._open_line = False
    self._step = 0
    self._first: tuple[float, int] | None = None
    self._tokens = 0.0
    self._since = time.monotonic()
    self._rate = 0.0

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_: object) -> None:
    self._end_line()
    if self._writer is not None:
      self._writer.close()

  def say(self, text: str) -> None:
    """A line that stays."""
    self._end_line()
    print(text, file=sys.stderr, flush=True)

  def step(self, step: int, loss: float) -> None:
    """One more step is known; its loss joins a running mean."""
    if self._first is None:
      self._first = (time.monotonic(), step)
    mean = loss if self._loss is None else self._loss
    self._loss = 0.98 * mean + 0.02 * loss
    self._step = step

  def show(
    self, rows: list[tuple[int, str, Mapping[str, float]]], tokens: float
  ) -> None:
    """Rows of the metrics file, and the target tokens that they took."""
    self._tokens += tokens
    for step, split, values in rows:
      for name, value in values.items():
        self._events().add_scalar(f'{split}/{name}', value, step)
      if split != 'train':
        self.say(
          f'step {step} {split}: '
          + ', '.join(
            f'{name} {value:.4g}'
            for name, value in values.items()
            if name in ('loss', 'perplexity', 'accuracy', 'bleu')
          )
        )
    now = time.monotonic()
    if now - self._shown > (0.5 if self._live else 30.0):
      self._line(now)

  def _events(self) -> Any:
    if self._writer is None:
      from tensorboardX import SummaryWriter

      self._writer = SummaryWriter(str(self._folder), write_to_disk=True)
    return self._writer

  def _line(self, now: float) -> None:
    if self._loss is None or self._first is None:
      return
    if now > self._since and self._tokens:
      self._rate = self._tokens / (now - self._since)
      self._tokens, self._since = 0.0, now
      self._events().add_scalar('train/tokens_per_s', self._rate, self._step)
    began, first = self._first
    done = self._step - first
    left = '?'
    if done:
      seconds = (now - began) / done * (self._steps - self._step)
      left = _duration(seconds)
    text = (
      f'step {self._step}/{self._steps}  loss {self._loss:.3f}  '
      f'{self._rate:,.0f} target tokens/s  {left} left'
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
