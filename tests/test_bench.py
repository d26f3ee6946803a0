"""The benchmark: what it counts, how it compares, that every suite runs."""

import dataclasses
import json
import math
import os
import statistics
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import (
  attention,
  breakdown,
  cost,
  data,
  decode,
  measure,
  memory,
  products,
  train,
)
from experiments.presets import PRESETS
from transformer_jax import flags
from transformer_jax.ablation import cost as ablation_cost
from transformer_jax.config import Config, ConfigError, DataConfig
from transformer_jax.data.cache import Batch
from transformer_jax.fields import FIELDS, override
from transformer_jax.training import fit
from transformer_jax.training.state import loss_function, numbers

SIZES = train.Sizes(rows=8, length=4, steps=2)


def tiny_config(**changes: int | float | str) -> Config:
  """The test preset with a vocabulary of 32."""
  config = override(Config(), PRESETS['test'].overrides)
  changed = {name.replace('__', '.'): x for name, x in changes.items()}
  return override(config, {'data.vocabulary_size': 32} | changed)


def test_work_of_the_tiny_step_by_hand():
  config = override(Config(), PRESETS['tiny'].overrides)
  shape = products.Shape(64, 32, 32, vocabulary=10_000, chunk=1024)
  found = products.products_of(config.model, shape)
  tokens = 64 * 32
  # Three products of 2 operations for each weight and token.
  encoder = 4 * (4 * 128 * 128 + 2 * 128 * 256)
  decoder = 4 * (8 * 128 * 128 + 2 * 128 * 256)
  assert products.flop(found, 'layers') == 6 * tokens * (encoder + decoder)
  assert products.flop(found, 'loss') == 6 * tokens * 128 * 10_000
  # Twelve attentions, scores and mix, each with two gradients.
  assert products.flop(found, 'attention') == 12 * 6 * 2 * tokens * 32 * 128
  assert products.flop(found) == pytest.approx(33.0e9, rel=0.01)


def test_padded_chunks_of_the_loss_are_counted():
  model = tiny_config().model
  shape = products.Shape(8, 4, 5, vocabulary=32, chunk=24)
  found = products.products_of(model, shape)
  # 40 tokens in two chunks of 24.
  assert products.flop(found, 'loss') == 6 * 48 * 16 * 32


def test_work_is_that_of_the_step():
  counted = breakdown.counted_products(tiny_config(), SIZES)
  assert products.flop(counted) > 0
  # The model is the same, whichever program makes it.
  for same in (
    tiny_config(model__remat='layer'),
    tiny_config(model__attention_implementation='blockwise'),
  ):
    assert breakdown.counted_products(same, SIZES) == counted
  for other in (
    tiny_config(model__score='additive'),
    tiny_config(model__output_projection='none'),
  ):
    with pytest.raises(ConfigError, match='--suite=train takes any'):
      breakdown.counted_products(other, SIZES)


def test_take_turns_changes_who_begins():
  calls = []
  names = 'abc'
  contestants = [
    measure.Contestant(name, lambda name=name: calls.append(name) or name)
    for name in names
  ]
  found = measure.take_turns(contestants, rounds=3, settle=0)
  assert ''.join(calls) == 'abc' + 'abc' + 'bca' + 'cab'
  assert [found[name].last for name in names] == list(names)
  assert all(len(turns.seconds) == 3 for turns in found.values())


def test_ratio_is_of_the_same_round():
  ours = measure.Turns((1.0, 10.0, 2.0), None)
  theirs = measure.Turns((3.0, 20.0, 4.0), None)
  row = measure.rate_row(
    's', 'theirs', theirs, amount=12, unit='x/s', ours=ours
  )
  assert row.ratio == 2.0
  assert (row.low, row.value, row.high) == (0.6, 3.0, 4.0)
  assert measure.rate_row('s', 'o', ours, amount=12, unit='x/s').ratio is None


