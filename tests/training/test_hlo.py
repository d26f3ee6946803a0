"""Programs read back: exchanges, products and bytes, loops repeated."""

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.training import hlo, products
from transformer_jax.training.hlo import Collective

# The parts of a program for four TPU chips that matter here: a loop of seven
# around an exchange, one of an asynchronous kind, one over two axes.
TPU = """HloModule jit_f, is_scheduled=true, num_partitions=4

%body (p.1: (s32[], f32[128,128])) -> (s32[], f32[128,128]) {
  %p.1 = (s32[]{:T(128)}, f32[128,128]{1,0:T(8,128)}) parameter(0)
  %w = f32[128,128]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %sum = f32[128,128]{1,0:T(8,128)} all-reduce(%w), channel_id=1, \
replica_groups=mesh['data'=2,'fsdp'=2] {'data','fsdp'}, to_apply=%add
  ROOT %next = (s32[], f32[128,128]{1,0:T(8,128)}) tuple(%w, %sum)
}

%condition (p.2: (s32[], f32[128,128])) -> pred[] {
  %last = s32[]{:T(128)} constant(7)
  %p.2 = (s32[]{:T(128)}, f32[128,128]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n, %last), direction=LT
}

ENTRY %main (a: f32[32,128], b: f32[128,128]) -> f32[128,128] {
  %a = f32[32,128]{1,0} parameter(0)
  %b = f32[128,128]{1,0} parameter(1)
  %start = (f32[32,128]{1,0}, f32[64,128]{1,0:T(8,128)}) \
all-gather-start(%a), replica_groups=[2,2]<=[4], dimensions={0}
  %done = f32[64,128]{1,0} all-gather-done(%start)
  %part = f32[32,128]{1,0} reduce-scatter(%b), replica_groups={{0,1,2,3}}
  %turn = f32[32,128]{1,0} collective-permute(%part), \
source_target_pairs={{0,1},{1,0}}
  %init = (s32[], f32[128,128]{1,0}) tuple(%b, %b)
  %loop = (s32[], f32[128,128]{1,0}) while(%init), condition=%condition, \
body=%body
  ROOT %out = f32[128,128]{1,0} get-tuple-element(%loop), index=1
}
"""


def text_of(compiled) -> str:
  text = compiled.as_text()
  assert text is not None
  return text


def test_exchanges_count_as_often_as_their_loop_runs():
  assert hlo.collectives(TPU) == [
    Collective('all-gather', 64 * 128 * 4, 2, 1),
    Collective('reduce-scatter', 4 * 32 * 128 * 4, 4, 1),
    Collective('collective-permute', 32 * 128 * 4, 2, 1),
    Collective('all-reduce', 128 * 128 * 4, 4, 7),
  ]


def test_a_ring_sends_what_the_formula_says():
  assert Collective('all-reduce', 400, 4, 3).sent == 3 * 2 * 300
  assert Collective('all-gather', 400, 4, 1).sent == 300
  assert Collective('reduce-scatter', 400, 4, 1).sent == 300
  assert Collective('collective-permute', 400, 4, 2).sent == 800


def test_kinds_are_summed():
  found = hlo.total(hlo.collectives(TPU))
  assert found['all-reduce'] == (7, 7 * 1.5 * 128 * 128 * 4)


def test_an_exchange_in_a_loop_of_unknown_length_is_refused():
  unknown = TPU.replace('constant(7)', 'add(%n, %n)')
  with pytest.raises(hlo.HloError, match='unknown length'):
    hlo.collectives(unknown)


def test_a_program_of_this_machine_is_read():
  mesh = jax.make_mesh(
    (2,),
    ('data',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:2],
  )
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows)
  compiled = jax.jit(lambda x: x.sum(0)).lower(x).compile()
  assert hlo.collectives(text_of(compiled)) == [
    Collective('all-reduce', 64, 2, 1)
  ]


def gradient(w_NDD, x_BD):
  def loss(w_NDD):
    def body(x_BD, w_DD):
      return jnp.tanh(x_BD @ w_DD), None

    return jax.lax.scan(body, x_BD, w_NDD)[0].sum()

  return jax.grad(loss)(w_NDD)


def test_products_of_a_scan_count_for_each_layer():
  w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
  x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
  # Forward, and backward to the input and to the weights.
  assert products.flops(gradient, w, x) == 5 * 3 * 2 * 32 * 64 * 64


