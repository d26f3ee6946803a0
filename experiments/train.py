"""Train a Transformer, or go on with a run, or find it finished.

  python -m experiments.train --workdir=runs/tiny --preset=tiny \\
    --data.source=files:multi30k --data.pair=en-de

The same command starts the run, resumes it after a kill and says when it is
done. Exit codes: 0 finished; 2 something to be corrected first; 75 stopped by
SIGTERM, SIGUSR1 or Ctrl-C and saved, run the same command again; a second
Ctrl-C ends at once.
"""

import types

from transformer_jax import flags
from transformer_jax.config import Config
from transformer_jax.training import hosts

EXTRA = (
  flags.Flag('workdir', str, '', 'folder of the run', required=True),
  flags.Flag(
    'init_from',
    str,
    '',
    'WORKDIR or WORKDIR/checkpoints/STEP of another run, whose parameters '
    'this one begins with',
  ),
  flags.Flag('dry_run', bool, False, 'say what would be run, and write no run'),
  *hosts.FLAGS,
)


def main(config: Config, options: types.SimpleNamespace) -> int:
  hosts.start(options)
  from transformer_jax.inference.evaluate import greedy_bleu
  from transformer_jax.training import dry_run, peers
  from transformer_jax.training.loop import train

  own = dict(workdir=options.workdir, init_from=options.init_from)
  with peers.watched():
    if options.dry_run:
      dry_run.show(config, **own)
      return 0
    return train(config, bleu=greedy_bleu(config), **own)


if __name__ == '__main__':
  flags.run(main, extra=EXTRA)
