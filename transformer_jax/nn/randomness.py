"""Random numbers that depend on what they are for, never on call order.

The key of a parameter or of a dropout site is a hash of its path folded into
the run's key. So a model with one more parameter keeps the initial values and
the dropout bits of all the others, bitwise: comparisons stay paired.
"""

import hashlib

import jax
import jax.numpy as jnp
from jax import Array

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive coordinates


def stable_hash(text: str) -> int:
  """The same 31-bit number for the same text, on every machine and run."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:4], 'little') >> 1


def at(key: Array, path: str) -> Array:
  """The key of the site or parameter at `path`."""
  return jax.random.fold_in(key, stable_hash(path))


def _mix(x: Array) -> Array:
  """A 32-bit mixing function: every input bit flips half the output bits."""
  x = x ^ (x >> 16)
  x = x * jnp.uint32(0x7FEB352D)
  x = x ^ (x >> 15)
  x = x * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def coordinate_bits(key: Array, *coordinates: Array) -> Array:
  """uint32 bits that are a function of the key and of the coordinates only.

  Dropout needs bits by the million each step and no cryptography: one mixing
  round an element costs a fraction of threefry's twenty. Since the bits of
  (b, h, t, s) depend on nothing else, an implementation that works in blocks,
  or on one shard, drops the same weights.

  Args:
    key: a typed threefry key.
    *coordinates: uint32 arrays that broadcast together, outermost first; give
      each its own axis, then all but the last are mixed once a row.

  Returns:
    uint32 of the broadcast shape, uniform over [0, 2^32).
  """
  k_0, k_1 = jax.random.key_data(key)
  bits = _mix(coordinates[0] * jnp.uint32(_GOLDEN) + k_0) ^ k_1
  for coordinate in coordinates[1:]:
    bits = _mix(bits + coordinate * jnp.uint32(_GOLDEN))
  return _mix(bits) if len(coordinates) == 1 else bits


def grid(shape: tuple[int, ...]) -> list[Array]:
  """One uint32 coordinate array an axis, each along its own axis."""
  ndim = len(shape)
  return [
    jnp.arange(size, dtype=jnp.uint32).reshape(
      [size if axis == other else 1 for other in range(ndim)]
    )
    for axis, size in enumerate(shape)
  ]


def dropout(x: Array, key: Array, rate: Array | float) -> Array:
  """x with each element zeroed at probability `rate`, else divided by 1-rate.

  Args:
    x: any shape; the element's coordinates pick its bits.
    key: the key of this dropout site.
    rate: in [0, 1), a number or a traced scalar.

  Returns:
    An array like x whose expectation is x (Srivastava et al. 2014; 5.4).
  """
  bits = coordinate_bits(key, *grid(x.shape))
  rate = jnp.asarray(rate, jnp.float32)
  kept = bits >= (rate * 2.0**32).astype(jnp.uint32)
  factor = (1.0 / (1.0 - rate)).astype(x.dtype)
  return jnp.where(kept, x * factor, jnp.zeros((), x.dtype))
