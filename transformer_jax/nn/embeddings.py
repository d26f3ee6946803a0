"""Tokens as vectors that know where they stand (sections 3.4 and 3.5)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.nn import positions
from transformer_jax.nn.module import Module

EMBEDDING_SCALES = {'sqrt_d_model': math.sqrt, 'none': lambda d_model: 1.0}


class Embedding(Module):
  """A table of vectors, times sqrt(d_model) on the way in (3.4)."""

  vocabulary: int

  def setup(self):
    c, V = self.config, self.vocabulary
    join = positions.JOINS[c.position_join]
    D, _ = join.widths(c.d_model, c.d_position)
    # The variance is that of d_model also where the embedding is narrower.
    self.w_VD = self.parameter('w_VD', 'embedding', (V, D), (V, c.d_model))

  def __call__(self, tokens_BT: Array) -> Array:
    scale = EMBEDDING_SCALES[self.config.embedding_scale](self.config.d_model)
    return jnp.take(self.w_VD, tokens_BT, axis=0) * self.dtype(scale)


class Tie(NamedTuple):
  """Names of the tables [V, D] that a model reads; equal names, one table.

  source: of the encoder's tokens.
  target: of the decoder's tokens.
  output: of the logits; a name of its own is a parameter, without a scale.
  """

  source: str
  target: str
  output: str


# tie (3.4).
TIES = {
  'all': Tie('embedding', 'embedding', 'embedding'),
  'decoder': Tie('source_embedding', 'target_embedding', 'target_embedding'),
  'none': Tie('source_embedding', 'target_embedding', 'unembedding_VD'),
}


class Position(NamedTuple):
  """How a stack knows where a token stands.

  table: (Positions, length) -> [length or more, width], joined to the
    embedding; zeros where the position comes in elsewhere.
  turn: (length, d_k) -> angles by which queries and keys are turned, or None.
  parameter: name of its parameter, or ''.
  """

  table: Callable[..., Any] = lambda own, length: jnp.zeros((length, own.width))
  turn: Callable[..., Any] = lambda length, d_k: None
  parameter: str = ''


# position (3.5).
POSITIONS = {
  'sinusoid': Position(
    lambda own, length: positions.sinusoid_TD(length, own.width)
  ),
  'learned': Position(lambda own, length: own.w_TD, parameter='w_TD'),
  'none': Position(),
  'rotary': Position(turn=positions.rotary),
  'relative': Position(parameter='w_bias_UH'),
}


class Positions(Module):
  """Where the tokens of a stack stand (3.5).

  Attributes:
    config: of the model.
    side: encoder or decoder.
  """

  side: str

  def setup(self):
    c = self.config
    join, D = positions.JOINS[c.position_join], c.d_model
    _, self.width = join.widths(D, c.d_position)
    self.kind = POSITIONS[c.at('position', self.side)]
    table, buckets = (c.max_positions, self.width), (positions.BUCKETS, c.heads)
    shapes = {'w_TD': ('positions', table), 'w_bias_UH': ('w_bias_UH', buckets)}
    own = {
      name: self.parameter(name, role, shape, shape)
      for name, (role, shape) in shapes.items()
      if name == self.kind.parameter
    }
    self.w_TD, self.w_bias_UH = own.get('w_TD'), own.get('w_bias_UH')
    maps = {
      name: self.parameter(name, join.role, (D, D), (D, D))
      for name in join.maps
    }
    self.w_token_DD = maps.get('w_token_DD')
    self.w_position_DD = maps.get('w_position_DD')

  def __call__(self, x_BTD: Array, start: Array | int, length: int) -> Array:
    """Embeddings joined with their positions.

    Args:
      x_BTD: embeddings of T tokens; narrower where position_join makes room.
      start: position of the first of them, traced or not.
      length: positions that there are in all, at least start + T.

    Returns:
      [B, T, D].
    """
    table_TD = jnp.asarray(self.kind.table(self, length), self.dtype)
    rows_TD = jax.lax.dynamic_slice_in_dim(table_TD, start, x_BTD.shape[1])
    join = positions.JOINS[self.config.position_join].join
    return join(x_BTD, rows_TD, self.w_token_DD, self.w_position_DD)

  def turn(
    self, start: Array | int, queries: int, length: int
  ) -> positions.Turn | None:
    """The angles of `queries` positions from `start` on, if there are any."""
    found = self.kind.turn(length, self.config.d_k)
    if found is None:
      return None
    return positions.Turn(
      *(
        jax.lax.dynamic_slice_in_dim(jnp.asarray(table_TC), start, queries)
        for table_TC in found
      )
    )

  def bias_HA(
    self, start: Array | int, queries: int, keys: int
  ) -> Array | None:
    """Of queries at `start`, start + 1, ... on keys 0, 1, ..., if any."""
    if self.w_bias_UH is None:
      return None
    return positions.relative_bias_HA(
      self.w_bias_UH.astype(jnp.float32),
      start,
      queries,
      keys,
      both_ways=self.side == 'encoder',
    )
