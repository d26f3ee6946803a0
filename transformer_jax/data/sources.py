"""Where sentences come from: the kinds of `data.source` that are text."""

from collections.abc import Callable

from transformer_jax.config import ConfigError, DataConfig
from transformer_jax.data.files import FileText
from transformer_jax.data.text import TextSource
from transformer_jax.data.tfds import TfdsText

SOURCES: dict[str, Callable[[str, DataConfig], TextSource]] = {
  'files': FileText,
  'tfds': TfdsText,
}


def open_text(data: DataConfig) -> TextSource:
  """The source of sentences that data.source names; tasks are not text.

  Raises:
    ConfigError: for an unknown kind of source, or one that is not there.
  """
  kind, _, name = data.source.partition(':')
  if kind not in SOURCES or not name:
    raise ConfigError(
      f'data.source={data.source} is not one of files:DIR, tfds:NAME/CONFIG, '
      'task:NAME'
    )
  return SOURCES[kind](name, data)
