"""What a compiled program does: its collectives, the bytes it moves (pure).

XLA's own count takes the body of a loop once. Here a collective counts as
often as its loop runs.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'c64': 64, 'c128': 128}

_LAYOUT = re.compile(r'\]\{[^{}]*\}')
# Memory space 1 of a TPU is its vector memory.
_VECTOR = re.compile(r'(?<=\])\{[^{}]*S\(1\)[^{}]*\}')
_SHAPE = re.compile(r'\b([a-z]+[0-9]*)\[([0-9,]*)\]')
ON_CHIP = '@'  # Behind a shape, in place of its layout.
_MARKED = re.compile(r'[a-z]+[0-9]*\[[0-9,]*\]' + ON_CHIP)
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\([^\n]*)?\{$')
_LINE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_CALLS = re.compile(
  r'(calls|to_apply|body|condition|true_computation|false_computation)='
  r'%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
  """One kind of exchange in one place of a program.

  kind: one of KINDS.
  bytes: of the whole array on one device: what an all-gather gives, what a
    reduce-scatter is given.
  devices: that take part in it together.
  times: it runs in one call of the program.
  """

  kind: str
  bytes: int
  devices: int
  times: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends in a call, by the ring algorithm.

    2 (n - 1) / n of the array for an all-reduce, (n - 1) / n for the others,
    the whole for a permutation.
    """
    n = self.devices
    share = {'all-reduce': 2 * (n - 1) / n, 'collective-permute': 1.0}
    return self.bytes * self.times * share.get(self.kind, (n - 1) / n)


class HloError(ValueError):
  """A program's text that cannot be read; says which line."""