def test_table_and_json_hold_every_row():
  rows = [
    measure.row('s', 'fast', [1234.5, 1200.0], 'x/s', ratio=2.5, note='why'),
    measure.fact('s', 'counted', 0.25, 'GFLOP'),
  ]
  text = measure.table(rows)
  assert (
    '1,217 x/s' in text and '1,200 .. 1,234' in text and '2.50  why' in text
  )
  assert 'counted' in text and '0.2500 GFLOP' in text
  lines = measure.json_lines(measure.machine(), rows).splitlines()
  found = [json.loads(line) for line in lines]
  assert found[0]['suite'] == 'machine' and found[0]['jax'] == jax.__version__
  assert [o['name'] for o in found[1:]] == ['fast', 'counted']
  assert found[1]['ratio'] == 2.5


def test_train_without_torch_says_so(monkeypatch, capsys, tmp_path):
  monkeypatch.setitem(sys.modules, 'torch', None)
  monkeypatch.setattr(measure, 'SETTLE_SECONDS', 0.0)
  path = tmp_path / 'rows.jsonl'
  words = '--suite=train --preset=test --data.vocabulary_size=32 --rounds=9'
  words += ' --optim.learning_rate=0.01'
  words += f' --rows=8 --length=4 --steps=2 --json={path}'
  with pytest.raises(SystemExit) as left:
    flags.run(
      bench.main, extra=bench.EXTRA, base=bench.base, arguments=words.split()
    )
  assert not left.value.code
  out = capsys.readouterr().out
  assert 'torch is not installed: its rows are left out' in out
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rates = [r for r in rows if r.get('unit') == 'target tokens/s']
  assert [r['name'] for r in rates] == ['ours, float32']
  assert rates[0]['value'] > 0
  # The same two batches again and again are learned by heart.
  assert float(rates[0]['note'].split()[-4]) < math.log(32) - 0.5


def to_torch(model, params, config: Config) -> None:
  """Our parameters into the peer; its biases in attention become zero."""
  import torch  # pyright: ignore

  def copy(place, value):
    with torch.no_grad():
      place.copy_(torch.from_numpy(np.array(value)))

  def attention(place, own, n):
    D = config.model.d_model
    stacked = [own[name][n].reshape(D, -1).T for name in QKV]
    copy(place.in_proj_weight, np.concatenate(stacked))
    copy(place.out_proj.weight, own['w_o_HED'][n].reshape(-1, D).T)
    torch.nn.init.zeros_(place.in_proj_bias)
    torch.nn.init.zeros_(place.out_proj.bias)

  def norm(place, own, n):
    copy(place.weight, own['norm']['g_D'][n])
    copy(place.bias, own['norm']['b_D'][n])

  def feed_forward(place, own, n):
    copy(place.linear1.weight, own['w_1_DF'][n].T)
    copy(place.linear1.bias, own['b_1_F'][n])
    copy(place.linear2.weight, own['w_2_FD'][n].T)
    copy(place.linear2.bias, own['b_2_D'][n])

  copy(model.embedding.weight, params['embedding']['w_VD'])
  for n, layer in enumerate(model.core.encoder.layers):
    own = params['encoder']['layers']
    attention(layer.self_attn, own['self_attention'], n)
    norm(layer.norm1, own['self_attention_sum'], n)
    feed_forward(layer, own['feed_forward'], n)
    norm(layer.norm2, own['feed_forward_sum'], n)
  for n, layer in enumerate(model.core.decoder.layers):
    own = params['decoder']['layers']
    attention(layer.self_attn, own['self_attention'], n)
    norm(layer.norm1, own['self_attention_sum'], n)
    attention(layer.multihead_attn, own['cross_attention'], n)
    norm(layer.norm2, own['cross_attention_sum'], n)
    feed_forward(layer, own['feed_forward'], n)
    norm(layer.norm3, own['feed_forward_sum'], n)


QKV = ('w_q_DHK', 'w_k_DHK', 'w_v_DHE')


