"""The vocabulary: nothing unknown, nothing lost, the same twice."""

from dataclasses import replace

import pytest

from transformer_jax.config import ConfigError
from transformer_jax.data.sources import open_text
from transformer_jax.data.tokens import (
  BOS,
  EOS,
  PAD,
  UNK,
  SymbolVocabulary,
  Vocabularies,
  learn,
  load_vocabularies,
)

UNSEEN = [
  '안녕하세요, 세계!',
  '뷁 쀍 the 🦊 and the 🐘🏽',
  'ÅÄÖ ¿qué? 中文 ελληνικά',
  'a @-@ b &apos;s',
  '',
]


def lines(data) -> list[str]:
  return [line for pair in open_text(data).pairs('train') for line in pair]


@pytest.mark.parametrize('model', ['bpe', 'unigram'])
@pytest.mark.parametrize('text', ['raw', 'pretokenized'])
def test_round_trip_without_unknown(data, text, model):
  data = replace(data, text=text, vocabulary_model=model, vocabulary_size=340)
  vocabulary = learn(lines(data), data)
  assert vocabulary.size == 340
  every = lines(data)[:20] + UNSEEN
  rows = vocabulary.encode(every)
  assert not any({PAD, BOS, EOS, UNK} & set(row) for row in rows)
  assert vocabulary.decode(rows) == every


def test_only_raw_text_is_normalised(data):
  wide, plain = 'ｂｒｅａｄ ①', 'bread 1'
  raw = learn(lines(data), replace(data, text='raw'))
  assert raw.encode([wide]) == raw.encode([plain])
  kept = learn(lines(data), replace(data, text='pretokenized'))
  assert kept.decode(kept.encode([wide])) == [wide]


def test_the_same_sentences_give_the_same_pieces(data):
  once, twice = (learn(lines(data), data) for _ in range(2))
  assert once.fingerprint == twice.fingerprint
  other = learn(lines(data), replace(data, vocabulary_size=380))
  assert other.fingerprint != once.fingerprint


def test_decoding_stops_at_the_end_and_skips_padding(data):
  vocabulary = learn(lines(data), data)
  (row,) = vocabulary.encode(['the fox'])
  framed = [BOS, PAD, *row, EOS, *row, PAD]
  assert vocabulary.decode([framed, []]) == ['the fox', '']
  assert ''.join(vocabulary.pieces(row)) == '▁the▁fox'


def test_sizes_that_cannot_be_reached(data):
  with pytest.raises(ConfigError, match=r'take at most (\d+)$') as error:
    learn(lines(data), replace(data, vocabulary_size=50_000))
  most = int(str(error.value).rsplit(' ', 1)[1])
  assert learn(lines(data), replace(data, vocabulary_size=most)).size == most
  with pytest.raises(ConfigError, match='vocabulary_size=100') as error:
    learn(lines(data), replace(data, vocabulary_size=100))
  least = int(str(error.value).rsplit(' ', 1)[1])
  with pytest.raises(ConfigError):
    learn(lines(data), replace(data, vocabulary_size=least - 1))
  assert learn(lines(data), replace(data, vocabulary_size=least)).size == least


def test_an_error_of_the_reader_is_not_swallowed(data):
  def broken():
    yield from lines(data)
    raise ConfigError('line 7 is bad')

  with pytest.raises(ConfigError, match='line 7 is bad'):
    learn(broken(), data)


def test_symbols():
  vocabulary = SymbolVocabulary(['0', '1', '코'])
  assert vocabulary.size == 7
  assert vocabulary.encode(['1 코 0', '', '2 <s>']) == [
    [5, 6, 4],
    [],
    [UNK] * 2,
  ]
  assert vocabulary.decode([[BOS, 5, 6, EOS, 4], [UNK]]) == ['1 코', '<unk>']


@pytest.mark.parametrize('kind', ['joint', 'separate', 'symbols'])
def test_saved_and_loaded(data, tmp_path, kind):
  learned = learn(lines(data), data)
  symbols = SymbolVocabulary(['a', 'b'])
  other = learn(lines(data), replace(data, vocabulary_size=380))
  both = {
    'joint': Vocabularies(learned, learned),
    'separate': Vocabularies(learned, other),
    'symbols': Vocabularies(symbols, symbols),
  }[kind]
  folder = tmp_path / 'vocabulary'
  both.save(str(folder))
  again = load_vocabularies(str(folder))
  assert again.fingerprint == both.fingerprint
  assert (again.source is again.target) == (kind != 'separate')
  assert again.source.encode(['a b']) == both.source.encode(['a b'])


def test_a_changed_or_missing_vocabulary_is_refused(tmp_path):
  words = SymbolVocabulary(['a', 'b'])
  Vocabularies(words, words).save(str(tmp_path / 'v'))
  (tmp_path / 'v' / 'joint.words').write_text('a\nc')
  with pytest.raises(ConfigError, match='is not the one saved there'):
    load_vocabularies(str(tmp_path / 'v'))
  with pytest.raises(ConfigError, match='no vocabulary in'):
    load_vocabularies(str(tmp_path / 'none'))


@pytest.mark.parametrize(
  ('name', 'cut'),
  [
    ('joint.model', 1000),
    ('joint.model', 0),
    ('fingerprint.json', 20),
    ('fingerprint.json', 0),
  ],
)
def test_a_vocabulary_cut_short_is_refused_in_one_line(
  data, tmp_path, name, cut
):
  learned = learn(lines(data), data)
  Vocabularies(learned, learned).save(str(tmp_path))
  path = tmp_path / name
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(ConfigError) as refused:
    load_vocabularies(str(tmp_path))
  line = str(refused.value)
  assert line.startswith(f'the vocabulary in {tmp_path} is damaged')
  assert 'remove it and run' in line and '\n' not in line


def test_decoded_text_is_one_line(data):
  vocabulary = learn(lines(data), data)
  every = vocabulary.pieces(range(vocabulary.size))
  new_line, carriage_return = every.index('<0x0A>'), every.index('<0x0D>')
  (row,) = vocabulary.encode(['the fox'])
  spelled = [*row, new_line, *row, carriage_return, new_line]
  assert vocabulary.decode([spelled]) == ['the fox  the fox  ']
