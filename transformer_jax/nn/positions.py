"""Position codes: where in the sentence a token stands (pure; section 3.5)."""

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


def add_positions(x_BTD: Array, p_TD: Array) -> Array:
  """x + p, the paper's way of joining token and position (3.5)."""
  return x_BTD + jnp.asarray(p_TD, x_BTD.dtype)[None]
