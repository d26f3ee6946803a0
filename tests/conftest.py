"""Strictness for every test, set before JAX is first used."""

import jax

# A mesh can be tested anywhere; one device is still the default of a jit.
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_disable_most_optimizations', True)
# An array that broadcasts by accident is a bug that looks like a result.
jax.config.update('jax_numpy_rank_promotion', 'raise')
