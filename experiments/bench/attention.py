"""Attention alone: score x length x implementation, forward and backward.

One sequence, eight heads of width 64, as in the base model: the gradient by
queries, keys, values and the score's parameter. The implementations of one
score and length are timed by turns; what is compiled says how much memory it
needs beside its arguments and results, and one that would not fit into the
machine's memory is compiled but not run. Where blocks are what makes the size
possible, a fresh process makes it once and says the most memory it ever held.
"""

import functools
import multiprocessing
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench.data import STATUS
from experiments.bench.measure import (
  Contestant,
  Row,
  Turns,
  fact,
  row,
  say,
  take_turns,
)
from transformer_jax.nn import attention, implementations, randomness
from transformer_jax.nn.attention import How
from transformer_jax.training import fit

LENGTHS = (64, 256, 1024, 4096)
SCORES = ('dot', 'additive')
B, H, K = 1, 8, 64
# Of each score, against the first of its line; by the type of the numbers.
CONTESTANTS = {
  'dot': {'float32': ('naive', 'blockwise', 'fused')},
  'additive': {'float32': ('naive', 'blockwise')},
}
# On a GPU, where cuDNN takes half precision and the kernel runs.
ON_GPU = {
  'dot': {
    **CONTESTANTS['dot'],
    'bfloat16': ('naive', 'blockwise', 'fused_on_gpu'),
  },
  'additive': {'float32': ('naive', 'blockwise', 'kernel')},
}
FUNCTIONS = {
  **implementations.FUNCTIONS,
  'fused_on_gpu': implementations.fused_on_gpu,
}
MEBI, GIBI = 1 << 20, 1 << 30
MEMINFO = pathlib.Path('/proc/meminfo')
SHARE = 0.8  # of the available memory that one program may take


class Case(NamedTuple):
  """One line of the table."""

  score: str
  length: int
  implementation: str
  dtype: str = 'float32'

  @property
  def name(self) -> str:
    name = f'{self.score} {self.length} {self.implementation}'
    return name if self.dtype == 'float32' else f'{name} {self.dtype}'


def groups(score: str, length: int, *, platform: str) -> list[list[Case]]:
  """What is compared with each other, the formula first."""
  table = ON_GPU if platform == 'gpu' else CONTESTANTS
  return [
    [Case(score, length, name, dtype) for name in names]
    for dtype, names in table[score].items()
  ]


def available_bytes() -> int:
  """Memory that a new program may have, here or in its container."""
  whole = fit.host_memory()
  if MEMINFO.exists():
    for line in MEMINFO.read_text().splitlines():
      if line.startswith('MemAvailable:'):
        return min(whole, int(line.split()[1]) * 1024)
  return whole


def arrays(case: Case) -> tuple[jax.Array, ...]:
  """q, k, v, the cotangent and the score's parameter, or nothing for it."""
  T = case.length
  shapes: list[tuple[int, ...]] = [(B, T, H, K)] * 4
  score = attention.SCORES[case.score]
  if score.parameter:
    shapes.append(attention.parameter_shape(score, heads=H, d_k=K))
  key = randomness.seed_key(0)
  return tuple(
    jax.jit(randomness.normal, static_argnums=1)(
      randomness.at(key, n), shape
    ).astype(case.dtype)
    for n, shape in enumerate(shapes)
  )


def compiled(case: Case) -> Any:
  """The program: forward, and backward to everything but the cotangent."""
  attend: Callable[..., jax.Array] = FUNCTIONS[case.implementation]
  scores = attention.SCORES[case.score].scores
  see_all = jnp.ones((1, 1, case.length), bool)

  def attended(q, k, v, w=None):
    return attend(q, k, v, see_all, How(K**-0.5, scores, w))

  def step(q, k, v, cotangent, *w):
    mixed, back = jax.vjp(attended, q, k, v, *w)
    return mixed, back(cotangent)

  shapes = jax.eval_shape(functools.partial(arrays, case))
  return jax.jit(step).lower(*shapes).compile()


def once(case: Case) -> int:
  """Bytes of the most memory ever resident, after one forward and backward."""
  jax.block_until_ready(compiled(case)(*arrays(case)))
  return most_resident_bytes()


def most_resident_bytes() -> int:
  """The most that was ever resident of this process; 0 where not known.

  Not `getrusage`: its figure is inherited from the process that started this
  one, where that one was larger.
  """
  if STATUS.exists():
    for line in STATUS.read_text().splitlines():
      if line.startswith('VmHWM:'):
        return int(line.split()[1]) * 1024
  return 0


def suite(rounds: int, lengths: tuple[int, ...] = LENGTHS) -> list[Row]:
  """Rows of every score, length and implementation.

  Args:
    rounds: turns of each.
    lengths: of queries and keys.
  """
  rows = []
  platform = jax.default_backend()
  for score in SCORES:
    for length in lengths:
      for cases in groups(score, length, platform=platform):
        rows += compared(cases, rounds)
  return [*rows, *_peaks(max(lengths))]


def compared(cases: list[Case], rounds: int) -> list[Row]:
  """Rows of the implementations of one score and length."""
  programs, memory, refused = {}, {}, {}
  for case in cases:
    say(f'compiling {case.name}')
    program = compiled(case)
    memory[case] = program.memory_analysis().temp_size_in_bytes
    room = SHARE * available_bytes()
    if memory[case] > room:
      refused[case] = f'not run: more than {room / GIBI:.0f} GiB'
    else:
      programs[case] = program
  given = arrays(cases[0])

  def contestant(case: Case) -> Contestant:
    return Contestant(
      case.name, lambda: jax.block_until_ready(programs[case](*given))[0]
    )

  turns: dict[str, Turns] = {}
  if programs:
    turns = take_turns([contestant(case) for case in programs], rounds=rounds)
  naive = turns.get(cases[0].name)
  rows = []
  for case in cases:
    note = f'{memory[case] / MEBI:,.0f} MiB of temporaries'
    if case in refused:
      gibi = memory[case] / GIBI
      rows.append(fact('attention', case.name, gibi, 'GiB', refused[case]))
      continue
    taken = turns[case.name]
    if naive is not None and case is not cases[0]:
      pairs = zip(naive.seconds, taken.seconds, strict=True)
      ratio = statistics.median(own / theirs for own, theirs in pairs)
      note += f'; {ratio:.2f} x as fast as naive'
    values = [1e3 * seconds for seconds in taken.seconds]
    rows.append(row('attention', case.name, values, 'ms', note=note))
  return rows


def _peaks(length: int) -> list[Row]:
  """The most resident memory of a process that does it once, in blocks."""
  rows = []
  for score in SCORES:
    case = Case(score, length, 'blockwise')
    say(f'once, in a fresh process: {case.name}')
    # spawn: the new process inherits no memory of this one.
    with multiprocessing.get_context('spawn').Pool(1) as pool:
      most = pool.apply(once, (case,))
    name = f'{case.name}, peak'
    note = 'resident, with interpreter, compiler and gradients'
    rows.append(fact('attention', name, most / MEBI, 'MiB', note))
  return rows
