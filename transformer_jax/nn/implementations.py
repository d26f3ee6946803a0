"""Which program computes attention: one rule from config and platform.

All of them compute `attention.attention`, with its signature; they differ in
memory and time. The platform is that of the device the program is for, an
argument: a program may be compiled for another machine than this one.
"""

from collections.abc import Callable

from jax import Array

from transformer_jax.config import ModelConfig
from transformer_jax.nn import attention

Attend = Callable[..., Array]


def automatic(config: ModelConfig, platform: str) -> Attend:
  """The one that serves the config best on this platform."""
  del config, platform
  return attention.attention


# attention_implementation: (config, platform) -> the function.
IMPLEMENTATIONS: dict[str, Callable[[ModelConfig, str], Attend]] = {
  'auto': automatic,
  'naive': lambda config, platform: attention.attention,
}


def choose(config: ModelConfig, *, platform: str) -> Attend:
  """The attention function of a model.

  Args:
    config: of the model.
    platform: cpu, gpu or tpu, where the program will run.
  """
  return IMPLEMENTATIONS[config.attention_implementation](config, platform)
