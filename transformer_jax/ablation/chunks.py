"""Cells that are trained together: how they are cut, and who holds them."""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from transformer_jax.ablation.cells import Cell
from transformer_jax.ablation.folder import POPULATIONS
from transformer_jax.config import ConfigError
from transformer_jax.training import lock
from transformer_jax.training.population import can_share

# Members of a population: few enough for workers to share a study evenly.
MEMBERS = {'cpu': 8}
MEMBERS_ELSEWHERE = 32


class Chunk(NamedTuple):
  """Cells that are trained together.

  name: of their folder.
  group: the same for all cells that share a program.
  room: number of cells of the largest chunk of that program.
  """

  name: str
  group: str
  cells: tuple[Cell, ...]
  room: int


def platform() -> str:
  """Where this worker trains."""
  return jax.local_devices()[0].platform


def chunks(cells: Sequence[Cell]) -> list[Chunk]:
  """Cells by program, in the order of seeds, a few at a time.

  The cut depends neither on what is done already nor on how many seeds are
  asked for: so workers that were asked for other numbers of seeds lock the same
  chunks.
  """
  most = MEMBERS.get(platform(), MEMBERS_ELSEWHERE)
  groups: dict[str, dict[str, Cell]] = {}
  for cell in cells:
    text = can_share(cell.config)
    group = hashlib.sha256(text.encode()).hexdigest()[:16]
    # Two phases of one recipe are one cell.
    groups.setdefault(group, {}).setdefault(cell.identity, cell)
  found = []
  for group, members in groups.items():
    whole = list(members.values())
    for start in range(0, len(whole), most):
      part = tuple(whole[start : start + most])
      name = f'{group}-{part[0].identity[:12]}'
      found.append(Chunk(name, group, part, min(most, len(whole))))
  return found


def population(folder: pathlib.Path, chunk: Chunk) -> pathlib.Path:
  """The folder of a chunk in the folder of its study."""
  return folder / POPULATIONS / chunk.name


@contextlib.contextmanager
def held(folder: pathlib.Path, chunk: Chunk, *, stale: float) -> Iterator[bool]:
  """Whether this worker has the chunk now; it keeps it for the block.

  Args:
    folder: of the study.
    chunk: to be held.
    stale: see `lock.held`.
  """
  place = population(folder, chunk)
  place.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    mine = False
    with contextlib.suppress(ConfigError):
      stack.enter_context(lock.held(place, stale=stale, watch=False))
      mine = True
    yield mine


def is_held(folder: pathlib.Path, chunk: Chunk) -> bool:
  """Whether any worker holds the chunk."""
  return (population(folder, chunk) / lock.NAME).exists()
