"""Hangul for pictures and page, on machines that have no font with it.

The face is Nanum Gothic (SIL Open Font License), from the package
koreanize-matplotlib. The package itself is never imported: its import changes
matplotlib's settings.
"""

import base64
import importlib.util
import io
import pathlib
from functools import lru_cache

from transformer_jax.config import ConfigError

PACKAGE = 'koreanize_matplotlib'
FAMILY = 'NanumGothic'
# Syllables, and the letters that stand alone.
BLOCKS = ((0xAC00, 0xD7A3), (0x3131, 0x318E))


def font_file() -> pathlib.Path:
  """The TrueType file; ConfigError where the package is not installed."""
  spec = importlib.util.find_spec(PACKAGE)
  if spec is None or spec.origin is None:
    raise ConfigError(
      'the font with Hangul is missing: pip install koreanize-matplotlib'
    )
  return pathlib.Path(spec.origin).parent / 'fonts' / 'NanumGothic.ttf'


@lru_cache(maxsize=1)
def families() -> tuple[str, ...]:
  """matplotlib families, tried in order for each glyph."""
  from matplotlib import font_manager

  font_manager.fontManager.addfont(str(font_file()))
  return ('DejaVu Sans', FAMILY)


def is_hangul(letter: str) -> bool:
  return any(low <= ord(letter) <= high for low, high in BLOCKS)


def web_font(text: str) -> str:
  """WOFF of the Hangul of a text, in base64; '' where it has none.

  >>> web_font('attention')
  ''
  """
  letters = ''.join(sorted({letter for letter in text if is_hangul(letter)}))
  if not letters:
    return ''
  from fontTools import subset, ttLib

  # A fixed date in the file: the same text gives the same page.
  font = ttLib.TTFont(font_file(), recalcTimestamp=False)
  options = subset.Options(layout_features=[], hinting=False)
  # Sources of the hinting program: nothing that a page shows.
  options.drop_tables += [f'TSI{i}' for i in (0, 1, 2, 3, 5)]
  cutter = subset.Subsetter(options)
  cutter.populate(text=letters)
  cutter.subset(font)
  font.flavor = 'woff'
  buffer = io.BytesIO()
  font.save(buffer)
  return base64.b64encode(buffer.getvalue()).decode('ascii')
