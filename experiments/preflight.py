"""Whether a run fits and how fast it can be, before devices are asked for.

    python -m experiments.preflight --preset=big --topology=v5e:8x8 \\
      --mesh.fsdp=8 --model.compute_dtype=bfloat16 --data.max_tokens=200000

Compiles the real training step for that TPU slice, without a TPU (needs
`pip install 'transformer_jax[tpu]'`), or for the devices at hand. Prints what
one device holds and does in a step, and its roofline: no step is faster than
the slowest of compute, memory and network at their peaks; a real one is
slower. Exit codes: 0 it fits; 2 it does not, with what to change.
"""

import json
import types

from transformer_jax import flags
from transformer_jax.config import Config, ConfigError

EXTRA = (
  flags.Flag(
    'topology', str, '', 'TPU slice such as v5e:4x4; else devices at hand'
  ),
  flags.Flag(
    'length',
    int,
    0,
    'tokens a sentence in the batch; 0: data.max_length, the worst case',
  ),
  flags.Flag('json', bool, False, 'print one JSON line instead of a table'),
)


def rows(config: Config, found) -> list[tuple[str, str]]:
  """What is printed, name and value."""
  from transformer_jax.training import fit

  e, room, gib = found.estimate, found.room, fit.GIB
  lines = [
    ('devices', f'{room.devices} x {room.kind}'),
    ('batch', f'{found.tokens:,} tokens of each side'),
    ('parameters', f'{e.params / gib:.3f} GiB'),
    ('optimizer', f'{e.optimizer / gib:.3f} GiB'),
    ('activations', f'{e.activations / gib:.3f} GiB'),
    (
      'peak memory',
      f'{e.peak / gib:.3f} GiB of {room.memory / gib:.1f} '
      f'({e.peak / room.memory:.0%})',
    ),
    ('products', f'{e.flops / 1e12:.3f} TFLOP'),
    ('memory traffic', f'{e.moved / gib:.2f} GiB'),
  ]
  for kind, (times, sent) in sorted(e.exchanges.items()):
    lines.append((kind, f'{times} x, {sent / 1e6:,.1f} MB sent'))
  if found.device is None:
    return [*lines, ('roofline', f'no published rates of {room.kind}')]
  roof = fit.roofline(e, found.device)
  hours = roof.seconds * config.train.steps * room.devices / 3600
  return [
    *lines,
    (
      'roofline',
      f'{roof.seconds * 1e3:.2f} ms a step, bound by {roof.bound} (compute '
      f'{roof.compute * 1e3:.2f}, memory {roof.memory * 1e3:.2f}, network '
      f'{roof.network * 1e3:.2f})',
    ),
    ('at most', f'{found.tokens / roof.seconds:,.0f} target tokens/s'),
    ('MFU at most', f'{roof.compute / roof.seconds:.0%}'),
    ('at least', f'{hours:,.1f} chip-hours for {config.train.steps:,} steps'),
  ]


def main(config: Config, options: types.SimpleNamespace) -> int:
  """Compile, print, and refuse what does not fit."""
  import jax

  from transformer_jax.data.corpus import vocabulary_size
  from transformer_jax.training import fit, preflight

  if options.length < 0:
    raise ConfigError(f'--length={options.length} must not be negative')
  if options.topology:
    # The TPU is compiled for, never run on: it must not be looked for.
    jax.config.update('jax_platforms', 'cpu')
    devices = preflight.topology_devices(options.topology)
  else:
    devices = jax.devices()
  found = preflight.predict(
    config,
    vocabulary=vocabulary_size(config.data),
    length=options.length or config.data.max_length,
    devices=devices,
  )
  lines = rows(config, found)
  if options.json:
    print(json.dumps(dict(lines)))
  else:
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
      print(f'{name:<{width}}  {value}')
  fit.admit(found.estimate.peak, found.room)
  return 0


if __name__ == '__main__':
  flags.run(main, extra=EXTRA)
