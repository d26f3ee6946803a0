"""Strictness for every test, set before JAX is first used."""

import importlib.metadata
import os
import signal

# The older code generator compiles small programs in about half the time. XLA
# dies of a flag that it does not know, so only where it is known to be one.
FLAGS = os.environ.setdefault('XLA_FLAGS', '')
KNOWN = importlib.metadata.version('jaxlib').startswith('0.10.')
if KNOWN and 'fusion_emitters' not in FLAGS:
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
# What a test compiles in a run's folder, the processes it starts read back.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')

import jax  # noqa: E402
import pytest  # noqa: E402

# What tests start is meant to hear these; a job in the background inherits that
# they are ignored.
for number in (signal.SIGINT, signal.SIGHUP):
  if signal.getsignal(number) == signal.SIG_IGN:
    plain = {signal.SIGINT: signal.default_int_handler}
    signal.signal(number, plain.get(number, signal.SIG_DFL))

# A mesh can be tested anywhere; one device is still the default of a jit.
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_disable_most_optimizations', True)
# An array that broadcasts by accident is a bug that looks like a result.
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='module', autouse=True)
def left_as_found():
  """Who changes this for one module doubles the time of all after it."""
  yield
  assert jax.config.values['jax_disable_most_optimizations']
