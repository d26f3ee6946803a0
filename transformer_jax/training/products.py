"""FLOPs of the matrix products of a function as it was written (pure).

XLA's own count takes the body of a loop once; here scans are multiplied out.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax


def flops(function: Any, *arguments: Any) -> float:
  """FLOPs of the matrix products of a function, loops multiplied out.

  Of all devices together. 2 for each multiplication and addition; everything
  that is not a product (norms, softmax, Adam) is left out, as is usual for
  model FLOPs utilisation.

  Args:
    function: to be traced, not run.
    *arguments: arrays or shapes.

  >>> x = jax.ShapeDtypeStruct((4, 8), 'float32')
  >>> y = jax.ShapeDtypeStruct((8, 2), 'float32')
  >>> flops(lambda x, y: x @ y, x, y)
  128.0
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
  found = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      left = equation.invars[0].aval.shape
      inner = math.prod(left[axis] for axis in contracted)
      found += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
      continue
    times = 1
    if equation.primitive.name == 'scan':
      times = equation.params['length']
    elif equation.primitive.name == 'shard_map':
      # Written for one device of these axes: all of them run it.
      mesh, axes = equation.params['mesh'], equation.params['newly_manual_axes']
      times = math.prod(mesh.shape[axis] for axis in axes)
    inside = [_count(inner) for inner in _inner(equation.params)]
    # Of the branches of a condition one runs: the dearest is counted.
    whole = max if equation.primitive.name == 'cond' else sum
    found += times * whole(inside or [0.0])
  return found


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The programs within an operation."""
  for value in params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      jaxpr = getattr(one, 'jaxpr', one)
      if hasattr(jaxpr, 'eqns'):
        yield jaxpr
