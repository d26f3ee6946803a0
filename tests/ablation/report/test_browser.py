"""The page in headless Chromium, as wide as a phone and as a desk.

Chromium opens no window under 500 pixels: the page is shown in a frame, to
which its style answers as to a window.
"""

import pathlib
import re
import shutil
import subprocess

import pytest

from tests.ablation.report import study_folder
from transformer_jax.ablation import report

NAMES = (
  'chromium',
  'chromium-browser',
  'google-chrome',
  'google-chrome-stable',
  'chrome',
)
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--enable-logging=stderr',
)
# What is wider than its window or is cut off, said to the frame around it.
MEASURE = """<script>
addEventListener('load', async () => {
  await document.fonts.ready;
  const wide = [...document.querySelectorAll('main *, header *')]
    .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
    .map((node) => node.tagName);
  const broken = [...document.images].filter((one) => !one.naturalWidth);
  const fonts = [...document.fonts].filter((one) => one.status == 'loaded');
  parent.postMessage([
    innerWidth, document.documentElement.scrollWidth, broken.length,
    document.images.length, fonts.length, ...wide].join(' '), '*');
});
</script>"""
FRAME = """<!DOCTYPE html><title>frame</title><link rel="icon" href="data:,">
<body><script>addEventListener('message', (event) => {
  document.body.dataset.measured = event.data; });</script>
<iframe src="page.html" style="border:0;width:%dpx;height:900px"></iframe>
"""

pytestmark = pytest.mark.skipif(
  BROWSER is None,
  reason=f'no browser on this machine: looked for {", ".join(NAMES)}',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """The report with long names, and a copy of its page that measures."""
  place = tmp_path_factory.mktemp('study')
  long = 'scale=inverse_d_k ' + 'position_join=concat_project ' * 3
  written = report.write(study_folder.make(place, extra=long + '긴이름' * 12))
  text = written.read_text(encoding='utf-8')
  copy = written.with_name('page.html')
  copy.write_text(text.replace('</body>', MEASURE + '</body>'), 'utf-8')
  return written.parent


@pytest.mark.parametrize('width', [400, 1400])
def test_no_errors_and_nothing_too_wide(width, folder, tmp_path):
  frame = folder / f'frame-{width}.html'
  frame.write_text(FRAME % width, encoding='utf-8')
  assert BROWSER is not None
  shown = subprocess.run(
    [
      BROWSER,
      *FLAGS,
      f'--user-data-dir={tmp_path}/profile',
      f'--window-size={max(width, 500) + 20},1000',
      '--virtual-time-budget=20000',
      '--dump-dom',
      frame.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert 'CONSOLE' not in shown.stderr
  found = re.search(r'data-measured="([^"]+)"', shown.stdout)
  assert found is not None, shown.stderr[-2000:]
  words = found.group(1).split()
  inner, scroll, broken, images, fonts = map(int, words[:5])
  assert inner == width
  assert scroll <= width
  assert words[5:] == []  # tags of what is wider than the window
  assert broken == 0
  assert images > 10
  assert fonts == 1  # the page's own Hangul is in use
