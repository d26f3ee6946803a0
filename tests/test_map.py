"""The README's map of the package against the package."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent


def test_every_module_stands_in_the_map():
  readme = (ROOT / 'README.md').read_text(encoding='utf-8')
  found = re.search(r'## Files.*?```\n(.*?)\nexperiments/', readme, re.DOTALL)
  assert found is not None
  words = re.findall(r'\w+', found[1])
  modules = (ROOT / 'transformer_jax').rglob('*.py')
  names = sorted({path.stem for path in modules} - {'__init__'})
  missing = [name for name in names if name not in words]
  assert not missing, f'not in the map of the README: {missing}'
