"""Probes of a study's runs while they train."""

import contextlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_jax.ablation import folder as folder_lib
from transformer_jax.ablation.study import Study
from transformer_jax.data.corpus import Corpus
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training.population import Member
from transformer_jax.training.state import numbers, program

PAIRS = 32  # validation pairs that a probe looks at


def _finite(value: Any) -> Any:
  """nan and infinity become None: JSON has no word for them."""
  if isinstance(value, list):
    return [_finite(one) for one in value]
  return value if math.isfinite(value) else None


class Probing:
  """Probes of each member at its evaluations, kept beside its metrics."""

  def __init__(
    self, study: Study, members: Sequence[Member], corpus: Corpus
  ) -> None:
    self.names, self.members = study.probes, members
    if not self.names:
      return
    config = members[0].config
    pairs = corpus.pairs(config.data.validation_split)
    ids = np.arange(min(PAIRS, len(pairs)))
    width = [int(length_n[: len(ids)].max()) for length_n in pairs.lengths]
    self.batch = pairs.gather(ids, *width)
    sizes = corpus.vocabularies
    self.model = Transformer(
      program(config).model, sizes.source.size, sizes.target.size
    )

  def look(self, step: int, n: int, weights: Any) -> None:
    """Add a line to probes.jsonl."""
    if not self.names:
      return
    from transformer_jax.ablation.probes import probe

    config = self.members[n].config
    found = probe(
      program(config), self.model, weights, self.batch, numbers(config)
    )
    kept = {
      site: {
        name: _finite(x) for name, x in values.items() if name in self.names
      }
      for site, values in found.items()
    }
    path = self.members[n].folder / folder_lib.PROBED
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(dict(step=step, sites=kept)) + '\n')

  def cut_back(self, n: int, steps: Sequence[int]) -> str:
    """Keep the lines of these steps; the file's name where one is missing."""
    if not self.names:
      return ''
    rows = self._rows(n)
    kept = [dict(step=at, sites=rows[at]) for at in steps if at in rows]
    text = ''.join(json.dumps(row) + '\n' for row in kept)
    folder_lib.write_text(self.members[n].folder / folder_lib.PROBED, text)
    return folder_lib.PROBED * (len(kept) < len(steps))

  def series(self, n: int) -> dict[str, Any]:
    """{site: {probe: series}}, over the steps that were looked at."""
    if not self.names:
      return {}
    from transformer_jax.ablation.probes import over_training

    return over_training(sorted(self._rows(n).items()))

  def _rows(self, n: int) -> dict[int, Any]:
    """{step: {site: values}}, of every line that is whole."""
    path = self.members[n].folder / folder_lib.PROBED
    rows: dict[int, Any] = {}
    if path.exists():
      text = path.read_text(encoding='utf-8', errors='replace')
      for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
          row = json.loads(line)
          rows[row['step']] = row['sites']
    return rows
