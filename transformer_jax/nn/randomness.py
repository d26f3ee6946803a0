"""Random numbers that depend on what they are for, never on call order.

The key of a parameter or of a dropout site is the run's key with the path
folded in. So a model with one more parameter keeps the initial values and the
dropout bits of all the others, bitwise: comparisons stay paired.

Keys and bits come from a 32-bit mixing function of our own. A model draws by
the million each step and needs no cryptography: threefry's twenty rounds cost
a fifth of a training step on a CPU, and half a minute of compilation for the
initial values of a small model.
"""

import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive numbers
# A model has hundreds of keys. What makes them is traced once a shape, not once
# a key; the program is the same, for its equations are written out.
_traced_once = functools.partial(jax.jit, inline=True)


def stable_hash(text: str) -> tuple[int, int]:
  """The same two 32-bit numbers for the same text, everywhere and always."""
  digest = hashlib.sha256(text.encode()).digest()
  return (
    int.from_bytes(digest[:4], 'little'),
    int.from_bytes(digest[4:8], 'little'),
  )


@_traced_once
def _mix(x: Array) -> Array:
  """A bijection of 32 bits: each input bit flips half the output bits."""
  x = x ^ (x >> 16)
  x = x * jnp.uint32(0x7FEB352D)
  x = x ^ (x >> 15)
  x = x * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def seed_key(seed: int | Array) -> Array:
  """The key of a run: uint32 [2]."""
  zero = jnp.zeros((2,), jnp.uint32)
  return at(zero, seed)


def at(key: Array, place: str | int | Array) -> Array:
  """The key of a place below that of `key`.

  Args:
    key: uint32 [2].
    place: a path, or the number of a step, a layer, a part.

  Returns:
    uint32 [2]; others for another key or another place.
  """
  if isinstance(place, str):
    first, second = (np.uint32(word) for word in stable_hash(place))
  else:
    first, second = jnp.asarray(place).astype(jnp.uint32), np.uint32(_GOLDEN)
  return _below(key, first, second)


@_traced_once
def _below(key: Array, first: Array, second: Array) -> Array:
  a = _mix(key[0] ^ _mix(first + jnp.uint32(_GOLDEN)))
  b = _mix(key[1] ^ _mix(second + a))
  # The barrier keeps XLA from inlining a chain of keys into each loop that
  # draws with the last one: on a CPU that compiles for minutes.
  return jax.lax.optimization_barrier(jnp.stack([_mix(a + b), b]))


@_traced_once
def coordinate_bits(key: Array, *coordinates: Array) -> Array:
  """uint32 bits that are a function of the key and of the coordinates only.

  Since the bits of (b, h, t, s) depend on nothing else, an implementation that
  works in blocks, or on one shard, drops the same weights.

  Args:
    key: uint32 [2].
    *coordinates: uint32 arrays that broadcast together, outermost first; give
      each its own axis, then all but the last are mixed once a row.

  Returns:
    uint32 of the broadcast shape, uniform over [0, 2^32).
  """
  bits = key[0]
  for coordinate in coordinates:
    bits = _mix((bits ^ key[1]) + coordinate * jnp.uint32(_GOLDEN))
  return bits


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
  """float32 in the open interval (0, 1), in steps of 2^-23."""
  return uniform_of(coordinate_bits(key, *grid(shape)))


def uniform_of(bits: Array) -> Array:
  """uint32 bits -> float32 in the open interval (0, 1)."""
  # 23 bits and a half step: with 24 the largest would round to 1.
  return ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def normal(key: Array, shape: tuple[int, ...]) -> Array:
  """float32 of mean 0 and variance 1; none beyond 5.3 deviations."""
  two = jnp.float32(np.sqrt(2.0))
  return two * jax.lax.erf_inv(2.0 * uniform(key, shape) - 1.0)


def grid(shape: tuple[int, ...]) -> list[Array]:
  """One uint32 coordinate array an axis, each along its own axis."""
  ndim = len(shape)
  return [
    jnp.arange(size, dtype=jnp.uint32).reshape(
      [size if axis == other else 1 for other in range(ndim)]
    )
    for axis, size in enumerate(shape)
  ]


def drop_at(
  x: Array, key: Array, rate: Array | float, coordinates: Sequence[Array]
) -> Array:
  """Dropout of a part of a whole, whose elements lie at `coordinates` there.

  Args:
    x: the part.
    key: as in `dropout`.
    rate: as in `dropout`.
    coordinates: uint32, one array an axis, as `grid` gives for the whole.
  """
  bits = coordinate_bits(key, *coordinates)
  rate = jnp.asarray(rate, jnp.float32)
  kept = bits >= (rate * 2.0**32).astype(jnp.uint32)
  factor = (1.0 / (1.0 - rate)).astype(x.dtype)
  return jnp.where(kept, x * factor, jnp.zeros((), x.dtype))


@jax.custom_vjp
def dropout(x: Array, key: Array, rate: Array | float) -> Array:
  """x with each element zeroed at probability `rate`, else divided by 1-rate.

  Args:
    x: any shape; the element's coordinates pick its bits.
    key: uint32 [2], of this dropout site.
    rate: in [0, 1), a number or a traced scalar; no gradient flows to it.

  Returns:
    An array like x whose expectation is x (Srivastava et al. 2014; 5.4).
  """
  return drop_at(x, key, rate, grid(x.shape))


def _dropout_forward(x, key, rate):
  return dropout(x, key, rate), (key, rate)


def _dropout_backward(saved, cotangent):
  # The bits are drawn again: cheaper than a mask that is kept. The barrier
  # makes the result once, not once for each product that it goes into.
  key, rate = saved
  return jax.lax.optimization_barrier(dropout(cotangent, key, rate)), None, None


dropout.defvjp(_dropout_forward, _dropout_backward)
