"""What a study looks at closer in one trained run of each arm.

Costlier than probes, so not over training: at the last step of the first seed,
on validation pairs. What is seen is in result.json and in the report's tables.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from transformer_jax.ablation import folder as folder_lib
from transformer_jax.ablation import heads, places
from transformer_jax.ablation.study import Study
from transformer_jax.config import Config
from transformer_jax.data.batches import Batch, Corpus
from transformer_jax.nn.positions import sinusoid_TD
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training.population import Member
from transformer_jax.training.state import numbers

PAIRS = 256  # of the validation split
SHOWN_SEED = 0
FOUND = 'views.json'


def of_heads(
  config: Config, model: Transformer, weights: Any, batch: Batch
) -> dict[str, Any]:
  """{site: distance [N, H, H] of heads, rise [N, H] of the loss without}."""
  arguments = config, model, weights, batch, numbers(config)
  far, rise = heads.head_distances(*arguments), heads.knock_out(*arguments)
  return {
    site: dict(distance=far[site].tolist(), rise=rise[site].tolist())
    for site in far
  }


def of_places(
  config: Config, model: Transformer, weights: Any, batch: Batch
) -> dict[str, Any]:
  """{side: decodability, and of a table of positions its `neighbours`}."""
  found = places.decodability(model, weights, batch)
  sides = {}
  for name, tokens_BT in zip(('encoder', 'decoder'), batch, strict=True):
    table_TD = _table(config, weights, name, tokens_BT.shape[1])
    near = None if table_TD is None else places.nearest(table_TD).neighbours
    sides[name] = dict(found[name]._asdict(), neighbours=near)
  return sides


def _table(
  config: Config, weights: Any, side: str, length: int
) -> np.ndarray | None:
  """Rows of positions that are read; None where there is no table."""
  kind = config.model.at('position', side)
  if kind == 'sinusoid':
    return np.asarray(sinusoid_TD(length, config.model.d_model))
  for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if kind == 'learned' and side in name and name.endswith('/w_TD'):
      return np.asarray(leaf)[:length]
  return None


# views of a study: (config, model, weights, batch) -> what is kept.
VIEWS: dict[str, Callable[..., dict[str, Any]]] = {
  'heads': of_heads,
  'places': of_places,
}


class Viewing:
  """The views of each member of the first seed after its last step."""

  def __init__(
    self, study: Study, members: Sequence[Member], corpus: Corpus
  ) -> None:
    self.names, self.members = study.views, members
    if not self.names:
      return
    pairs = corpus.pairs(members[0].config.data.validation_split)
    ids = np.arange(min(PAIRS, len(pairs)))
    width = [int(length_n[: len(ids)].max()) for length_n in pairs.lengths]
    self.batch = pairs.gather(ids, *width)
    self.sizes = corpus.vocabularies

  def look(self, step: int, n: int, weights: Any) -> None:
    """To the member's folder, if it is the last step of the first seed."""
    member = self.members[n]
    config = member.config
    last = step == config.train.steps and config.train.seed == SHOWN_SEED
    if not self.names or not last:
      return
    model = Transformer(
      config.model, self.sizes.source.size, self.sizes.target.size
    )
    found = {
      name: VIEWS[name](config, model, weights, self.batch)
      for name in self.names
    }
    folder_lib.write_json(member.folder / FOUND, found)

  def seen(self, n: int) -> dict[str, Any]:
    """What `look` found of a member; empty for other seeds."""
    path = self.members[n].folder / FOUND
    if not self.names or not path.exists():
      return {}
    return json.loads(path.read_text(encoding='utf-8'))
