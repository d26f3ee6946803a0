"""A small state, and folders of it as checkpoints."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.training.checkpoint import Checkpoints


class Moments(NamedTuple):
  count: jax.Array
  mean: dict
  empty: tuple


class Run(NamedTuple):
  step: jax.Array
  params: dict
  optimizer: tuple


def state(seed: int = 0, *, width: int = 3) -> Run:
  """A small state with the kinds of containers that optax has."""
  key = jax.random.key(seed)
  params = {
    'encoder': {'w_DF': jax.random.normal(key, (4, width))},
    'scale_D': jnp.arange(4.0) + seed,
  }
  moments = Moments(jnp.int32(seed), params, ())
  return Run(jnp.int32(seed), params, (moments, ()))


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def open_at(
  folder, *, latest=10, best=1, mode='min', config='{}', keep_every=0
):
  return Checkpoints(
    folder,
    keep_every=keep_every,
    keep_latest=latest,
    keep_best=best,
    best_metric_mode=mode,
    config=config,
  )


def saved(folder, steps, **kwargs):
  checkpoints = open_at(folder, **kwargs)
  for step in steps:
    checkpoints.save(step, state(step), metric=None)
  checkpoints.wait()
  return checkpoints


def assert_same(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def array_file(folder: pathlib.Path, step: int) -> pathlib.Path:
  """The largest file of a step: the one with the numbers."""
  files = (folder / str(step) / 'arrays').rglob('*')
  return max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
