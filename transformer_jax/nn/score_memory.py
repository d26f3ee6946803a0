"""How much a score holds at once, read off its program (pure)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.nn.attention import How


def held_by(how: How, q_BTHK: Array, k_BSHK: Array) -> int:
  """Numbers that a score holds for one query and one key of a head.

  1 for products; K for the additive score. It is read from the program, so
  that it holds for a score from anywhere.
  """
  # Long enough that the array of pairs is larger than parameters and than
  # either side.
  side = 2 * max(32, q_BTHK.shape[-1])
  q, k = (
    jax.ShapeDtypeStruct((1, side, *x.shape[2:]), x.dtype)
    for x in (q_BTHK, k_BSHK)
  )
  program = jax.make_jaxpr(lambda q, k, w, c: how.scores(q, k, w, scale=c))(
    q, k, how.w, jnp.asarray(how.scale, jnp.float32)
  )
  most = _largest(program.jaxpr)
  return max(1, most // (side * side * q_BTHK.shape[2]))


def _largest(program: Any) -> int:
  """Numbers in the largest array that a program makes, loops unrolled."""
  most = 0
  for equation in program.eqns:
    own = (math.prod(getattr(x.aval, 'shape', ())) for x in equation.outvars)
    # The gradient of a loop keeps what each of its turns made.
    turns = equation.params.get('length', 1)
    inner = jax.tree.leaves(
      [*equation.params.values()], is_leaf=lambda x: hasattr(x, 'eqns')
    )
    inside = (
      turns * _largest(getattr(one, 'jaxpr', one))
      for one in inner
      if hasattr(one, 'eqns')
    )
    most = max(most, *own, *inside)
  return most
