"""Closer looks at one trained run of each arm.

They cost more than probes, so they are taken once: at the last step of the
first seed, on validation pairs. What they find is in result.json and in the
report's tables.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import folder as folder_lib
from transformer_jax.ablation import heads, places
from transformer_jax.ablation.study import SHOWN_SEED, Study
from transformer_jax.config import SIDES, Config
from transformer_jax.data.cache import Batch
from transformer_jax.data.corpus import Corpus
from transformer_jax.data.korean import links
from transformer_jax.data.korean.parse import parse
from transformer_jax.data.tokens import EOS, Vocabularies
from transformer_jax.nn.positions import JOINS, sinusoid_TD
from transformer_jax.nn.transformer import Transformer, variables
from transformer_jax.nn.watch import watch, weights_seen
from transformer_jax.training.population import Member
from transformer_jax.training.state import numbers

PAIRS = 256  # of the validation split
ALIGNED = 64  # of these, for links
NEAREST = 4  # pairs of positions
TABLES = {'encoder': 'source_positions', 'decoder': 'target_positions'}


def of_heads(
  config: Config,
  model: Transformer,
  weights: Any,
  batch: Batch,
  vocabularies: Vocabularies,
) -> dict[str, Any]:
  """{site: distance [N, H, H] of heads, rise [N, H] of the loss without}."""
  del vocabularies
  arguments = config, model, weights, batch, numbers(config)
  far, rise = heads.head_distances(*arguments), heads.knock_out(*arguments)
  return {
    site: dict(distance=far[site].tolist(), rise=rise[site].tolist())
    for site in far
  }


def of_places(
  config: Config,
  model: Transformer,
  weights: Any,
  batch: Batch,
  vocabularies: Vocabularies,
) -> dict[str, Any]:
  """{side: decodability, and which rows of its table of positions are near}.

  `neighbours` and `nearest`, the nearest pairs, are None without a table.
  """
  del vocabularies
  found = places.decodability(model, weights, batch)
  sides = {}
  for name, tokens_BT in zip(SIDES, batch, strict=True):
    table_TD = _table(config, weights, name, tokens_BT.shape[1])
    near: dict[str, Any] = dict(neighbours=None, nearest=None)
    if table_TD is not None:
      own = places.nearest(table_TD)
      near = dict(neighbours=own.neighbours, nearest=own.pairs(NEAREST))
    sides[name] = found[name]._asdict() | near
  return sides


def _table(
  config: Config, weights: Any, side: str, length: int
) -> np.ndarray | None:
  """Rows of positions that are read; None where there is no table."""
  kind = config.model.at('position', side)
  if kind == 'sinusoid':
    join = JOINS[config.model.position_join]
    _, width = join.widths(config.model.d_model, config.model.d_position)
    return np.asarray(sinusoid_TD(length, width))
  if kind == 'learned':
    return np.asarray(weights[TABLES[side]]['w_TD'])[:length]
  return None


def of_links(
  config: Config,
  model: Transformer,
  weights: Any,
  batch: Batch,
  vocabularies: Vocabularies,
) -> dict[str, Any]:
  """Error rate [N, H] of each head as an alignment of task:korean's words.

  A target token is linked with the source token that the head looks at most
  while it predicts it, if that is no end of a sentence. `pairs`: how many
  sentences were aligned.
  """
  source, target = config.data.pair.split('-')
  batch = Batch(*(side[:ALIGNED] for side in batch))
  most_NBHT = _most_seen(model, weights, batch)
  rates = []
  for row, most_NHT in enumerate(most_NBHT.swapaxes(0, 1)):
    ids = [[x for x in side[row].tolist() if x > EOS] for side in batch]
    texts = [v.decode([x])[0] for v, x in zip(vocabularies, ids, strict=True)]
    spans = [
      links.piece_spans(v.pieces(x), text)
      for v, x, text in zip(vocabularies, ids, texts, strict=True)
    ]
    meant = links.links(parse(texts[0], source), (source, target))
    gold = links.project(meant, *spans)
    lengths = len(spans[0]), len(spans[1])
    rates.append(
      [[_error(most_T, gold, *lengths) for most_T in n] for n in most_NHT]
    )
  return dict(error=np.mean(rates, axis=0).tolist(), pairs=len(rates))


def _most_seen(model: Transformer, weights: Any, batch: Batch) -> np.ndarray:
  """[N, B, H, T], the source place that a head looks at most."""

  def most(weights, batch):
    _, seen = watch(
      model,
      lambda watched: watched.apply(
        variables(weights), *batch, method='hidden'
      ),
      weights_seen(lambda place, weights_BHTS, mask: weights_BHTS.argmax(-1)),
    )
    return seen.sites['cross']

  arrays = tuple(map(jnp.asarray, batch))
  return np.asarray(jax.jit(most)(weights, arrays))


def _error(
  most_T: np.ndarray, gold: links.Projected, sources: int, targets: int
) -> float:
  most_T = most_T[:targets]
  found = [(int(s), t) for t, s in enumerate(most_T) if s < sources]
  return links.alignment_error_rate(found, gold)


# views of a study: (config, model, weights, batch, vocabularies) -> what is
# kept.
VIEWS: dict[str, Callable[..., dict[str, Any]]] = {
  'heads': of_heads,
  'places': of_places,
  'links': of_links,
}


class Viewing:
  """The views of each member of the first seed after its last step."""

  def __init__(
    self, study: Study, members: Sequence[Member], corpus: Corpus
  ) -> None:
    self.study, self.names, self.members = study, study.views, members
    if not self.names:
      return
    pairs = corpus.pairs(members[0].config.data.validation_split)
    ids = np.arange(min(PAIRS, len(pairs)))
    width = [int(length_n[: len(ids)].max()) for length_n in pairs.lengths]
    self.batch = pairs.gather(ids, *width)
    self.vocabularies = corpus.vocabularies

  def look(self, step: int, n: int, weights: Any) -> None:
    """Write to the member's folder, at the last step of the first seed."""
    member = self.members[n]
    config = member.config
    last = step == config.train.steps and config.train.seed == SHOWN_SEED
    if not self.names or not last:
      return
    model = cells_lib.model_of(self.study, config, self.vocabularies)
    found = {
      name: VIEWS[name](config, model, weights, self.batch, self.vocabularies)
      for name in self.names
    }
    folder_lib.write_json(member.folder / folder_lib.VIEWED, found)

  def seen(self, n: int) -> dict[str, Any]:
    """What `look` found of a member; empty for other seeds."""
    path = self.members[n].folder / folder_lib.VIEWED
    if not self.names or not path.exists():
      return {}
    return json.loads(path.read_text(encoding='utf-8'))
