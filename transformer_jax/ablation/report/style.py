"""How every picture looks: small enough for a phone, readable in grey.

A picture is drawn 3.9 inches wide, the width of a phone, so that its letters
are never shrunk there; wide screens and paper set several side by side.
"""

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transformer_jax.ablation.report import fonts

if TYPE_CHECKING:
  from matplotlib.figure import Figure

WIDTH = 3.9  # inches
# Okabe and Ito (2008), without yellow, which fades on white.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')
LINES = ('-', '--', '-.', ':')
GREY = '#555555'
TOGETHER = 5  # arms beside the baseline that one picture can hold


class Picture(NamedTuple):
  """A drawn picture.

  name: of its file. caption: below it. alt: what it shows, for who cannot
  see it. svg: the drawing.
  """

  name: str
  caption: str
  alt: str
  svg: bytes

  @property
  def uri(self) -> str:
    """The picture as an address that holds all of it."""
    body = base64.b64encode(self.svg).decode('ascii')
    return f'data:image/svg+xml;base64,{body}'


class Look(NamedTuple):
  """Colour, marker and line of one arm: any one of them tells it apart."""

  color: str
  marker: str
  line: str


def looks(names: Sequence[str]) -> dict[str, Look]:
  """The same look for an arm in every picture."""
  return {
    name: Look(
      COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)]
    )
    for i, name in enumerate(names)
  }


def short(name: str, letters: int = 44) -> str:
  """A label that fits a phone's picture; the tables have the whole name."""
  return name if len(name) <= letters else name[: letters - 1] + '…'


def plain(text: str) -> str:
  """Text that matplotlib does not take for a formula."""
  return text.replace('$', r'\$')


def draw(
  name: str,
  caption: str,
  alt: str,
  paint: Callable[['Figure'], Any],
  *,
  height: float,
) -> Picture:
  """A picture of this height in inches, painted on an empty figure."""
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  settings: dict[Any, Any] = {
    'font.family': list(fonts.families()),
    'font.size': 8.5,
    'axes.titlesize': 8.5,
    'axes.labelsize': 8.5,
    'axes.edgecolor': GREY,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'legend.frameon': False,
    'legend.fontsize': 8,
    'lines.linewidth': 1.6,
    'lines.markersize': 4.5,
    # Letters become outlines: no machine lacks them.
    'svg.fonttype': 'path',
    # The same results give the same bytes.
    'svg.hashsalt': name,
  }
  with matplotlib.rc_context(settings):
    figure = Figure(figsize=(WIDTH, height), layout='constrained')
    FigureCanvasAgg(figure)
    paint(figure)
    buffer = io.BytesIO()
    figure.savefig(
      buffer, format='svg', metadata={'Date': None}, facecolor='white'
    )
  return Picture(name, caption, alt, buffer.getvalue())


def groups(names: Sequence[str]) -> list[tuple[str, ...]]:
  """Arms that share a picture: the first, which is the baseline, is in all.

  >>> groups('abcdefgh')
  [('a', 'b', 'c', 'd', 'e', 'f'), ('a', 'g', 'h')]
  """
  first, rest = names[0], names[1:]
  cuts = range(0, max(len(rest), 1), TOGETHER)
  return [(first, *rest[cut : cut + TOGETHER]) for cut in cuts]


def legend_below(figure: 'Figure', axes: Any, columns: int = 2) -> None:
  """All arms under the picture, where they cover no data."""
  handles, labels = axes.get_legend_handles_labels()
  if handles:
    wide = max(map(len, labels)) > 20
    figure.legend(
      handles,
      labels,
      loc='outside lower left',
      ncols=1 if wide else columns,
      handlelength=3.2,
    )
