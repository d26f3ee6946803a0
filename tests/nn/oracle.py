"""The paper's formulas in plain loops of numpy float64: the one other way."""

import math

import numpy as np


def positional_encoding(length, d_model):
  table = np.zeros((length, d_model))
  for pos in range(length):
    for i in range(d_model // 2):
      angle = pos / 10000 ** (2 * i / d_model)
      table[pos, 2 * i] = math.sin(angle)
      table[pos, 2 * i + 1] = math.cos(angle)
  return table


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def attention(q, k, v, allowed):
  """One head, one sentence: q [T, K], k [S, K], v [S, E], allowed [T, S]."""
  out = np.zeros((len(q), v.shape[1]))
  for t in range(len(q)):
    scores = np.array(
      [q[t] @ k[s] / math.sqrt(q.shape[1]) for s in range(len(k))]
    )
    scores[~allowed[t]] = -np.inf
    out[t] = softmax(scores) @ v
  return out


def multi_head(p, x, y, allowed):
  total = 0.0
  for h in range(p['w_q_DHK'].shape[1]):
    head = attention(
      x @ p['w_q_DHK'][:, h],
      y @ p['w_k_DHK'][:, h],
      y @ p['w_v_DHE'][:, h],
      allowed,
    )
    total = total + head @ p['w_o_HED'][h]
  return total


def layer_norm(p, x):
  rows = []
  for row in x:
    deviation = math.sqrt(((row - row.mean()) ** 2).mean() + 1e-6)
    rows.append((row - row.mean()) / deviation * p['g_D'] + p['b_D'])
  return np.stack(rows)


def feed_forward(p, x):
  hidden = np.maximum(x @ p['w_1_DF'] + p['b_1_F'], 0)
  return hidden @ p['w_2_FD'] + p['b_2_D']


def layer(tree, n):
  if isinstance(tree, dict):
    return {name: layer(leaf, n) for name, leaf in tree.items()}
  return tree[n]


def logits(params, source, target):
  """Post-norm encoder-decoder, one sentence pair without padding: [T, V]."""
  table = params['embedding']['w_VD']
  d_model = table.shape[1]

  def embed(ids):
    return table[ids] * math.sqrt(d_model) + positional_encoding(
      len(ids), d_model
    )

  x = embed(source)
  layers = params['encoder']['layers']
  count = len(layers['feed_forward']['b_2_D'])
  everything = np.ones((len(source), len(source)), bool)
  for n in range(count):
    p = layer(layers, n)
    x = layer_norm(
      p['self_attention_sum']['norm'],
      x + multi_head(p['self_attention'], x, x, everything),
    )
    x = layer_norm(
      p['feed_forward_sum']['norm'], x + feed_forward(p['feed_forward'], x)
    )
  y = embed([1, *target[:-1]])
  T = len(target)
  past = np.tril(np.ones((T, T), bool))
  across = np.ones((T, len(source)), bool)
  for n in range(count):
    p = layer(params['decoder']['layers'], n)
    y = layer_norm(
      p['self_attention_sum']['norm'],
      y + multi_head(p['self_attention'], y, y, past),
    )
    y = layer_norm(
      p['cross_attention_sum']['norm'],
      y + multi_head(p['cross_attention'], y, x, across),
    )
    y = layer_norm(
      p['feed_forward_sum']['norm'], y + feed_forward(p['feed_forward'], y)
    )
  return y @ table.T


def smoothed_cross_entropy(row, target, smoothing):
  """-sum_v q(v) log p(v) with q = (1 - smoothing) onehot + smoothing / V."""
  p = softmax(row)
  loss = 0.0
  for v in range(len(row)):
    q = smoothing / len(row) + (1 - smoothing) * (v == target)
    loss -= q * math.log(p[v])
  return loss
