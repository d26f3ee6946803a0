"""Tests of equal bits, run by a process that compiles as users do.

That two programs of one step give the same bits is a promise about the code
generator that users have, and not about the quicker one of `conftest.py`.
"""

import os
import subprocess
import sys

import pytest

USERS = '--xla_cpu_use_fusion_emitters=true'
HERE = USERS in os.environ.get('XLA_FLAGS', '')

as_users_compile = pytest.mark.skipif(
  not HERE, reason='runs in a process of its own: test_bits_as_users_compile'
)


def passes_as_users_compile(file: str, *names: str) -> None:
  """Runs the tests of `file` with these names in such a process."""
  if HERE:
    pytest.skip('this is that process')
  tests = [f'{file}::{name}' for name in names]
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', *tests],
    env={**os.environ, 'XLA_FLAGS': USERS},
    capture_output=True,
    text=True,
  )
  passed = f'{len(names)} passed' in done.stdout
  assert done.returncode == 0 and passed, done.stdout
