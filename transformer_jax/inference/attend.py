"""Attention maps of a sentence: numbers, text, and a page to look at.

The page holds its maps as coloured cells under the tokens themselves: a
browser has letters for every language, which a picture's font may not.
"""

import base64
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import SIDES, SITES, ConfigError
from transformer_jax.data.tokens import EOS, Vocabularies
from transformer_jax.inference.grouping import encode
from transformer_jax.nn.transformer import Transformer, variables
from transformer_jax.nn.watch import watch, weights_seen

TITLES = {
  'encoder_self': 'encoder self-attention',
  'decoder_self': 'decoder self-attention',
  'cross': 'encoder-decoder attention',
}
# Weights below this are not worth a word of text.
SHOWN = 0.1


class Maps(NamedTuple):
  """Attention of one pair of sentences.

  source: pieces that the encoder reads, end included.
  target: pieces that the decoder predicts, end included: its rows.
  read: pieces that it has read last when it does: `<s>`, then the target
    without its end; the keys of its self-attention.
  weights: {site: float32 [N, H, T, S]}.
  """

  source: list[str]
  target: list[str]
  read: list[str]
  weights: dict[str, np.ndarray]

  def sides(self, site: str) -> tuple[list[str], list[str]]:
    """Names of the rows and of the columns of a site's maps."""
    rows = self.source if site == 'encoder_self' else self.target
    return rows, self.read if site == 'decoder_self' else self.source


def attention_maps(
  model: Transformer,
  params: Any,
  pair: tuple[str, str],
  *,
  vocabularies: Vocabularies,
) -> Maps:
  """The weights of every site, layer and head, by teacher forcing.

  Args:
    model: an encoder-decoder.
    params: its parameters.
    pair: source and target sentence.
    vocabularies: of the model.

  Raises:
    ConfigError: a sentence is empty or too long for the model.
  """
  rows = []
  for name, side, text, vocabulary in zip(
    ('source', 'target'), SIDES, pair, vocabularies, strict=True
  ):
    (ids,) = encode([text], vocabulary, config=model.config, side=side)
    if not ids:
      raise ConfigError(f'the {name} sentence is empty: there is no map of it')
    rows.append([*ids, EOS])

  def weights(params, source_BS, target_BT):
    _, seen = watch(
      model,
      lambda watched: watched.apply(
        variables(params), source_BS, target_BT, method='hidden'
      ),
      weights_seen(lambda place, weights_BHTS, mask_BTS: weights_BHTS[0]),
    )
    return seen.sites

  arrays = [jnp.asarray([row], jnp.int32) for row in rows]
  found = jax.device_get(jax.jit(weights)(params, *arrays))
  source, target = (
    vocabulary.pieces(row)
    for vocabulary, row in zip(vocabularies, rows, strict=True)
  )
  return Maps(
    source, target, ['<s>', *target[:-1]], {s: found[s] for s in SITES}
  )


def save(maps: Maps, path: str | os.PathLike[str]) -> None:
  """An npz: `source`, `target`, `read`, and one array [N, H, T, S] a site."""
  content = io.BytesIO()
  names = maps._asdict()
  arrays: dict[str, Any] = {**names.pop('weights')}
  arrays |= {name: np.array(pieces) for name, pieces in names.items()}
  np.savez_compressed(content, **arrays)
  pathlib.Path(path).write_bytes(content.getvalue())


def load(path: str | os.PathLike[str]) -> Maps:
  """What `save` wrote."""
  with np.load(path, allow_pickle=False) as found:
    source, target, read = (
      found[name].tolist() for name in ('source', 'target', 'read')
    )
    weights = {site: found[site] for site in SITES}
  return Maps(source, target, read, weights)


def as_text(maps: Maps) -> str:
  """Of every row of the last layer the keys that heads look at most.

  Mean over heads; a site a paragraph.
  """
  return '\n\n'.join('\n'.join(_lines(maps, site)) for site in SITES)


def _lines(maps: Maps, site: str) -> Iterator[str]:
  yield f'{TITLES[site]}, last layer, mean over heads'
  rows, columns = maps.sides(site)
  weights_TS = maps.weights[site][-1].mean(0)
  for row, weights_S in zip(rows, weights_TS, strict=True):
    best = [s for s in np.argsort(-weights_S) if weights_S[s] >= SHOWN]
    keys = ', '.join(f'{columns[s]} {weights_S[s]:.2f}' for s in best)
    yield f'  {row} -> {keys or "all alike"}'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Attention: {{ source }}</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 1rem; color: #222 }
.wide { overflow-x: auto }
table { border-collapse: collapse }
th { font-weight: normal; font-size: 13px; padding: 0 4px; white-space: nowrap }
thead th { writing-mode: vertical-rl; text-align: left; padding: 4px 0 }
tbody th { text-align: right }
td { min-width: 20px; height: 20px; border: 1px solid #eee; padding: 0;
  print-color-adjust: exact; -webkit-print-color-adjust: exact }
figure { display: inline-block; margin: 8px 12px 8px 0 }
figure img { width: 120px; image-rendering: pixelated; border: 1px solid #ccc }
figcaption { font-size: 12px }
</style></head><body>
<h1>Attention</h1>
<p>{{ source }}<br>{{ target }}</p>
<p>Rows are queries, columns are keys; white is 0, dark is 1. Large maps are
the mean over heads, small ones are the heads. Decoder rows are named by the
token that is predicted there, the columns of its self-attention by the token
that was read.</p>
{% for site in sites %}<h2>{{ site.title }}</h2>
{% for layer in site.layers %}<h3>layer {{ loop.index }}</h3>
<div class="wide"><table><thead><tr><th></th>
{%- for key in site.columns %}<th>{{ key }}</th>{% endfor %}</tr></thead><tbody>
{% for row, cells in layer.rows %}<tr><th>{{ row }}</th>
{%- for cell in cells %}<td title="{{ '%.3f' % cell }}" style="background:
rgba(8,48,107,{{ '%.3f' % cell }})"></td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% for image in layer.heads %}<figure><img alt="head {{ loop.index }} of layer
{{ loop.index0 }}" src="data:image/png;base64,{{ image }}">
<figcaption>head {{ loop.index }}</figcaption></figure>
{% endfor %}{% endfor %}{% endfor %}</body></html>
"""


def as_page(maps: Maps) -> str:
  """One HTML page that needs nothing else, any script of the world in it."""
  import jinja2

  sites = []
  for site in SITES:
    rows, columns = maps.sides(site)
    layers = [
      dict(
        rows=list(zip(rows, weights_HTS.mean(0).tolist(), strict=True)),
        heads=[_picture(weights_TS) for weights_TS in weights_HTS],
      )
      for weights_HTS in maps.weights[site]
    ]
    sites.append(dict(title=TITLES[site], columns=columns, layers=layers))
  page = jinja2.Environment(autoescape=True).from_string(PAGE)
  return page.render(
    source=' '.join(maps.source), target=' '.join(maps.target), sites=sites
  )


def _picture(weights_TS: np.ndarray) -> str:
  """A PNG of one pixel a weight, in base64; a browser enlarges it."""
  from matplotlib import image

  content = io.BytesIO()
  image.imsave(content, weights_TS, cmap='Blues', vmin=0, vmax=1, format='png')
  return base64.b64encode(content.getvalue()).decode('ascii')
