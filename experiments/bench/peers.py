"""The same training step in PyTorch, to be measured against.

`torch.nn.Transformer` with what it leaves to its user: one embedding for
source, target and output, times sqrt(d_model), sinusoids, masks, dropout,
label-smoothed cross entropy and Adam. Its biases in attention are the only
thing that ours has not. Torch is imported by the functions here and by
nothing else: it is an optional dependency.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.bench.measure import Contestant, cores
from transformer_jax.config import Config
from transformer_jax.data.tokens import BOS, PAD
from transformer_jax.nn.norms import EPSILON


class Peer(NamedTuple):
  """A way to run it.

  autocast: the dtype of matrix products.
  adam: which implementation of Adam.
  sites: where dropout is; `ours` is where ours has it, `torch` also on the
    attention weights and inside the feed-forward, as nn.Transformer by itself.
  """

  name: str
  autocast: str
  adam: str
  sites: str


PEERS = (
  Peer('torch f32, fused Adam', 'float32', 'fused', 'ours'),
  Peer('torch bf16 autocast, fused Adam', 'bfloat16', 'fused', 'ours'),
  Peer('torch f32, foreach Adam', 'float32', 'foreach', 'ours'),
  Peer('torch f32, its own dropout sites', 'float32', 'fused', 'torch'),
)


def installed() -> bool:
  """True where torch can be imported."""
  try:
    import torch  # pyright: ignore
  except ImportError:
    return False
  return bool(torch.__version__)


def transformer(
  config: Config, *, vocabulary: int, longest: int, sites: str
) -> Any:
  """A torch module: (source_BS, target_BT) -> logits_BTV.

  Args:
    config: of our model.
    vocabulary: V, joint.
    longest: positions that it knows.
    sites: see `Peer`.

  Raises:
    ValueError: nn.Transformer has no such heads.
  """
  import torch  # pyright: ignore

  from transformer_jax.nn.positions import sinusoid_TD

  c = config.model
  if c.heads * c.d_k != c.d_model or c.d_k != c.d_v:
    raise ValueError('nn.Transformer takes d_k = d_v = d_model / heads')

  class TorchTransformer(torch.nn.Module):
    def __init__(self) -> None:
      super().__init__()
      self.core = core(config, sites)
      self.embedding = torch.nn.Embedding(vocabulary, c.d_model)
      torch.nn.init.normal_(self.embedding.weight, std=c.d_model**-0.5)
      self.dropout = torch.nn.Dropout(c.dropout)
      self.table_TD = torch.from_numpy(sinusoid_TD(longest, c.d_model))

    def embed(self, tokens_BT: Any) -> Any:
      x_BTD = self.embedding(tokens_BT) * math.sqrt(c.d_model)
      return self.dropout(x_BTD + self.table_TD[: tokens_BT.shape[1]])

    def forward(self, source_BS: Any, target_BT: Any) -> Any:
      shifted_BT = torch.nn.functional.pad(target_BT[:, :-1], (1, 0), value=BOS)
      padding_BS = source_BS == PAD
      T = target_BT.shape[1]
      future_TT = torch.ones(T, T, dtype=torch.bool).triu(1)
      h_BTD = self.core(
        self.embed(source_BS),
        self.embed(shifted_BT),
        tgt_mask=future_TT,
        tgt_is_causal=True,
        src_key_padding_mask=padding_BS,
        memory_key_padding_mask=padding_BS,
      )
      return h_BTD @ self.embedding.weight.T

  return TorchTransformer()


def core(config: Config, sites: str) -> Any:
  """nn.Transformer of these sizes: post-norm, ReLU, no norm at the end."""
  import torch  # pyright: ignore

  c = config.model
  sizes: dict[str, Any] = dict(
    d_model=c.d_model,
    nhead=c.heads,
    dim_feedforward=c.d_ff,
    dropout=c.dropout,
    layer_norm_eps=EPSILON,
    batch_first=True,
  )
  found = torch.nn.Transformer(
    custom_encoder=torch.nn.TransformerEncoder(
      torch.nn.TransformerEncoderLayer(**sizes),
      c.layers,
      enable_nested_tensor=False,
    ),
    custom_decoder=torch.nn.TransformerDecoder(
      torch.nn.TransformerDecoderLayer(**sizes), c.layers
    ),
    **sizes,
  )
  if sites == 'ours':
    module: Any
    for module in found.modules():
      if isinstance(module, torch.nn.MultiheadAttention):
        module.dropout = c.attention_dropout
      elif hasattr(module, 'linear1'):
        module.dropout.p = c.feed_forward_dropout
  return found


def loss_of(
  model: Any, source_BS: Any, target_BT: Any, smoothing: float
) -> Any:
  """Label-smoothed cross entropy, the mean over target tokens."""
  import torch  # pyright: ignore

  logits_BTV = model(source_BS, target_BT)
  return torch.nn.functional.cross_entropy(
    logits_BTV.flatten(0, 1),
    target_BT.flatten(),
    ignore_index=PAD,
    label_smoothing=smoothing,
  )


def training(
  config: Config,
  peer: Peer,
  *,
  vocabulary: int,
  sources_NBS: np.ndarray,
  targets_NBT: np.ndarray,
) -> Contestant:
  """One turn: a training step on each of N batches; gives the last loss."""
  import torch  # pyright: ignore

  torch.set_num_threads(cores())
  torch.manual_seed(config.train.seed)
  model = transformer(
    config,
    vocabulary=vocabulary,
    longest=max(sources_NBS.shape[2], targets_NBT.shape[2]),
    sites=peer.sites,
  )
  optimizer = torch.optim.Adam(
    model.parameters(),
    lr=1e-3,
    betas=(config.optim.beta1, config.optim.beta2),
    eps=config.optim.epsilon,
    fused=peer.adam == 'fused',
    foreach=peer.adam == 'foreach',
  )
  sources, targets = (
    torch.from_numpy(x.astype(np.int64)) for x in (sources_NBS, targets_NBT)
  )
  precision: Callable[[], Any] = contextlib.nullcontext
  if peer.autocast == 'bfloat16':
    precision = functools.partial(torch.autocast, 'cpu', dtype=torch.bfloat16)

  def work() -> float:
    loss = torch.zeros(())
    for source_BS, target_BT in zip(sources, targets, strict=True):
      optimizer.zero_grad(set_to_none=True)
      with precision():
        loss = loss_of(
          model, source_BS, target_BT, config.optim.label_smoothing
        )
      loss.backward()
      optimizer.step()
    return loss.item()

  return Contestant(peer.name, work)