def test_peer_computes_the_same_loss():
  torch = pytest.importorskip('torch')
  from experiments.bench import peers

  config = tiny_config(model__layers=2, model__dropout=0.0)
  params = jax.device_get(train.new_state(config).params)
  source_BS, target_BT = (x[0] for x in train.random_batches(config, SIZES))
  source_BS[0, 2:] = target_BT[1, 3:] = 0
  losses = loss_function(config, train.new_model(config))
  batch = Batch(source_BS, target_BT)
  sums = losses(params, batch, None, numbers(config))
  peer = peers.transformer(config, vocabulary=32, longest=4, sites='ours')
  to_torch(peer, params, config)
  found = peers.loss_of(
    peer,
    torch.from_numpy(source_BS.astype(np.int64)),
    torch.from_numpy(target_BT.astype(np.int64)),
    config.optim.label_smoothing,
  )
  own = float(sums.smoothed / sums.tokens)
  assert found.item() == pytest.approx(own, rel=1e-5)


def test_every_peer_trains():
  pytest.importorskip('torch')
  from experiments.bench import peers

  config = tiny_config()
  sources, targets = train.random_batches(config, SIZES)
  for peer in peers.PEERS:
    contestant = peers.training(
      config, peer, vocabulary=32, sources_NBS=sources, targets_NBT=targets
    )
    losses = [contestant.work() for _ in range(8)]
    assert losses[-1] < losses[0], peer


def test_dropout_of_the_peer_is_where_ours_is():
  torch = pytest.importorskip('torch')
  from experiments.bench import peers

  config = tiny_config(model__dropout=0.25)
  core = peers.core(config, 'ours')
  layer = core.decoder.layers[0]
  assert layer.self_attn.dropout == layer.multihead_attn.dropout == 0
  assert layer.dropout.p == 0 and layer.dropout3.p == 0.25
  full = peers.core(config, 'torch').encoder.layers[0]
  assert full.self_attn.dropout == full.dropout.p == 0.25
  assert isinstance(full.dropout, torch.nn.Dropout)


def test_forward_backward_loses_nothing():
  # y = w x and its gradients, by hand; a rate of 1 shows what was made.
  run = breakdown.forward_backward(lambda w, x: w * x, 2)
  inputs = jnp.float32(2), jnp.float32(5)
  (w, x), cotangent = run(inputs, jnp.float32(1), jnp.float32(1))
  # First w = 2 - 5, x = 5 - 2, cotangent = 1 - 10; then with these.
  assert (float(w), float(x), float(cotangent)) == (-3 + 27, 3 - 27, -9 + 9)


def test_parts_add_up_to_the_whole():
  seconds = dict.fromkeys((name for _, name in breakdown.PARTS), 0.02)
  seconds |= {
    breakdown.WHOLE: 0.2,
    breakdown.CALM: 0.17,
    breakdown.LAYERS: 0.1,
    breakdown.ATTENTION: 0.05,
    breakdown.LOSS: 0.04,
  }
  rows = breakdown.part_rows(seconds)
  assert sum(r.value for r in rows) == pytest.approx(200)
  found = {r.name.partition(':')[0]: (r.value, r.note) for r in rows}
  assert found['dropout'] == (pytest.approx(30), '15.0%')
  assert found['rest of the layers'] == (pytest.approx(30), '15.0%')
  assert found['Adam and all the rest'] == (pytest.approx(30), '15.0%')


@pytest.mark.slow
def test_breakdown_of_a_step(monkeypatch):
  monkeypatch.setattr(products, 'SQUARES', (16,))
  monkeypatch.setattr(products, 'TURN_FLOP', 1.0)
  rows = breakdown.suite(tiny_config(), SIZES, rounds=2)
  whole = rows[0]
  parts = [r.value for r in rows[1:] if r.unit == 'ms']
  assert whole.name == breakdown.WHOLE and len(parts) == 8
  assert sum(parts) == pytest.approx(whole.value)
  named = {r.name: r for r in rows}
  peak = max(r.value for r in rows if r.unit == 'GFLOP/s' and r.rounds)
  assert named['peak'].value == peak
  reached = named['work'].value / whole.value * 1e3
  assert named['reached by the step'].value == pytest.approx(reached)


def test_attention_that_does_not_fit_is_not_run(monkeypatch):
  monkeypatch.setattr(attention, 'available_bytes', lambda: 1e4)
  cases = [attention.Case('additive', 16, n) for n in ('naive', 'blockwise')]
  rows = attention.compared(cases, rounds=1)
  assert [r.unit for r in rows] == ['GiB', 'GiB']
  assert all('not run' in r.note for r in rows)
  monkeypatch.setattr(attention, 'available_bytes', lambda: 1e12)
  naive, blocks = attention.compared(cases, rounds=1)
  assert naive.unit == 'ms' and 'as fast as naive' in blocks.note