def shape_bytes(text: str) -> list[int]:
  """Bytes of every array shape named in `text`.

  >>> shape_bytes('(f32[2,3]{1,0}, bf16[4]{0}, pred[])')
  [24, 8, 1]
  """
  found = []
  for kind, sizes in _SHAPE.findall(text):
    bits = BITS.get(kind) or int(re.sub(r'\D', '', kind)[:2] or 0)
    count = math.prod(int(size) for size in sizes.split(',') if size)
    found.append(count * bits // 8)
  return found


def collectives(text: str) -> list[Collective]:
  """Every exchange between devices in a compiled program.

  Args:
    text: `compiled.as_text()`, of any platform.

  Raises:
    HloError: a loop around an exchange whose length cannot be read.
  """
  rooms, entry = _computations(text)
  devices = _devices(text)
  found = []
  for name, times in _executed(rooms, entry, 1, fused=True):
    for what in rooms[name].values():
      kind = _kind(what)
      if kind and times is None:
        raise HloError(
          f'{name} has exchanges and runs in a loop of unknown length'
        )
      if kind:
        found.append(_collective(kind, what, times or 1, devices))
  return found


def moved(text: str) -> int:
  """Bytes that the operations of a program read and write, loops repeated.

  Of an array that is only sliced, the slice; a loop of unknown length counts
  once. What a TPU keeps in its on-chip memory costs nothing. Caches are not
  known: a product may read its operands more than once.
  """
  rooms, entry = _computations(_VECTOR.sub(ON_CHIP, text))
  sum_bytes = 0
  for name, times in _executed(rooms, entry, 1, fused=False):
    for what in rooms[name].values():
      sum_bytes += (times or 1) * _touched(rooms, rooms[name], what)
  return sum_bytes


def total(found: list[Collective]) -> dict[str, tuple[int, float]]:
  """{kind: (times, bytes sent by a device)} of one call."""
  sums: dict[str, tuple[int, float]] = {}
  for one in found:
    times, sent = sums.get(one.kind, (0, 0.0))
    sums[one.kind] = times + one.times, sent + one.sent
  return sums


def _computations(text: str) -> tuple[dict[str, dict[str, str]], str]:
  """{computation: {name: operation}}, and the name of the entry."""
  text = _LAYOUT.sub(']', text)
  rooms: dict[str, dict[str, str]] = {}
  entry, name = '', ''
  for line in text.splitlines():
    header, operation = _HEADER.match(line), _LINE.match(line)
    if header and not operation:
      name = header[2]
      rooms[name] = {}
      entry = name if header[1] else entry
    elif line.startswith('}'):
      name = ''
    elif name and operation:
      rooms[name][operation[1]] = operation[2]
  if not entry:
    raise HloError('no ENTRY computation in this text')
  return rooms, entry


def _devices(text: str) -> int:
  """Partitions or replicas of the whole program."""
  head = text.split('\n', 1)[0]
  sizes = re.findall(r'(?:num_partitions|replica_count)=(\d+)', head)
  return math.prod(int(size) for size in sizes)


def _executed(
  rooms: dict[str, dict[str, str]],
  name: str,
  times: int | None,
  *,
  fused: bool,
) -> Iterator[tuple[str, int | None]]:
  """(computation, how often it runs) from `name` on; None: not known.

  Args:
    rooms: of the program.
    name: where to begin.
    times: that this one runs.
    fused: whether to look into what is fused to one operation.
  """
  yield name, times
  for what in rooms[name].values():
    called = dict(_CALLS.findall(what))
    if 'body' in called:
      length = _length(rooms, called['condition'], what)
      inside = times * length if times and length else None
      yield from _executed(rooms, called['body'], inside, fused=fused)
      continue
    names = [
      called[key]
      for key in ('true_computation', 'false_computation')
      if key in called
    ]
    branches = _BRANCHES.search(what)
    if branches:
      names += [one.strip().lstrip('%') for one in branches[1].split(',')]
    if 'calls' in called and (fused or ' fusion(' not in what):
      names.append(called['calls'])
    if ' call(' in what and 'to_apply' in called:
      names.append(called['to_apply'])
    for inner in names:
      yield from _executed(rooms, inner, times, fused=fused)


# They name arrays and move nothing.
_FREE = re.compile(
  r' (parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|'
  r'call|after-all|partition-id|[\w-]+-done)\('
  r'|custom_call_target="(AllocateBuffer|ConcatBitcast)"'
)
_OPERANDS = re.compile(r'%([\w.\-]+)')


def _touched(
  rooms: dict[str, dict[str, str]], room: dict[str, str], what: str
) -> int:
  """Bytes that one operation reads from memory and writes to it."""
  if _FREE.search(what):
    return 0
  if ' copy-start(' in what:  # Gives (target, source, a flag).
    return _in_memory(_shape_of(what))
  if ' slice-start(' in what:  # Gives ((source), slice, a flag).
    source, result = [one[0] for one in _SHAPE.finditer(what)][:2]
    slices = [
      result
      for whole in (source, result)
      if f'{whole}{ON_CHIP}' not in _shape_of(what)
    ]
    return sum(shape_bytes(' '.join(slices)))
  inner = rooms.get(dict(_CALLS.findall(what)).get('calls', ''))
  # An operation alone is a fusion of itself, its operands the parameters.
  operands = _operands(what)
  if inner is None:
    inner = {
      name: f'{_shape_of(room.get(name, ""))} parameter({place})'
      for place, name in enumerate(operands)
    } | {'': what}
  written = _in_memory(_shape_of(what))
  for one in inner.values():
    if ' dynamic-update-slice(' in one or ' scatter(' in one:
      # The rest of the array stays where it lies.
      whole = _in_memory(_shape_of(one))
      written += min(0, _updated(inner, one) - whole)
  read = 0
  for place, name in enumerate(operands):
    size = _in_memory(_shape_of(room.get(name, '')))
    read += min(size, _read(rooms, inner, place, size))
  return read + max(written, 0)


def _in_memory(shapes: str) -> int:
  """Bytes of those shapes that are not on the chip."""
  return sum(shape_bytes(_MARKED.sub('', shapes)))


def _operands(what: str) -> list[str]:
  rest = what[len(_shape_of(what)) :].partition('(')[2]
  return _OPERANDS.findall(rest.partition(')')[0])


def _shape_of(what: str) -> str:
  """The part of an operation that says what it gives."""
  if what.startswith('('):
    return what[: what.index(') ') + 1] if ') ' in what else what
  return what.partition('(')[0]


def _updated(inner: dict[str, str], what: str) -> int:
  """Bytes of an array that are written over in place."""
  update = _operands(what)[1 if ' dynamic-update-slice(' in what else -1]
  return sum(shape_bytes(_shape_of(inner.get(update, ''))))


def _read(
  rooms: dict[str, dict[str, str]],
  inner: dict[str, str],
  place: int,
  size: int,
) -> int:
  """Bytes of parameter `place` that are read: where it is sliced, the slice.

  Args:
    rooms: of the program; a fusion may hold further ones.
    inner: the fusion.
    place: of the parameter.
    size: of it, in bytes.
  """
  # The parameter under all its names: of another shape or layout.
  names = {
    name for name, what in inner.items() if f' parameter({place})' in what
  }
  read = 0 if names else size
  for name, what in inner.items():
    operands = _operands(what)
    if not names.intersection(operands):
      continue
    if ' bitcast(' in what or 'output_to_operand_aliasing=' in what:
      names.add(name)
    elif ' fusion(' in what:
      called = rooms[dict(_CALLS.findall(what))['calls']]
      read += sum(
        _read(rooms, called, at, size)
        for at, operand in enumerate(operands)
        if operand in names
      )
    elif ' dynamic-slice(' in what or ' gather(' in what or ' slice(' in what:
      read += sum(shape_bytes(_shape_of(what)))
    elif ' scatter(' in what and operands[0] in names:
      read += _updated(inner, what)
    elif not (' dynamic-update-slice(' in what and operands[0] in names):
      return size
  return read


def _kind(what: str) -> str:
  """The kind of exchange of a line, or nothing; an async one at its start."""
  for kind in KINDS:
    if f' {kind}(' in what or f' {kind}-start(' in what:
      return kind
  return ''


def _collective(kind: str, what: str, times: int, devices: int) -> Collective:
  before, _, _ = what.partition(f' {kind}')
  sizes = shape_bytes(before)
  group = _group(what, devices)
  if f' {kind}-start(' in what and kind != 'all-reduce' and len(sizes) > 1:
    # (operand, result, ...) of an asynchronous start: the result counts.
    size = sizes[1]
  else:
    size = sum(sizes)
  if kind == 'reduce-scatter':
    size *= group
  return Collective(kind, size, group, times)


def _group(what: str, devices: int) -> int:
  """Devices in one group, in each of the ways that XLA writes them."""
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', what)
  if listed:
    return listed[1].count(',') + 1
  counted = re.search(r'replica_groups=\[(\d+),(\d+)\]', what)
  if counted:
    return int(counted[2])
  named = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', what)
  if named:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
    axes = re.findall(r"'([^']+)'", named[2])
    return math.prod(int(sizes[axis]) for axis in axes)
  pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', what)
  if pairs:
    return pairs[1].count('{')
  return devices


def _length(
  rooms: dict[str, dict[str, str]], condition: str, what: str
) -> int | None:
  """How often a loop runs, where the text says it."""
  known = _KNOWN.search(what)
  if known:
    return int(known[1])
  # A scan counts from 0 below a constant; what else it compares is not ours.
  constants = {
    int(number)
    for line in rooms.get(condition, {}).values()
    for number in re.findall(r's32\[\][^=]* constant\((\d+)\)', line)
  }
  return constants.pop() if len(constants) == 1 else None


def tree_bytes(tree: Any) -> int:
  """Bytes of the arrays of a tree, or of their shapes."""
  return sum(
    math.prod(x.shape) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )
