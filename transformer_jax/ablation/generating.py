"""What a run does by itself at its last step: what it writes, where it looks.

With teacher forcing the model reads the right tokens before each next one. Here
it reads its own tokens: so a leak from the future cannot make the score better.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from transformer_jax.ablation import cells as cells_lib
from transformer_jax.ablation import folder as folder_lib
from transformer_jax.ablation.study import SHOWN_SEED, WRITTEN, Study
from transformer_jax.config import Config, DecodeConfig
from transformer_jax.data.corpus import Corpus
from transformer_jax.inference.translate import translate_sentences
from transformer_jax.nn.transformer import Transformer
from transformer_jax.training.population import Member


def exact(
  written: Sequence[str], references: Sequence[str], language: str
) -> float:
  """Share of sentences that are right to the last token."""
  del language
  pairs = zip(written, references, strict=True)
  return sum(a == b for a, b in pairs) / len(references)


def pronoun(
  written: Sequence[str], references: Sequence[str], language: str
) -> float:
  """Share of pronouns of task:korean whose antecedent is still right."""
  tallies = by_distance(written, references, language).values()
  asked = sum(tally['asked'] for tally in tallies)
  return sum(tally['right'] for tally in tallies) / asked if asked else 0.0


def by_distance(
  written: Sequence[str], references: Sequence[str], language: str
) -> dict[str, dict[str, int]]:
  """{relative clauses between a pronoun and its noun: right and asked}."""
  from transformer_jax.data.korean.score import score

  bins = score(written, references, language).get('pronoun', {})
  return {str(clauses): tally._asdict() for clauses, tally in bins.items()}


# free_running of a study: (written, references, target language) -> score.
SCORES: dict[str, Callable[..., float]] = {
  'generated': exact,
  'pronoun': pronoun,
}
# free_running: what is kept beside the score, and how it is made.
BESIDE: dict[str, tuple[str, Callable[..., Any]]] = {
  'pronoun': ('pronoun_by_distance', by_distance),
}


class Generating:
  """Translations and attention of each member after its last step."""

  def __init__(
    self, study: Study, members: Sequence[Member], corpus: Corpus
  ) -> None:
    self.study, self.names = study, study.free_running
    self.members, self.corpus = members, corpus
    split = members[0].config.data.test_split
    self.pairs = corpus.references(split)[:WRITTEN]

  def look(self, step: int, n: int, weights: Any) -> None:
    """Write scores and maps to the member's folder, if it is the last step."""
    member = self.members[n]
    config = member.config
    if step != config.train.steps:
      return
    if self.names:
      scores = self._scores(config, self.model(config), weights)
      folder_lib.write_json(member.folder / folder_lib.GENERATED, scores)
    if config.train.seed == SHOWN_SEED:
      self._keep_maps(member, weights)

  def model(self, config: Config) -> Transformer:
    return cells_lib.model_of(self.study, config, self.corpus.vocabularies)

  def _scores(
    self, config: Config, model: Transformer, weights: Any
  ) -> dict[str, Any]:
    sources, references = zip(*self.pairs, strict=True)
    options = DecodeConfig(strategy='greedy')
    found = translate_sentences(
      model,
      weights,
      sources,
      vocabularies=self.corpus.vocabularies,
      options=options,
    )
    language = config.data.pair.rpartition('-')[2]
    parts = {name: SCORES[name] for name in self.names}
    parts |= dict(BESIDE[name] for name in self.names if name in BESIDE)
    return {
      name: part(found.texts, references, language)
      for name, part in parts.items()
    }

  def _keep_maps(self, member: Member, weights: Any) -> None:
    """The same sentence in every arm: the first of the test split."""
    from transformer_jax.inference import attend

    sizes = self.corpus.vocabularies
    model = Transformer(
      member.config.model, sizes.source.size, sizes.target.size
    )
    maps = attend.attention_maps(
      model, weights, self.pairs[0], vocabularies=sizes
    )
    attend.save(maps, member.folder / folder_lib.MAPS)

  def scores(self, n: int) -> dict[str, Any]:
    """What `look` found of a member; empty where it diverged before."""
    path = self.members[n].folder / folder_lib.GENERATED
    if not self.names or not path.exists():
      return {}
    return json.loads(path.read_text(encoding='utf-8'))