def test_memory_that_is_not_told_is_that_of_the_machine(tmp_path, monkeypatch):
  told = tmp_path / 'meminfo'
  monkeypatch.setattr(attention, 'MEMINFO', told)
  assert attention.available_bytes() == fit.host_memory()
  told.write_text('MemTotal: 9 kB\nMemAvailable:    2 kB\n')
  assert attention.available_bytes() == 2048
  monkeypatch.setattr(fit, 'host_memory', lambda: 1024)
  assert attention.available_bytes() == 1024


def test_a_gpu_has_its_own_contestants():
  """Its kernel, and cuDNN in the precision that it takes."""

  def names(score, platform):
    found = attention.groups(score, 64, platform=platform)
    assert all(cases[0].implementation == 'naive' for cases in found)
    return [case.name for cases in found for case in cases]

  assert names('additive', 'gpu')[-1] == 'additive 64 kernel'
  assert names('dot', 'gpu')[-1] == 'dot 64 fused_on_gpu bfloat16'
  for score in ('dot', 'additive'):
    here = names(score, 'cpu')
    assert here == names(score, 'gpu')[: len(here)]
    assert not any('kernel' in name or 'bfloat16' in name for name in here)
  # What cannot run here can be traced: its numbers are of that precision.
  case = attention.groups('dot', 64, platform='gpu')[-1][-1]
  shapes = jax.eval_shape(lambda: attention.arrays(case))
  assert {str(shape.dtype) for shape in shapes} == {'bfloat16'}
  assert set(attention.FUNCTIONS) >= {'kernel', 'fused_on_gpu'}


def test_decode_generated_sentences():
  job = decode.generated(tiny_config(), 1)
  assert len(job.sentences) == 1
  rows = {r.name: r for r in decode.suite(job, rounds=1)}
  assert rows['beam 2'].value > 0 and rows['greedy'].value > 0
  assert 0 <= rows['padding steps, beam 2'].value < 100


def test_lengths_are_like_those_of_multi30k():
  found = decode.random_lengths(4000)
  assert statistics.mean(found.tolist()) == pytest.approx(13.0, abs=0.3)
  assert found.min() == 5 and 30 < found.max() <= 33


@pytest.mark.slow
def test_data_reads_in_a_fresh_process():
  config = DataConfig(vocabulary_size=400, max_tokens=4096)
  rows = {r.name: r for r in data.suite(config, pairs=500, rounds=2)}
  assert rows['pairs'].value == 500
  assert rows['batches'].rounds == 2 and rows['batches'].low > 0
  assert 0 < rows['epoch'].value < rows['batches'].high
  if data.STATUS.exists():
    # No JAX in there, which alone would take more.
    assert 1 < rows['anonymous memory'].value < 120


def test_memory_watch_sees_a_peak():
  if not data.STATUS.exists():
    pytest.skip('the system does not tell')
  with data.MemoryWatch(every=0.001) as memory:
    block = np.ones(1 << 23)
    for _ in range(20):
      block += 1
    del block
  assert memory.most - memory.first > 6 << 23


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    ('--rounds=0', 'error: --rounds=0 must be at least 1'),
    ('--suite=speed', '--suite=speed is not one of train, breakdown'),
    ('--suite=decode --split=val', 'error: --split needs --workdir'),
    ('--workdir=nowhere', 'nowhere holds no run'),
    (
      '--suite=attention --model.d_k=128',
      '--suite=attention does not read --model.d_k: train, breakdown, decode',
    ),
    ('--suite=cost --length=9', 'does not read --length: train, breakdown do'),
  ],
)
def test_bad_options_are_answered_in_a_line(words, line, capsys):
  with pytest.raises(SystemExit) as left:
    flags.run(
      bench.main, extra=bench.EXTRA, base=bench.base, arguments=words.split()
    )
  assert left.value.code == 2
  assert line in capsys.readouterr().err


