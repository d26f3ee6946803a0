"""What tests of runs look at, and what they do to them."""

import json
import os

from tests.training.conftest import arrays
from transformer_jax.training import loop


class Killed(BaseException):
  """Ends a run as a kill would: nothing after it is done."""


def steps_of(folder) -> list[int]:
  names = os.listdir(folder / 'checkpoints')
  return sorted(int(name) for name in names if name.isdecimal())


def rows(folder) -> list[dict]:
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def assert_same_run(folder, unbroken, step=24):
  """The same bytes of metrics, parameters and moments."""
  assert (folder / 'metrics.jsonl').read_bytes() == (
    unbroken / 'metrics.jsonl'
  ).read_bytes()
  assert arrays(folder, step) == arrays(unbroken, step)


def damage(folder, step):
  """Flip a bit in the largest file of a checkpoint."""
  files = (folder / 'checkpoints' / str(step)).rglob('*')
  path = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def spoilt(monkeypatch, **changes):
  """The loop as it would be with other numbers than its config's."""
  numbers = loop.numbers
  monkeypatch.setattr(
    loop, 'numbers', lambda config: numbers(config)._replace(**changes)
  )


def assert_told(left, told):
  code, err = left
  assert code == 2
  assert 'Traceback' not in err and err.count('error: ') == 1
  assert err.splitlines()[-1].startswith('error: ') and told in err
