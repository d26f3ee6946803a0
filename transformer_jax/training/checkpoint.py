"""Checkpoints: save, verify, restore, keep or remove.

A step is a folder of the checkpoints' folder:

    STEP/arrays/        written by `arrays`, one for each leaf by its path
    STEP/config.json    the config of the run, so that a step stands alone
    STEP/manifest.json  the step's metric and the sha256 of every other file

It is built as `STEP.saving` and renamed when its manifest is on disk, so a
kill at any moment leaves whole steps only. Orbax and TensorStore load an array
with flipped bits without a word; the manifest is what notices.
"""

import concurrent.futures
import contextlib
import math
import os
import pathlib
import re
import shutil
import sys
from typing import Any

from transformer_jax.config import ConfigError
from transformer_jax.training import arrays, hosts, manifest

SAVING = '.saving'
REMOVED = '.removed'
BAD = '.bad'
ARRAYS = 'arrays'
CONFIG = 'config.json'


class CheckpointError(ConfigError):
  """A checkpoint that cannot be written or read; one line with the reason."""


def _reason(error: Exception) -> str:
  """The few words of an error that a person needs."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  # TensorStore hides the operating system's number in a long text.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  if code is not None:
    return os.strerror(int(code[1]))
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


class Checkpoints:
  """The steps of one run's `checkpoints` folder.

  Opening it changes nothing on disk, so a run can be read while it trains.
  Leftovers of killed saves are removed by the first `save`, or by `tidy`.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    keep_latest: int = 1,
    keep_best: int = 0,
    best_metric_mode: str = 'min',
    keep_every: int = 0,
    config: str = '{}',
  ) -> None:
    """Looks into a folder; it need not exist yet.

    Args:
      folder: of all steps.
      keep_latest: newest steps kept, at least 1.
      keep_best: steps of the best metric kept beside them.
      best_metric_mode: 'min' or 'max', which metric is the best.
      keep_every: steps that are a multiple of it are kept as well; 0: none.
      config: JSON text stored with each step that is saved.
    """
    if best_metric_mode not in ('min', 'max'):
      raise ConfigError(
        f'best_metric_mode={best_metric_mode} is not min or max'
      )
    self.folder = pathlib.Path(folder).absolute()
    self._keep_latest = keep_latest
    self._keep_best = keep_best
    self._keep_every = keep_every
    self._sign = 1 if best_metric_mode == 'min' else -1
    self._config = config
    self._worker = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
    self._pending: concurrent.futures.Future[None] | None = None
    self._swept = False
    self._verified: set[int] = set()

  def save(self, step: int, state: Any, *, metric: float | None) -> None:
    """Starts to save `state` as `step`; returns when it is copied to the host.

    The rest happens in the background, one save at a time. A whole step that
    is there already stays as it is: a step is a function of the config.

    Args:
      step: number of updates made.
      state: pytree of arrays; it may be donated after this call.
      metric: what `best` goes by; None or NaN for a step without one.

    Raises:
      CheckpointError: this save, or the one before it, could not be written.
        Older steps stay whole.
    """
    self.wait()
    saving = self.folder / f'{step}{SAVING}'
    try:
      if hosts.first():
        self._sweep()
      if hosts.agreed(step in self.steps()):
        return
      if hosts.first():
        if (self.folder / str(step)).exists():
          self._set_aside(step, manifest.damage(self.folder / str(step)))
        saving.mkdir(parents=True)
      hosts.agreed(0)  # It is there before anyone writes into it.
      response = arrays.save_async(saving / ARRAYS, state)
    except (OSError, ValueError) as error:
      shutil.rmtree(saving, ignore_errors=True)
      raise self._failure(step, error) from error
    self._pending = self._worker.submit(self._finish, step, metric, response)

  def trial(self, state: Any) -> None:
    """Saves a little and asks for the room of a whole step, before any work.

    A folder that is read-only or full is found now and not after hours.

    Args:
      state: what will be saved; of it the smallest array is.

    Raises:
      CheckpointError: no step could be saved here.
    """
    leaves = arrays.by_path(state)
    least = min(leaves, key=lambda name: leaves[name].nbytes)
    bytes_needed = sum(leaf.nbytes for leaf in leaves.values())
    first = hosts.first()
    place = self.folder / f'trial{SAVING}'
    try:
      if first:
        self._sweep()
        place.mkdir(parents=True)
      hosts.agreed(0)
      arrays.save(place / ARRAYS, {least: leaves[least]})
      if first:
        manifest.write(place, step=0, metric=None)
        free = shutil.disk_usage(self.folder).free
        if free < bytes_needed:
          raise CheckpointError(
            f'{self.folder} has {free / 1e6:,.0f} MB left, and a checkpoint '
            f'takes {bytes_needed / 1e6:,.0f} MB: make room'
          )
    except CheckpointError:
      raise
    except (OSError, ValueError) as error:
      raise self._failure('of nothing, a trial,', error) from error
    finally:
      if first:
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
          self.folder.rmdir()  # Only if it is empty.

  def tidy(self) -> None:
    """Removes what a kill after a whole save left, as the next save would."""
    if hosts.first():
      self._sweep()
      self._retain()

  def score(self, step: int, metric: float) -> None:
    """Gives a whole step the metric that it was saved without.

    Raises:
      CheckpointError: it could not be written.
    """
    self.wait()
    try:
      if hosts.first():
        manifest.score(self._path(step), metric)
        self._retain()
    except (OSError, ValueError) as error:
      raise self._failure(step, error) from error

  def wait(self) -> None:
    """Returns when the last save is on disk; call it before a program ends.

    Raises:
      CheckpointError: it could not be written.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def steps(self) -> list[int]:
    """Complete steps, oldest first. They are verified when they are read."""
    return [s for s in self._folders() if self._path(s, manifest.NAME).exists()]

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The step of the best metric, of equals the oldest; None without any."""
    return next(iter(self._by_metric()), None)

  def begun(self) -> bool:
    """Whether a step was ever saved here, be it bad by now."""
    return bool(self._folders() or self._aside())

  def good(self, count: int) -> list[int]:
    """The newest `count` steps that verify, newest first; fewer if need be.

    A step that does not verify is named on stderr and set aside as `STEP.bad`.
    """
    found: list[int] = []
    for step in reversed(self._folders()):
      if len(found) == count:
        break
      reason = (
        '' if step in self._verified else manifest.damage(self._path(step))
      )
      if not reason:
        self._verified.add(step)
        found.append(step)
      elif self._path(step).exists():  # Else retention was quicker.
        self._set_aside(step, reason)
    return found

  def restore(self, abstract_state: Any, step: int | None = None) -> Any:
    """The state of a step, bit for bit, or of the newest good one.

    Args:
      abstract_state: tree of arrays or `jax.ShapeDtypeStruct`; their sharding
        says where the arrays go, the first device if there is none.
      step: the one to read; by default the newest that verifies.

    Raises:
      CheckpointError: there is no good step, or `step` is damaged.
      ConfigError: the stored tree differs; names what differs.
    """
    if step is None:
      first = hosts.first()
      step = hosts.agreed(next(iter(self.good(1)), -1) if first else -1)
      if step < 0:
        aside = ', '.join(self._aside()) or 'nothing'
        raise CheckpointError(
          f'no good checkpoint in {self.folder}, only {aside}: put a whole '
          'copy of a step there, or begin again in another folder'
        )
    else:
      self._verify(step)
    place, where = self._path(step, ARRAYS), str(self._path(step))
    wanted = arrays.by_path(abstract_state)
    arrays.refuse_difference(arrays.stored(place), wanted, where)
    return arrays.load(place, abstract_state)

  def restore_parts(self, abstract: dict[str, Any], step: int) -> Any:
    """Some fields of the state of one step, as arrays of the host.

    Reads the leaves under these fields and no other, so the optimizer's
    moments cost nothing.

    Args:
      abstract: {field of the state: tree of shapes and dtypes}.
      step: of the checkpoint.

    Raises:
      CheckpointError: the step is damaged or not there.
      ConfigError: the stored arrays differ; names what differs.
    """
    self._verify(step)
    place, where = self._path(step, ARRAYS), str(self._path(step))
    stored = arrays.stored(place)
    fields = tuple(f'{field}.' for field in abstract)
    own = {name: stored[name] for name in stored if name.startswith(fields)}
    arrays.refuse_difference(own, arrays.by_path(abstract), where)
    return arrays.load_part(place, abstract, stored)

  def config(self, step: int) -> str:
    """The JSON text of the config that was saved with a step."""
    self._verify(step)
    return self._path(step, CONFIG).read_text()

  def metric(self, step: int) -> float | None:
    """The metric that a step was saved with."""
    try:
      return manifest.read(self._path(step))['metric']
    except (OSError, ValueError):
      return None

  def _path(self, step: int, name: str = '') -> pathlib.Path:
    return self.folder / str(step) / name

  def _folders(self) -> list[int]:
    if not self.folder.is_dir():
      return []
    names = [path.name for path in self.folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())

  def _aside(self) -> list[str]:
    """Names of the folders that were set aside."""
    paths = self.folder.iterdir() if self.folder.is_dir() else ()
    return sorted(path.name for path in paths if BAD in path.suffix)

  def _by_metric(self) -> list[int]:
    metrics = {step: self.metric(step) for step in self.steps()}
    known = {
      step: self._sign * metric
      for step, metric in metrics.items()
      if metric is not None and not math.isnan(metric)
    }
    return sorted(known, key=lambda step: (known[step], step))

  def _finish(self, step: int, metric: float | None, response: Any) -> None:
    """The part of a save in the background."""
    saving = self.folder / f'{step}{SAVING}'
    try:
      response.result()
      if hosts.first():
        (saving / CONFIG).write_text(self._config)
        manifest.write(saving, step=step, metric=metric)
        saving.rename(self._path(step))
        self._retain()
    except (OSError, ValueError) as error:
      # A full disk should not stay full of half a checkpoint.
      shutil.rmtree(saving, ignore_errors=True)
      raise self._failure(step, error) from error

  def _retain(self) -> None:
    steps = self.steps()
    kept = steps[-self._keep_latest :] + self._by_metric()[: self._keep_best]
    if self._keep_every:
      kept += [step for step in steps if step % self._keep_every == 0]
    for step in set(steps) - set(kept):
      # Renamed first: a kill leaves no half step behind.
      removed = self.folder / f'{step}{REMOVED}'
      self._path(step).rename(removed)
      shutil.rmtree(removed)

  def _sweep(self) -> None:
    if self._swept or not self.folder.is_dir():
      return
    for path in self.folder.iterdir():
      if path.suffix in (SAVING, REMOVED):
        shutil.rmtree(path)
    self._swept = True

  def _set_aside(self, step: int, reason: str) -> None:
    place = self.folder / f'{step}{BAD}'
    number = 1
    while place.exists():
      number += 1
      place = self.folder / f'{step}{BAD}{number}'
    try:
      self._path(step).rename(place)
      done = f'set aside as {place.name}'
    except OSError as error:
      done = f'skipped, it cannot be renamed ({_reason(error)})'
    print(
      f'warning: checkpoint {self._path(step)} is bad, {reason}: {done}',
      file=sys.stderr,
    )

  def _verify(self, step: int) -> None:
    if step in self._verified:
      return
    reason = manifest.damage(self._path(step))
    if reason:
      raise CheckpointError(f'checkpoint {self._path(step)} is bad: {reason}')
    self._verified.add(step)

  def _failure(self, step: int | str, error: Exception) -> CheckpointError:
    latest = self.latest()
    older = 'there is no older one' if latest is None else f'{latest} is whole'
    return CheckpointError(
      f'checkpoint {step} could not be saved in {self.folder}: '
      f'{_reason(error)}; {older}'
    )
