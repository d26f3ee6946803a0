"""What disks and copies do to a checkpoint."""

import pathlib
import random


def _any_file(step: pathlib.Path, rng: random.Random) -> pathlib.Path:
  """A file by the number of its bytes, each byte alike."""
  files = sorted(path for path in step.rglob('*') if path.is_file())
  sizes = [path.stat().st_size for path in files]
  return rng.choices(files, weights=sizes)[0]


def flip(step: pathlib.Path, rng: random.Random) -> str:
  """Another value of one bit."""
  path = _any_file(step, rng)
  data = bytearray(path.read_bytes())
  at, bit = rng.randrange(len(data)), rng.randrange(8)
  data[at] ^= 1 << bit
  path.write_bytes(data)
  return f'bit {bit} of byte {at} of {path.relative_to(step)}'


def truncate(step: pathlib.Path, rng: random.Random) -> str:
  """A file that ends early."""
  path = _any_file(step, rng)
  data = path.read_bytes()
  kept = rng.randrange(len(data))
  path.write_bytes(data[:kept])
  return f'{kept} of {len(data)} bytes of {path.relative_to(step)}'


FAULTS = {'one bit flipped': flip, 'a file cut short': truncate}
