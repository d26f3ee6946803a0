"""Position codes: where in the sentence a token stands (pure; section 3.5)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


def sinusoid_TD(length: int, d_model: int) -> np.ndarray:
  """The paper's table, sine and cosine interleaved.

    PE(pos, 2i)   = sin(pos / 10000^(2i / d_model))
    PE(pos, 2i+1) = cos(pos / 10000^(2i / d_model))

  Args:
    length: T, rows of the table; any.
    d_model: D, even.

  Returns:
    float32 [T, D], in [-1, 1].

  Raises:
    ValueError: when d_model is odd: a sine would be left without its cosine.

  >>> sinusoid_TD(2, 4).round(3).tolist()
  [[0.0, 1.0, 0.0, 1.0], [0.8410000205039978, 0.5400000214576721, \
0.009999999776482582, 1.0]]

  Reference: section 3.5. (Some codes keep all sines in the first half of D:
  the same up to a permutation of D, but other numbers at other places.)
  """
  if d_model % 2:
    raise ValueError(f'd_model={d_model} must be even for a sinusoid')
  # In numpy float64: at position 10,000 float32 angles are off by 1e-3.
  angle = np.arange(length)[:, None] / 10000.0 ** (
    np.arange(0, d_model, 2) / d_model
  )
  table = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
  return table.reshape(length, d_model).astype(np.float32)


class Join(NamedTuple):
  """How token and position become one vector.

  join: (x_BTD, p_TD, w_token_DD, w_position_DD) -> [B, T, D]; a matrix that
    `maps` does not name is None.
  maps: the matrices that it needs.
  role: what they are for, to be drawn by.
  """

  join: Callable[..., Array]
  maps: tuple[str, ...] = ()
  role: str = ''


def add(x_BTD: Array, p_TD: Array, *_: None) -> Array:
  """x + p, the paper's way (3.5).

  Sums can collide, concatenations cannot:

  >>> x = jnp.array([[[1, 2, 3], [3, 2, 1]]])
  >>> p = jnp.array([[3, 2, 1], [1, 2, 3]])
  >>> add(x, p).tolist()
  [[[4, 4, 4], [4, 4, 4]]]
  """
  return x_BTD + p_TD[None]


def concat_project(
  x_BTD: Array, p_TD: Array, w_token_DD: Array, w_position_DD: Array
) -> Array:
  """[x; p] W, where W is w_token above w_position: x w_token + p w_position.

  At W = [I; I] it is `add`.
  """
  return (
    jnp.einsum('BTD,DC->BTC', x_BTD, w_token_DD)
    + jnp.einsum('TD,DC->TC', p_TD, w_position_DD)[None]
  )


def add_mapped(
  x_BTD: Array, p_TD: Array, w_token_DD: None, w_position_DD: Array
) -> Array:
  """x + p W: a learned map of the position alone, then the sum."""
  del w_token_DD
  return x_BTD + jnp.einsum('TD,DC->TC', p_TD, w_position_DD)[None]


# position_join (3.5): does adding lose what concatenating would keep?
JOINS = {
  'add': Join(add),
  'concat_project': Join(
    concat_project, ('w_token_DD', 'w_position_DD'), 'join_identity'
  ),
  'concat_random': Join(
    concat_project, ('w_token_DD', 'w_position_DD'), 'join_random'
  ),
  'add_mapped': Join(add_mapped, ('w_position_DD',), 'join_identity'),
}
