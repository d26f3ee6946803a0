"""Attention maps: what they hold, their page and their program."""

import html.parser

import numpy as np
import pytest

from tests.inference.test_programs import call, no_lasting_compilation_cache
from transformer_jax.config import SITES, ConfigError
from transformer_jax.inference import attend
from transformer_jax.nn.transformer import variables
from transformer_jax.nn.watch import watch

__all__ = ['call', 'no_lasting_compilation_cache']
PAIR = '5 6 7 1', '1 7 6'


@pytest.fixture(scope='module')
def maps(run):
  return attend.attention_maps(
    run.model, run.params, PAIR, vocabularies=run.vocabularies
  )


def test_maps_are_weights_of_the_sentence(maps):
  assert maps.source == ['5', '6', '7', '1', '</s>']
  assert maps.target == ['1', '7', '6', '</s>']
  assert maps.read == ['<s>', '1', '7', '6']
  for site in SITES:
    rows, columns = maps.sides(site)
    weights_NHTS = maps.weights[site]
    assert weights_NHTS.shape == (1, 2, len(rows), len(columns))
    np.testing.assert_allclose(weights_NHTS.sum(-1), 1, rtol=1e-5)
    assert (np.triu(weights_NHTS, 1) == 0).all() == (site == 'decoder_self')


def test_to_watch_changes_nothing(run):
  arrays = np.array([[5, 6, 2, 0]]), np.array([[6, 5, 2]])

  def hidden(model):
    return model.apply(variables(run.params), *arrays, method='hidden')

  def kept(place, q, k, v, mask, how):
    return run.model.attention_fn(q, k, v, mask, how), place.x_BTD[0, 0, 0]

  watched, seen = watch(run.model, hidden, kept)
  np.testing.assert_array_equal(watched, hidden(run.model))
  assert {site: x_N.shape for site, x_N in seen.sites.items()} == dict.fromkeys(
    SITES, (1,)
  )
  assert seen.joined['encoder'].shape == (1, 4, 16)


def test_saved_maps_come_back(maps, tmp_path):
  attend.save(maps, tmp_path / 'attention.npz')
  again = attend.load(tmp_path / 'attention.npz')
  assert again[:3] == maps[:3]
  for site in SITES:
    np.testing.assert_array_equal(again.weights[site], maps.weights[site])


def by_hand(*weights):
  one = np.array(weights * 2, np.float32).reshape(1, 2, 2, 2)
  sites = {str(site): one for site in SITES}
  return attend.Maps(['나는', '<b>'], ['I', '</s>'], ['<s>', 'I'], sites)


def test_text_names_what_is_looked_at():
  text = attend.as_text(by_hand(0.95, 0.05, 0.5, 0.5))
  last = text.split('\n\n')[2].splitlines()
  assert last[1:] == ['  I -> 나는 0.95', '  </s> -> 나는 0.50, <b> 0.50']


def test_page_is_whole_and_escaped():
  page = attend.as_page(by_hand(0.9, 0.1, 0.2, 0.8))
  assert '나는' in page and '&lt;b&gt;' in page and '<b>' not in page
  assert 'http' not in page
  open_tags = []

  class Check(html.parser.HTMLParser):
    def handle_starttag(self, tag, attrs):
      if tag not in ('meta', 'link', 'img', 'br'):
        open_tags.append(tag)

    def handle_endtag(self, tag):
      if tag != 'p':  # Left open where a heading follows.
        assert open_tags.pop() == tag
      else:
        open_tags.remove('p')

  Check().feed(page)
  assert open_tags == []
  assert page.count('<td') == 3 * 4 and page.count('<img') == 3 * 2


def test_program(call, tmp_path):
  code, out, err = call(
    'attend', '--text=5 6 7', '--target_text=7 6', f'--out={tmp_path}/maps'
  )
  assert code == 0, err
  assert out.startswith('5 6 7\n7 6\n\nencoder self-attention')
  assert attend.load(tmp_path / 'maps' / 'attention.npz').target[0] == '7'
  assert (tmp_path / 'maps' / 'attention.html').read_text().startswith('<!doc')


@pytest.mark.parametrize(
  'flags, word',
  [
    (['--text= '], '--text is empty'),
    ([], '--text is needed'),
    (['--text=5', '--out=/dev/null/x', '--target_text=5'], 'cannot be written'),
  ],
)
def test_program_refuses(call, flags, word):
  code, _, err = call('attend', *flags)
  assert code == 2
  assert word in err and len(err.strip().splitlines()) == 1


def test_an_empty_side_has_no_map(run):
  with pytest.raises(ConfigError, match='the target sentence is empty'):
    attend.attention_maps(
      run.model, run.params, ('5', ' '), vocabularies=run.vocabularies
    )