def test_workdir_is_for_decoding(tmp_path):
  options = dict.fromkeys(bench.POSITIVE, 1)
  options |= dict(workdir=str(tmp_path), suite='train', split='')
  with pytest.raises(ConfigError, match='--suite=decode only'):
    bench.check(dataclasses.make_dataclass('O', options)(**options))


def test_one_core_is_what_a_reader_gets():
  if not hasattr(os, 'sched_getaffinity'):
    pytest.skip('the system does not bind')
  before = os.sched_getaffinity(0)
  try:
    data.one_core()
    assert measure.cores() == 1
  finally:
    os.sched_setaffinity(0, before)


def test_cost_asks_for_every_score_and_join():
  found = [list(one.items())[:1] for one in cost.cases({})]
  assert found[0] == []
  for path in cost.AXES:
    choices = [one[0][1] for one in found[1:] if one[0][0] == path]
    assert tuple(choices) == (FIELDS[path].choices or ())[1:]


ONE = ablation_cost.Cost({}, 1, 1, 1, 1, 1, (1, 1), 1)


def test_cost_says_the_parameters_of_each_part():
  parts = {'embeddings': 1200, 'positions': 0, 'attention': 30}
  found = ONE._replace(parameters=parts)
  wanted = '1,230 parameters (embeddings 1,200, attention 30), '
  assert cost.note(found).startswith(wanted)


def test_cost_computes_all_choices_in_one_way(monkeypatch):
  given = []
  monkeypatch.setattr(
    ablation_cost, 'of', lambda *shape, **options: given.append(options) or ONE
  )
  assert len(cost.suite({}, rounds=2)) == len(cost.cases({}))
  assert len({one['pairs'] for one in given}) == 1 and given[0]['pairs']
  model = ablation_cost.new_model(tiny_config(), cost.SHAPE, pairs=7)
  attend: Any = model.attention_fn
  assert attend.keywords == {'pairs': 7}


@pytest.mark.slow
def test_cost_has_a_row_for_each_choice(monkeypatch):
  monkeypatch.setattr(cost, 'AXES', ('model.score',))
  monkeypatch.setattr(cost, 'SHAPE', ablation_cost.Shape(2, 4, 4, 8, 8))
  every = cost.cases({})
  monkeypatch.setattr(cost, 'cases', lambda overrides: [*every[:2]])
  paper, additive = cost.suite({}, rounds=2)
  assert (paper.name, additive.name) == ('baseline', 'score=additive')
  assert paper.ratio == 1 and additive.ratio == additive.value / paper.value
  assert paper.low <= paper.value <= paper.high and paper.rounds == 2
  numbers = [int(r.note.split()[0].replace(',', '')) for r in (paper, additive)]
  # w of each of the three attentions.
  assert numbers[1] - numbers[0] == 3 * 16


@pytest.mark.slow
def test_memory_is_estimated_within_a_tenth():
  # Of the benchmark's own model: hundreds of MiB, beside which what else a
  # process takes is little.
  rows = memory.suite(bench.base(types.SimpleNamespace(workdir='')), 'memory')
  assert [row.name for row in rows] == [
    f'{name}: {of}'
    for name, *_ in memory.CASES['memory']
    for of in ('estimate', 'measured')
  ]
  for estimate, measured in zip(rows[::2], rows[1::2], strict=True):
    ratio = estimate.value / measured.value
    assert 0.9 <= ratio <= 1.1, measured
    assert measured.note.endswith(f'{ratio:.3f}')


@pytest.mark.slow
def test_a_step_of_additive_scores_on_4096_tokens_takes_less_than_2_gb():
  """Beside the parameters; the formula would hold 34 GB at each site."""
  _, sizes, changes = memory.LONG
  # Order and distance are those of a tile, too.
  config = override(tiny_config(), changes | {'model.position': 'relative'})
  long, half = (
    memory.compiled(config, sizes._replace(length=length))
    for length in (4096, 2048)
  )
  assert fit.peak(long.run) - long.parameters < 2e9
  # Not one array of all scores is anywhere.
  assert (
    long.run.memory_analysis().temp_size_in_bytes
    < 2.2 * half.run.memory_analysis().temp_size_in_bytes
  )
