"""From the model's width to heads and back (pure; section 3.2.2).

Letters: B batch, T positions, D width of the model, H heads, K width of a head,
E that of its values.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Projections(NamedTuple):
  """Names of the weights that make queries, keys and values; '' for none."""

  q: str
  k: str
  v: str


# projections: three of them (3.2.2), or one less, or none.
PROJECTIONS = {
  'separate': Projections('w_q_DHK', 'w_k_DHK', 'w_v_DHE'),
  'shared_query_key': Projections('w_k_DHK', 'w_k_DHK', 'w_v_DHE'),
  'shared_key_value': Projections('w_q_DHK', 'w_k_DHK', 'w_k_DHK'),
  'identity': Projections('', '', ''),
}


def project(x_BTD: Array, w_DHK: Array | None, *, heads: int) -> Array:
  """x W of each head; without a W, x cut into `heads` parts.

  Args:
    x_BTD: positions.
    w_DHK: weights, or None.
    heads: H; divides D where there are no weights.

  Returns:
    [B, T, H, K].
  """
  if w_DHK is None:
    B, T, _ = x_BTD.shape
    return x_BTD.reshape(B, T, heads, -1)
  return jnp.einsum('BTD,DHK->BTHK', x_BTD, w_DHK)


def join_heads(mixed_BTHE: Array, w_HED: Array | None) -> Array:
  """[head 1; ...; head H] W_O; without a W_O, the heads side by side (3.2.2).

  Args:
    mixed_BTHE: what each head read.
    w_HED: W_O, or None.

  Returns:
    [B, T, D], where D = H * E if there is no W_O.
  """
  if w_HED is None:
    B, T, _, _ = mixed_BTHE.shape
    return mixed_BTHE.reshape(B, T, -1)
  return jnp.einsum('BTHE,HED->BTD', mixed_BTHE, w_HED)


# output_projection: names of its weights.
OUTPUT_PROJECTIONS = {'linear': ('w_o_HED',), 'none': ()}
