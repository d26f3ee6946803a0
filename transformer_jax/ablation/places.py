"""Does adding a position to a token lose one of them?

Two measures: how well a linear map finds the token, and how well the position,
in what the first layer reads; and which rows of a table of positions are
nearest to each other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.data.tokens import PAD
from transformer_jax.nn.transformer import Transformer, shift_right, variables
from transformer_jax.nn.watch import watch

RIDGE = 1e-3  # of the mean square of the features


class Decodability(NamedTuple):
  """Shares of held-out tokens that a linear map names rightly.

  `*_chance` is that of always naming the most frequent one.
  """

  token: float
  token_chance: float
  position: float
  position_chance: float


def linear_accuracy(x_MD: np.ndarray, label_M: np.ndarray) -> float:
  """Ridge regression on one-hot labels: the largest output names the label.

  It learns from the first three quarters of the rows; the others are its test.

  Args:
    x_MD: features, in random order.
    label_M: integers.

  >>> linear_accuracy(np.tile(np.eye(3), (8, 1)), np.tile(np.arange(3), 8))
  1.0
  """
  x_MD = np.asarray(x_MD, np.float64)
  x_MD = np.concatenate([x_MD, np.ones((len(x_MD), 1))], axis=1)
  names, label_M = np.unique(label_M, return_inverse=True)
  cut = len(x_MD) * 3 // 4
  known_MD, one_hot_MC = x_MD[:cut], np.eye(len(names))[label_M[:cut]]
  square_DD = known_MD.T @ known_MD
  ridge = RIDGE * np.trace(square_DD) / len(square_DD)
  w_DC = np.linalg.solve(
    square_DD + ridge * np.eye(len(square_DD)), known_MD.T @ one_hot_MC
  )
  return float(np.mean((x_MD[cut:] @ w_DC).argmax(1) == label_M[cut:]))


def _chance(label_M: np.ndarray) -> float:
  held_out_M = label_M[len(label_M) * 3 // 4 :]
  return float(np.unique(held_out_M, return_counts=True)[1].max()) / len(
    held_out_M
  )


def decodability(
  model: Transformer, params: Any, batch: Any
) -> dict[str, Decodability]:
  """{name: measures} of what the first layers of encoder and decoder read.

  Args:
    model: an encoder-decoder.
    params: its parameters.
    batch: source_BS and target_BT; some thousand tokens of each side.
  """

  def joined(params, batch):
    _, seen = watch(
      model,
      lambda watched: watched.apply(variables(params), *batch, method='hidden'),
      lambda place, *arguments: (model.attention_fn(*arguments), ()),
    )
    return seen.joined

  source_BS, target_BT = (jnp.asarray(side) for side in batch)
  found = jax.device_get(jax.jit(joined)(params, (source_BS, target_BT)))
  # The decoder reads its target a place later.
  read = {
    'encoder': (source_BS, source_BS != PAD),
    'decoder': (shift_right(target_BT), target_BT != PAD),
  }
  return {
    name: _of_side(found[name], *map(np.asarray, read[name])) for name in read
  }


def _of_side(
  x_BTD: np.ndarray, token_BT: np.ndarray, real_BT: np.ndarray
) -> Decodability:
  place_BT = np.broadcast_to(np.arange(real_BT.shape[1]), real_BT.shape)
  # A fixed order: what is asked is not all from the last sentences.
  order_M = np.random.default_rng(0).permutation(int(real_BT.sum()))
  x_MD, token_M, place_M = (
    array[real_BT][order_M] for array in (x_BTD, token_BT, place_BT)
  )
  return Decodability(
    linear_accuracy(x_MD, token_M),
    _chance(token_M),
    linear_accuracy(x_MD, place_M),
    _chance(place_M),
  )


class Nearest(NamedTuple):
  """For each row of a table the nearest other row, by cosine.

  other_T: its number.
  cosine_T: of the two.
  neighbours: share of rows whose nearest is the one before or after.
  """

  other_T: np.ndarray
  cosine_T: np.ndarray
  neighbours: float

  def pairs(self, count: int) -> list[tuple[int, int, float]]:
    """(row, row, cosine) of the `count` nearest pairs, each once."""
    found = {
      (min(row, other), max(row, other)): cosine
      for row, (other, cosine) in enumerate(
        zip(self.other_T.tolist(), self.cosine_T.tolist(), strict=True)
      )
    }
    nearest_first = sorted(found.items(), key=lambda item: -item[1])[:count]
    return [(*pair, cosine) for pair, cosine in nearest_first]


def nearest(table_TD: np.ndarray) -> Nearest:
  """Which rows of a table of positions are most alike.

  Args:
    table_TD: at least two rows.

  >>> found = nearest(np.array([[1, 0], [1, 0.1], [0, 1], [0.2, 1]]))
  >>> found.other_T.tolist()
  [1, 0, 3, 2]
  >>> [pair[:2] for pair in found.pairs(2)]
  [(0, 1), (2, 3)]
  """
  length_T1 = np.linalg.norm(table_TD, axis=1, keepdims=True)
  unit_TD = np.asarray(table_TD, np.float64) / np.maximum(length_T1, 1e-30)
  cosine_TT = unit_TD @ unit_TD.T
  np.fill_diagonal(cosine_TT, -np.inf)
  other_T = cosine_TT.argmax(1)
  rows_T = np.arange(len(other_T))
  return Nearest(
    other_T,
    cosine_TT[rows_T, other_T],
    float(np.mean(np.abs(other_T - rows_T) == 1)),
  )
