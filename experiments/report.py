"""Write the report of a study's folder again: one page, Markdown, CSV, JSON.

    python -m experiments.report --workdir=W

It reads W/study.json, the results of W/cells, W/summary.json, W/data and
W/tuning.json, trains nothing, and prints the path of W/report/index.html.
"""

import types

from transformer_jax import flags
from transformer_jax.config import Config

EXTRA = (flags.Flag('workdir', str, '', "the study's folder", required=True),)


def main(config: Config, options: types.SimpleNamespace) -> None:
  """Write, and say where."""
  from transformer_jax.ablation import report

  del config  # That of each arm is in the folder.
  print(report.write(options.workdir))


if __name__ == '__main__':
  flags.run(main, extra=EXTRA)
