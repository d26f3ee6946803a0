"""The running moments of a batch norm come back with the parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.inference.conftest import drawn
from transformer_jax.data.corpus import open_corpus
from transformer_jax.fields import override
from transformer_jax.inference import restore
from transformer_jax.nn.transformer import STATISTICS, initial_weights
from transformer_jax.training import record
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.scores import row_sums
from transformer_jax.training.state import State


def test_moments_are_restored_averaged_and_used(config, tmp_path):
  config = override(config, {'model.norm': 'batch', 'decode.average': 2})
  corpus = open_corpus(config.data, workdir=str(tmp_path), progress=print)
  text = record.describe(config, {'data': '', 'vocabulary': ''})
  record.write_atomically(tmp_path / 'config.json', text)
  kept = Checkpoints(
    tmp_path / 'checkpoints',
    keep_latest=2,
    config=text,
  )
  size = corpus.vocabularies.source.size
  draw = initial_weights(
    config.model, source_vocabulary=size, target_vocabulary=size
  )
  params, statistics = jax.tree.map(jnp.asarray, drawn(draw, seed=0))
  statistics = jax.tree.map(lambda x: jnp.abs(x) + 0.5, statistics)
  for step, factor in ((1, 2.0), (2, 4.0)):
    scaled = jax.tree.map(lambda x, by=factor: by * x, statistics)
    kept.save(step, State(jnp.int32(step), params, (), scaled), metric=None)
  kept.wait()
  run = restore.load_run(str(tmp_path), config)
  assert run.steps == [2, 1]
  for found, start in zip(
    jax.tree.leaves(run.params[STATISTICS]),
    jax.tree.leaves(statistics),
    strict=True,
  ):
    np.testing.assert_allclose(found, 3.0 * start)
  batch = jnp.array([[5, 6, 2]], jnp.int32)
  once = {**run.params, STATISTICS: statistics}
  losses = [
    np.asarray(row_sums(run.model, weights, batch, batch).loss_B)
    for weights in (run.params, once)
  ]
  assert np.isfinite(losses).all() and losses[0] != losses[1]
