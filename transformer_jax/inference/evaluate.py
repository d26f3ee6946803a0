"""Loss, perplexity, accuracy of given parameters; BLEU of their translations.

Nothing here reads files or flags: a training loop calls it with what it has.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.config import (
  BLEU_NAMES,
  SIDES,
  Config,
  ConfigError,
  DecodeConfig,
)
from transformer_jax.data.corpus import Corpus
from transformer_jax.data.tokens import Vocabularies
from transformer_jax.inference.grouping import (
  encode,
  group_by_length,
  pad,
)
from transformer_jax.inference.translate import Progress, translate_sentences
from transformer_jax.nn import implementations
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training import hosts, sharding
from transformer_jax.training.scores import (
  RowSums,
  Scores,
  row_sums,
  summarise,
)
from transformer_jax.training.state import ALONE, Alone

Params = Any


class PairScore(NamedTuple):
  """How well the model predicts one given target."""

  log_prob: float  # of the whole target, EOS included, nats
  correct: int  # tokens that were the likeliest
  tokens: int  # EOS included


def score_pairs(
  model: Transformer,
  params: Params,
  pairs: Sequence[tuple[str, str]],
  *,
  vocabularies: Vocabularies,
  max_tokens: int,
  first_line: int = 1,
  progress: Progress = lambda done, total: None,
  layout: Alone = ALONE,
) -> list[PairScore]:
  """The log-probability of each target given its source, in order.

  Args:
    model: an encoder-decoder.
    params: its parameters.
    pairs: source and target sentences, of any length.
    vocabularies: of the model.
    max_tokens: rows x the longer padded side of a batch.
    first_line: what an error calls the first pair.
    progress: is told of each batch.
    layout: of sentences over devices.

  Raises:
    ConfigError: see `grouping.encode`.
  """
  if not pairs:
    return []
  sides = [
    encode(
      sentences,
      vocabulary,
      config=model.config,
      side=side,
      first_line=first_line,
    )
    for sentences, vocabulary, side in zip(
      zip(*pairs, strict=True), vocabularies, SIDES, strict=True
    )
  ]
  limits = [model.config.longest(side) for side in SIDES]
  lengths = [max(map(len, rows)) + 1 for rows in zip(*sides, strict=True)]
  found, done = [PairScore(0.0, 0, 0)] * len(pairs), 0
  for group in group_by_length(lengths, max_tokens):
    rows = layout.rows(group.rows)
    batch = [
      pad(
        [side[i] for i in group.ids],
        rows,
        min(group.width, limit or group.width),
      )
      for side, limit in zip(sides, limits, strict=True)
    ]
    sums = hosts.fetch(row_sums(model, params, *layout.sentences(batch)))
    for i, loss, correct, tokens in zip(group.ids, *sums, strict=False):
      found[i] = PairScore(-float(loss), int(correct), int(tokens))
    done += len(group.ids)
    progress(done, len(pairs))
  return found


def scores_of_pairs(pairs: Sequence[PairScore]) -> Scores:
  """Scores of these pairs, all of them together; see `summarise`."""
  columns = np.array(pairs, np.float64).reshape(-1, 3).T
  return summarise([RowSums(-columns[0], columns[1], columns[2])])


TOKENIZERS = ('13a', 'intl', 'char', 'zh', 'ja-mecab', 'ko-mecab')

# data.text -> what chrF of such text is called, as BLEU_NAMES.
CHRF_NAMES = {'raw': 'chrf', 'pretokenized': 'tokenized_chrf'}


def tokenizer(text: str, asked: str = '') -> str:
  """sacrebleu's tokenizer of a data.text: the one asked for, or the usual.

  Raises:
    ConfigError: it is unknown, or asked for text that is tokenised.
  """
  if asked and asked not in TOKENIZERS:
    raise ConfigError(f'tokenize={asked} is not one of {", ".join(TOKENIZERS)}')
  if text == 'raw':
    return asked or TOKENIZERS[0]
  if asked:
    raise ConfigError(
      f'tokenize={asked} does not go with data.text={text}, which is scored '
      'as it stands'
    )
  return 'none'


def exact_share(hypotheses: Sequence[str], references: Sequence[str]) -> float:
  """The share of hypotheses that are their reference, spaces at ends aside.

  >>> exact_share(['a b', 'c'], ['a b ', 'd'])
  0.5
  """
  same = [
    one.strip() == other.strip()
    for one, other in zip(hypotheses, references, strict=True)
  ]
  return sum(same) / len(same)


def bleu(
  hypotheses: Sequence[str],
  references: Sequence[str],
  *,
  text: str,
  tokenize: str = '',
) -> dict[str, Any]:
  """BLEU and chrF of a corpus by sacrebleu, with their signatures.

  Args:
    hypotheses: a translation for each reference.
    references: one for each sentence.
    text: data.text; raw text is tokenised by sacrebleu and scored as `bleu`
      and `chrf`, tokens that are separated already are scored as they stand,
      as `tokenized_bleu` and `tokenized_chrf`.
    tokenize: sacrebleu's tokenizer of raw text, one of TOKENIZERS; '' is 13a,
      that of WMT; Chinese, Japanese and Korean have their own.

  Returns:
    Both scores by these names, each '..._signature', and length_ratio, tokens
    of the hypotheses over those of the references.

  Raises:
    ConfigError: for a tokenizer that is not installed; see `tokenizer`.
  """
  from sacrebleu.metrics.bleu import BLEU, BLEUScore
  from sacrebleu.metrics.chrf import CHRF

  own = tokenizer(text, tokenize)
  try:
    # force: tokenised input is what was asked for, not a mistake.
    metric = BLEU(tokenize=own, force=True)
  except (ImportError, RuntimeError) as error:
    raise ConfigError(
      f'tokenize={own} is not installed: {" ".join(str(error).split())}'
    ) from None
  result: dict[str, Any] = {}
  judges = {BLEU_NAMES[text]: metric, CHRF_NAMES[text]: CHRF()}
  for key, judge in judges.items():
    score = judge.corpus_score(list(hypotheses), [list(references)])
    result[key] = score.score
    result[f'{key}_signature'] = str(judge.get_signature())
    if isinstance(score, BLEUScore):
      result['length_ratio'] = score.sys_len / max(score.ref_len, 1)
  return result


def greedy_bleu(
  config: Config,
) -> Callable[..., dict[str, Any]]:
  """(params, corpus, its pairs, check, say) -> BLEU of greedy translations.

  Quick enough for a training loop to choose its best checkpoint by. By its
  name, which of text that is already tokenised is tokenised BLEU, and with its
  signature. `check` is called after each batch and may raise; `say` is told
  once what the number is.
  """
  # How to decode may change while a run goes on, and this number may not.
  options = DecodeConfig(strategy='greedy', max_tokens=config.decode.max_tokens)
  said = []

  def score(
    params: Params,
    corpus: Corpus,
    pairs: Sequence[tuple[str, str]],
    check: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
  ) -> dict[str, Any]:
    vocabularies = corpus.vocabularies
    sizes = vocabularies.source.size, vocabularies.target.size
    platform = jax.local_devices()[0].platform
    attend = implementations.choose(config.model, platform=platform)
    sources, references = zip(*pairs, strict=True)
    layout = sharding.layout(config.mesh)
    found = translate_sentences(
      Transformer(config.model, *sizes, attend),
      layout.to_decode(params),
      sources,
      vocabularies=vocabularies,
      options=options,
      layout=layout,
      progress=lambda done, total: check(),
    )
    text = config.data.text
    name, result = BLEU_NAMES[text], bleu(found.texts, references, text=text)
    signature = result[f'{name}_signature']
    if not said:
      said.append(signature)
      say(f'{name}: of greedy translations, {signature}')
    return {name: result[name], f'{name}_signature': signature}

  return score
