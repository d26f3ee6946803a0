"""Attention maps of one sentence by a trained run.

    python -m experiments.attend --workdir=W --text="..." [--target_text="..."]

Without --target_text the run's own translation is looked at. What each token
looks at goes to stdout; WORKDIR/attention/ (or --out) gets attention.html, a
page of every layer and head, and attention.npz: one array [layers, heads,
queries, keys] for each of encoder_self, decoder_self and cross, and the
tokens.
"""

import pathlib
import sys
import types

from transformer_jax import flags
from transformer_jax.config import Config, ConfigError
from transformer_jax.inference import restore

EXTRA = (
  flags.Flag('workdir', str, '', "the run's folder", required=True),
  flags.Flag('text', str, '', 'the source sentence', required=True),
  flags.Flag('target_text', str, '', 'its translation; none: the run makes it'),
  flags.Flag('out', str, '', 'folder for page and numbers'),
)


def translation(run: restore.Run, text: str) -> str:
  """The run's best hypothesis.

  Raises:
    ConfigError: there is none to look at.
  """
  from transformer_jax.inference.translate import translate_sentences

  found = translate_sentences(
    run.model,
    run.params,
    [text],
    vocabularies=run.vocabularies,
    options=run.config.decode,
  ).texts[0]
  if not found.strip():
    raise ConfigError(
      'the run translates this to nothing: give --target_text="..."'
    )
  return found


def main(config: Config, options: types.SimpleNamespace) -> None:
  """Look, print, keep."""
  from transformer_jax.inference import attend
  from transformer_jax.training.compiled import use_cache
  from transformer_jax.training.record import write_atomically

  use_cache(config)
  run = restore.load_run(options.workdir, config)
  target = options.target_text.strip() or translation(run, options.text)
  maps = attend.attention_maps(
    run.model, run.params, (options.text, target), vocabularies=run.vocabularies
  )
  print(f'{options.text}\n{target}\n\n{attend.as_text(maps)}', flush=True)
  folder = pathlib.Path(options.out or f'{options.workdir}/attention')
  folder = folder.expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    attend.save(maps, folder / 'attention.npz')
    write_atomically(folder / 'attention.html', attend.as_page(maps))
  except OSError as error:
    raise ConfigError(f'{folder} cannot be written: {error.strerror}') from None
  print(f'{folder / "attention.html"}', file=sys.stderr)


if __name__ == '__main__':
  flags.run(main, extra=EXTRA, base=restore.config_of)
