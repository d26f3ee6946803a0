"""The mean of several checkpoints' parameters (section 6.1)."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from transformer_jax.training.checkpoint import CheckpointError


def average(trees: Iterable[Any]) -> Any:
  """The mean of parameter trees, (1/n) sum_i tree_i, summed in float32.

  A running sum: from a generator, memory holds two trees at a time. The paper
  averages the last 5 checkpoints of base models and 20 of big ones (6.1).

  Args:
    trees: pytrees of host arrays of one structure.

  Returns:
    The same structure and dtypes.

  Raises:
    CheckpointError: `trees` is empty.

  >>> average([{'w': np.float32([1, 2])}, {'w': np.float32([3, 6])}])['w']
  array([2., 4.], dtype=float32)
  """
  total: Any = None
  dtypes: Any = None
  count = 0
  for tree in trees:
    count += 1
    if total is None:
      total = jax.tree.map(lambda x: np.array(x, np.float32), tree)
      dtypes = jax.tree.map(lambda x: x.dtype, tree)
    else:
      jax.tree.map(lambda sum, x: np.add(sum, x, out=sum), total, tree)
  if total is None:
    raise CheckpointError('there is no checkpoint to average')
  return jax.tree.map(
    lambda sum, dtype: np.divide(sum, np.float32(count), out=sum).astype(
      dtype, copy=False
    ),
    total,
    dtypes,
  )
