"""Position codes: where in the sentence a token stands (pure; section 3.5)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
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


class Turn(NamedTuple):
  """Angles of each position, by which its pairs of features are turned."""

  cosine_TC: np.ndarray | Array  # C = K / 2 pairs
  sine_TC: np.ndarray | Array


def rotary(length: int, d_k: int) -> Turn:
  """Angle pos / 10000^(2c / d_k) of pair c: the sinusoid's frequencies.

  Args:
    length: T, rows.
    d_k: K, even.

  Raises:
    ValueError: when d_k is odd.

  Reference: Su et al. 2021 (RoFormer), eq. 15.
  """
  table_TK = sinusoid_TD(length, d_k)
  return Turn(table_TK[:, 1::2], table_TK[:, 0::2])


def turn(x_BTHK: Array, by: Turn) -> Array:
  """x with features 2c and 2c + 1 turned together, by the position's angle.

  The product of a turned query and a turned key depends on how far apart they
  stand, not on where (see the tests).

  Args:
    x_BTHK: queries or keys.
    by: angles of these T positions.

  Returns:
    An array like x, of the same lengths.

  >>> quarter = Turn(jnp.zeros((1, 1)), jnp.ones((1, 1)))
  >>> turn(jnp.array([[[[1.0, 0.0]]]]), quarter).tolist()
  [[[[0.0, 1.0]]]]
  """
  cosine, sine = (
    jnp.asarray(t, x_BTHK.dtype)[None, :, None]
    for t in (by.cosine_TC, by.sine_TC)
  )
  even, odd = x_BTHK[..., 0::2], x_BTHK[..., 1::2]
  pairs = even * cosine - odd * sine, even * sine + odd * cosine
  return jnp.stack(pairs, axis=-1).reshape(x_BTHK.shape)


BUCKETS = 32  # of distances, as in T5
FAR = 128  # distances from here on share the last bucket


def distance_buckets(length: int, *, both_ways: bool) -> np.ndarray:
  """The bucket of each distance: exact when near, coarser when far.

  Args:
    length: positions of the sequence.
    both_ways: half of the buckets for keys before the query, half for keys
      after it; else all for those before.

  Returns:
    int32 [2 * length - 1]; entry i is of distance i - (length - 1), which is
    the key's position minus the query's.

  >>> distance_buckets(3, both_ways=True).tolist()
  [2, 1, 0, 17, 18]
  >>> distance_buckets(3, both_ways=False).tolist()
  [2, 1, 0, 0, 0]

  Reference: Raffel et al. 2020 (T5), section 2.1 and their code.
  """
  distance = np.arange(-(length - 1), length)
  buckets = BUCKETS // 2 if both_ways else BUCKETS
  side = np.where(distance > 0, buckets, 0) if both_ways else 0
  apart = np.abs(distance) if both_ways else np.maximum(-distance, 0)
  near = buckets // 2
  ratio = np.log(np.maximum(apart, 1) / near) / np.log(FAR / near)
  far = near + (ratio * (buckets - near)).astype(int)
  far = np.minimum(far, buckets - 1)
  return (side + np.where(apart < near, apart, far)).astype(np.int32)


def relative_bias_HA(
  w_UH: Array, start: Array | int, queries: int, keys: int, *, both_ways: bool
) -> Array:
  """What is added to a score, by how far apart query and key are.

  Args:
    w_UH: float32, one number a bucket and head.
    start: position of the first query; the first key's is 0.
    queries: T.
    keys: S, at least start + T.
    both_ways: see `distance_buckets`.

  Returns:
    float32 [H, T + S - 1], of the distances that these queries and keys have:
    see `attention.spread_HTS`.
  """
  bucket_of = jnp.asarray(distance_buckets(keys, both_ways=both_ways))
  bucket_A = jax.lax.dynamic_slice_in_dim(
    bucket_of, keys - queries - start, queries + keys - 1
  )
  return jnp.take(w_UH, bucket_A, axis=0).T


class Join(NamedTuple):
  """How token and position become one vector.

  join: (x_BTD, p_TD, w_token_DD, w_position_DD) -> [B, T, D]; a matrix that
    `maps` does not name is None.
  maps: the matrices that it needs.
  role: what they are for, to be drawn by.
  widths: (d_model, d_position) -> those of the embedding and of the position.
  """

  join: Callable[..., Array]
  maps: tuple[str, ...] = ()
  role: str = ''
  widths: Callable[[int, int], tuple[int, int]] = lambda D, P: (D, D)


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


def concat(x_BTC: Array, p_TP: Array, *_: None) -> Array:
  """[x; p]: the embedding is narrower, the widths sum to d_model.

  What collides in a sum is told apart:

  >>> x = jnp.array([[[1, 2, 3], [2, 2, 2]]])
  >>> p = jnp.array([[3, 2, 1], [2, 2, 2]])
  >>> add(x, p).tolist()
  [[[4, 4, 4], [4, 4, 4]]]
  >>> concat(x, p).tolist()
  [[[1, 2, 3, 3, 2, 1], [2, 2, 2, 2, 2, 2]]]
  """
  p_BTP = jnp.broadcast_to(p_TP[None], (*x_BTC.shape[:2], p_TP.shape[1]))
  return jnp.concatenate([x_BTC, p_BTP], axis=-1)


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
  'concat_narrow': Join(concat, widths=lambda D, P: (D - P, P)),
}
