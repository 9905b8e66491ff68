"""What a compiled program moves, counted from its text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from edf_jax.plan import compiled

# A loop of 40 rounds as compiled for a GPU: a convolution, a fusion that reads a slice of its
# operand and one that writes into it, and a conditional with a free branch.
_LOOP = """\
HloModule jit_f, is_scheduled=true

%slicing (p.0: f32[40,1000], p.1: s32[]) -> f32[1,1000] {
  %p.0 = f32[40,1000]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = f32[1,1000]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,1000}
}

%writing (q.0: f32[40,1000], q.1: f32[1,1000], q.2: s32[]) -> f32[40,1000] {
  %q.0 = f32[40,1000]{1,0} parameter(0)
  %q.1 = f32[1,1000]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %put = f32[40,1000]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %none)
}

%busy (b.0: f32[1,1000]) -> f32[1,1000] {
  %b.0 = f32[1,1000]{1,0} parameter(0)
  ROOT %twice = f32[1,1000]{1,0} add(%b.0, %b.0)
}

%idle (i.0: f32[1,1000]) -> f32[1,1000] {
  ROOT %i.0 = f32[1,1000]{1,0} parameter(0)
}

%body (arg: (s32[], f32[40,1000], bf16[2,8,8,3])) -> (s32[], f32[40,1000], bf16[2,8,8,3]) {
  %arg = (s32[], f32[40,1000]{1,0}, bf16[2,8,8,3]{3,2,1,0}) parameter(0)
  %at = s32[] get-tuple-element(%arg), index=0
  %rows = f32[40,1000]{1,0} get-tuple-element(%arg), index=1
  %images = bf16[2,8,8,3]{3,2,1,0} get-tuple-element(%arg), index=2
  %kernel = bf16[16,3,3,3]{3,2,1,0} constant({...})
  %conv = (bf16[2,8,8,16]{3,2,1,0}, u8[64]{0}) custom-call(%images, %kernel), window={size=3x3 \
pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(f)/while/body/features.4/conv"}
  %row = f32[1,1000]{1,0} fusion(%rows, %at), kind=kLoop, calls=%slicing
  %chosen = f32[1,1000]{1,0} conditional(%at, %row, %row), branch_computations={%busy, %idle}
  %kept = f32[40,1000]{1,0} fusion(%rows, %chosen, %at), kind=kLoop, calls=%writing
  ROOT %next = (s32[], f32[40,1000]{1,0}, bf16[2,8,8,3]{3,2,1,0}) tuple(%at, %kept, %images)
}

%test (t: (s32[], f32[40,1000], bf16[2,8,8,3])) -> pred[] {
  %t = (s32[], f32[40,1000]{1,0}, bf16[2,8,8,3]{3,2,1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: (s32[], f32[40,1000], bf16[2,8,8,3])) -> (s32[], f32[40,1000], bf16[2,8,8,3]) {
  %x = (s32[], f32[40,1000]{1,0}, /*index=2*/bf16[2,8,8,3]{3,2,1,0}) parameter(0)
  ROOT %loop = (s32[], f32[40,1000]{1,0}, bf16[2,8,8,3]{3,2,1,0}) while(%x), condition=%test, \
body=%body, backend_config={"known_trip_count":{"n":"40"}}
}
"""


def test_a_loop_counts_as_often_as_it_goes_round_and_a_slice_as_a_slice():
    operations = {m.name: m for m in compiled.movers(_LOOP)}
    assert {name: (m.bytes, m.times) for name, m in operations.items()} == {
        # Two-byte images, kernel and result, and no scratch memory.
        "conv": (2 * (2 * 8 * 8 * 3 + 16 * 9 * 3 + 2 * 8 * 8 * 16), 40),
        "row": (4000 + 4 + 4000, 40),
        # One of two branches adds a row to itself.
        "twice": (3 * 4000, 20),
        "kept": (4000 + 4 + 4000, 40),
    }
    assert operations["conv"].flops == 2 * (2 * 8 * 8 * 16) * 27
    assert operations["conv"].layer == "features.4 2x8x8x16"


def test_kinds_layers_and_times_add_up():
    operations = compiled.movers(_LOOP)
    sums = compiled.by_kind(operations)
    assert sums["total"] == sum(m.total for m in operations)
    assert sums[compiled.PRODUCTS] == next(m.total for m in operations if m.name == "conv")
    assert sum(compiled.by_layer(operations).values()) == sums["total"]
    best = compiled.roofline(operations, bandwidth=1e3, rate=1e30)
    assert best.seconds == best.waiting == pytest.approx(sums["total"] / 1e3)
    slow = compiled.roofline(operations, bandwidth=1e30, rate=1e3)
    assert slow.seconds == pytest.approx(40 * 2 * 2048 * 27 / 1e3) and slow.waiting < 1e-9


@pytest.mark.parametrize("target", ["BackwardInput", "BackwardFilter"])
def test_backward_convolutions_take_the_arithmetic_of_the_forward_one(target):
    images, output, kernel = "f32[2,8,8,3]{3,2,1,0}", "f32[2,8,8,16]{3,2,1,0}", "f32[16,3,3,3]{3}"
    first, second, result = {
        "BackwardInput": (output, kernel, images),
        "BackwardFilter": (images, output, kernel),
    }[target]
    text = (
        "HloModule f\n\n"
        f"ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {{\n"
        f"  %a = {first} parameter(0)\n  %b = {second} parameter(1)\n"
        f"  ROOT %c = ({result}, u8[0]{{0}}) custom-call(%a, %b), dim_labels=b01f_o01i->b01f, "
        f'custom_call_target="__cudnn$conv{target}"\n}}\n'
    )
    (operation,) = compiled.movers(text)
    assert operation.flops == 2 * (2 * 8 * 8 * 16) * 27


def test_bytes_of_tiles_and_of_memory_on_the_chip():
    text = (
        "HloModule f\n\nENTRY %main (a: f32[5,3]) -> f32[5,3] {\n"
        "  %a = f32[5,3]{1,0:T(8,128)} parameter(0)\n"
        "  %here = f32[5,3]{1,0:T(8,128)S(1)} copy(%a)\n"
        "  ROOT %there = bf16[5,3]{0,1:T(8,128)} convert(%here)\n}\n"
    )
    assert [m.bytes for m in compiled.movers(text)] == [8 * 128 * 4, 8 * 128 * 2]


def test_collectives_are_told_apart():
    text = (
        "HloModule f\n\nENTRY %main (a: f32[100]) -> f32[100] {\n"
        "  %a = f32[100]{0} parameter(0)\n"
        "  ROOT %sum = f32[100]{0} all-reduce(%a), to_apply=%add\n}\n"
    )
    sums = compiled.by_kind(compiled.movers(text))
    assert sums[compiled.COLLECTIVES] == 800 and not sums["total"]


def test_a_loop_of_unknown_length_and_other_text_are_refused():
    with pytest.raises(ValueError, match="doesn't say how often"):
        compiled.movers(_LOOP.replace("known_trip_count", "unknown"))
    with pytest.raises(ValueError, match="not the text of a compiled program"):
        compiled.movers("module @jit_f")


def test_what_xla_compiles_here_is_counted():
    rounds, side = 7, 64

    def f(x):
        return lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=rounds)[0]

    text = jax.jit(f).lower(jax.ShapeDtypeStruct((side, side), jnp.float32)).compile().as_text()
    operations = compiled.movers(text)
    assert sum(m.flops * m.times for m in operations) == rounds * 2 * side**3
    matrices = compiled.by_kind(operations)["total"] / (4 * side**2)
    # A product reads one and writes one, the sine too; and the loop's start is copied.
    assert 4 * rounds <= matrices < 6 * rounds