def test_bytes_moved_by_an_operation_alone():
  x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
  compiled = jax.jit(lambda x: jnp.tanh(x) + 1).lower(x).compile()
  assert hlo.moved(text_of(compiled)) == 2 * 32 * 64 * 4


def test_bytes_moved_in_a_loop_are_of_the_slices():
  w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
  x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
  text = text_of(jax.jit(gradient).lower(w, x).compile())
  layer = 64 * 64 * 4
  found = hlo.moved(text) / (5 * layer)
  # In each turn weights are read twice and their gradient written at least;
  # on a CPU about 24 times a layer moves in all, slices being copies. A stack
  # read or written as a whole in each turn, in three places, would make 40.
  assert 3 < found < 30


# What a TPU's program does to memory: arrays in its vector memory (S(1)) cost
# nothing, a fusion within a fusion reads a slice of a stack, rows are added to
# a table where it lies, and copies run beside what is computed.
MEMORY = """HloModule jit_f

%sliced (p.1: f32[6,10,10], n.1: s32[]) -> f32[1,10,10] {
  %p.1 = f32[6,10,10]{2,1,0:T(8,128)} parameter(0)
  %n.1 = s32[]{:T(128)S(6)} parameter(1)
  ROOT %one = f32[1,10,10]{2,1,0} dynamic-slice(%p.1, %n.1, %n.1, %n.1)
}

%outer (p.2: f32[6,10,10], n.2: s32[]) -> f32[10,10] {
  %p.2 = f32[6,10,10]{2,1,0:T(8,128)} parameter(0)
  %n.2 = s32[]{:T(128)S(6)} parameter(1)
  %same = f32[6,10,10]{2,1,0} fusion(%p.2), kind=kLoop, \
output_to_operand_aliasing={{}: (0, {})}, calls=%sliced
  %layer = f32[1,10,10]{2,1,0} fusion(%same, %n.2), kind=kLoop, calls=%sliced
  ROOT %flat = f32[10,10]{1,0:T(8,128)S(1)} bitcast(%layer)
}

%added (p.3: f32[50,10], rows.3: s32[3], new.3: f32[3,10]) -> f32[50,10] {
  %p.3 = f32[50,10]{1,0} parameter(0)
  %rows.3 = s32[3]{0:T(256)S(1)} parameter(1)
  %new.3 = f32[3,10]{1,0:T(8,128)S(1)} parameter(2)
  ROOT %sum = f32[50,10]{1,0} scatter(%p.3, %rows.3, %new.3), to_apply=%add
}

ENTRY %main (a: f32[6,10,10], n: s32[], t: f32[50,10]) -> f32[50,10] {
  %a = f32[6,10,10]{2,1,0:T(8,128)} parameter(0)
  %n = s32[]{:T(128)S(6)} parameter(1)
  %t = f32[50,10]{1,0} parameter(2)
OPERATION
}
"""


@pytest.mark.parametrize(
  ('operation', 'moved'),
  [
    # One layer of six, into vector memory; the number beside it.
    (
      '%x = f32[10,10]{1,0:T(8,128)S(1)} fusion(%a, %n), calls=%outer',
      400 + 4,
    ),
    # Three rows read and written; row numbers and rows to add on the chip.
    (
      '%r = s32[3]{0:T(256)S(1)} custom-call(), '
      'custom_call_target="AllocateBuffer"\n'
      '  %w = f32[3,10]{1,0:T(8,128)S(1)} custom-call(), '
      'custom_call_target="AllocateBuffer"\n'
      '  %x = f32[50,10]{1,0} fusion(%t, %r, %w), calls=%added',
      2 * 120,
    ),
    # (target, source, flag): read once.
    (
      '%x = (f32[50,10]{1,0:T(8,128)S(1)}, f32[50,10]{1,0}, '
      'u32[]{:S(1)}) copy-start(%t)',
      2000,
    ),
    # ((source), slice, flag): the slice, read once.
    (
      '%x = ((f32[50,10]{1,0}), f32[2,10]{1,0:T(8,128)S(1)}, '
      's32[]{:S(1)}) slice-start(%t), slice={[0:2], [0:10]}',
      80,
    ),
  ],
)
def test_bytes_that_a_tpu_moves(operation, moved):
  text = MEMORY.replace('OPERATION', '  ' + operation)
  assert hlo.moved(text) == moved
