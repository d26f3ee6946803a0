"""A run that was never trained: folder, model, vocabulary, checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.presets import PRESETS
from transformer_jax.config import Config
from transformer_jax.data.corpus import open_corpus
from transformer_jax.fields import override
from transformer_jax.inference import restore
from transformer_jax.nn import randomness
from transformer_jax.nn.transformer import initial_params
from transformer_jax.training import record
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.state import State


def drawn(initial, seed=0):
  """Parameters by numpy: to compile the real draws takes seconds."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.float32(rng.normal(size=x.shape) * 0.4),
    jax.eval_shape(initial, randomness.seed_key(0)),
  )


@pytest.fixture(scope='session')
def config():
  values = {**PRESETS['test'].overrides, 'decode.extra_length': 4}
  return override(Config(), values)


@pytest.fixture(scope='session')
def workdir(config, tmp_path_factory):
  """Checkpoints 8, 16 and 24, of which 16 is the best."""
  folder = tmp_path_factory.mktemp('run')
  corpus = open_corpus(config.data, workdir=str(folder), progress=print)
  fingerprints = dict(
    data=corpus.fingerprint, vocabulary=corpus.vocabularies.fingerprint
  )
  text = record.describe(config, fingerprints)
  record.write_atomically(folder / 'config.json', text)
  checkpoints = Checkpoints(
    folder / 'checkpoints',
    keep_latest=3,
    keep_best=1,
    best_metric_mode='min',
    config=text,
  )
  size = corpus.vocabularies.source.size
  initial = initial_params(
    config.model, source_vocabulary=size, target_vocabulary=size
  )
  for step, metric in ((8, 3.0), (16, 1.0), (24, 2.0)):
    params = jax.tree.map(jnp.asarray, drawn(initial, seed=step))
    state = State(jnp.int32(step), params, ())
    checkpoints.save(step, state, metric=metric)
  checkpoints.wait()
  return str(folder)


@pytest.fixture(scope='session')
def run(workdir, config):
  return restore.load_run(workdir, config)
