# SPDX-License-Identifier: BSD-3-Clause
"""Decoding of machine code, and its loops."""

import pytest
from kit.sass import compiled, listing

from tools.cuda_report.sass.decode import NO_BARRIER, decode, decode_control, read_listings
from tools.cuda_report.sass.flow import Flow
from tools.cuda_report.sass.memory import LOADS, STORES
from tools.cuda_report.sass.operands import UNIFORM_REGISTERS, ZERO_REGISTER, parse_operand

ARCHS = (80, 86, 89, 90, 100, 120)

SCALE = """
__global__ void scale(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = 2.0f * x[i];
}
"""


def test_control_codes_are_decoded() -> None:
    """Upper words that nvdisasm printed: of a load that sets scoreboard 2, of a product."""
    load = decode_control(0x000EA2000C1E9900)
    assert (load.stall, load.write_barrier, load.read_barrier, load.waits) == (1, 2, 7, ())
    product = decode_control(0x044FE20000001873)
    assert (product.stall, product.may_yield, product.waits) == (1, False, (2,))
    assert (product.write_barrier, product.reuse) == (NO_BARRIER, 1)
    waiting = decode_control(0x000FCA0000000000 | 0b101 << 52)
    assert (waiting.stall, waiting.may_yield, waiting.waits) == (5, True, (0, 2))


def test_instructions_are_taken_apart() -> None:
    i = decode(0x40, "@!P2 LDG.E.128.STRONG.GPU R152, desc[UR26][R12.64+-0x200]", 0)
    assert (i.base, i.modifiers) == ("LDG", ("E", "128", "STRONG", "GPU"))
    assert i.predicate is not None and (i.predicate.index, i.predicate.negated) == (2, True)
    target, source = i.operands
    assert (target.kind, target.index) == ("register", 152)
    address = source.address
    assert address is not None
    assert (address.register, address.wide, address.offset) == (12, True, -0x200)


def test_remarks_are_no_operands() -> None:
    refill = decode(0, '@!P0 LDL.LU R4, [R1+0x8]       (*"SpillRefill"*)', 0)
    assert [o.kind for o in refill.operands] == ["register", "memory"]
    table = decode(0, 'BRX R12 -0xa5e0     (*"BRANCH_TARGETS .L_x_6,.L_x_8"*)', 0)
    assert table.targets == (".L_x_6", ".L_x_8")
    address = table.operands[0].address
    assert address is not None
    assert (address.register, address.wide, address.offset) == (12, True, -0xA5E0)


@pytest.mark.parametrize(
    ("text", "kind", "fields"),
    [
        ("R7.reuse", "register", {"index": 7}),
        ("-RZ", "register", {"index": ZERO_REGISTER, "negated": True}),
        ("~UR5", "register", {"index": UNIFORM_REGISTERS + 5, "inverted": True}),
        ("|R3|", "register", {"index": 3, "absolute": True}),
        ("!PT", "predicate", {"index": 7, "negated": True}),
        ("UP1", "predicate", {"index": 9}),
        ("-0x20", "integer", {"value": 0xFFFFFFE0}),
        ("1.5", "float", {"value": 0x3FC00000}),
        ("-INF", "float", {"value": 0xFF800000}),
        ("-c[0x0][0x164]", "constant", {"index": 0, "negated": True}),
        ("SR_TID.X", "special", {}),
        ("`(.L_x_3)", "label", {"label": ".L_x_3"}),
    ],
)
def test_operands_are_read(text: str, kind: str, fields: dict[str, object]) -> None:
    operand = parse_operand(text)
    assert operand.kind == kind
    assert {name: getattr(operand, name) for name in fields} == fields


def test_parts_of_addresses_are_read() -> None:
    scaled = parse_operand("[R50.X16+UR4+0x40]").address
    assert scaled is not None
    assert (scaled.register, scaled.scale, scaled.wide) == (50, 16, False)
    assert (scaled.uniform, scaled.offset) == (UNIFORM_REGISTERS + 4, 0x40)
    indexed = parse_operand("c[0x0][R5+0x210]").address
    assert indexed is not None and (indexed.register, indexed.offset) == (5, 0x210)
    with pytest.raises(ValueError, match=r"got \[R1\+Q2\], wanted registers and offsets"):
        parse_operand("[R1+Q2]")


@pytest.mark.parametrize("arch", ARCHS)
def test_a_kernel_is_decoded(arch: int) -> None:
    """What any compiler must make of `scale`: a load, a store, and a wait for what was loaded."""
    code = compiled(SCALE, arch).listing.instructions
    assert [i.address for i in code] == list(range(0, 16 * len(code), 16))
    (load,) = (n for n, i in enumerate(code) if i.base in LOADS and i.base != "LDC")
    (store,) = (n for n, i in enumerate(code) if i.base in STORES)
    assert load < store < next(n for n, i in enumerate(code) if i.text == "EXIT")
    assert any(i.base == "EXIT" and i.predicate is not None for i in code[:load])
    board = code[load].control.write_barrier
    user = next(n for n in range(load + 1, store + 1) if board in code[n].control.waits)
    assert code[user].base in ("FADD", "FMUL")
    result = code[load].operands[0].index
    assert result in [o.index for o in code[user].operands[1:] if o.kind == "register"]
    assert all(i.control.stall <= 15 for i in code)
    for n, i in enumerate(code):  # nothing waits for a scoreboard that nothing sets
        for waited in i.control.waits:
            setters = (code[m].control for m in range(n))
            assert any(waited in (c.write_barrier, c.read_barrier) for c in setters)


def test_a_listing_without_upper_words_is_refused() -> None:
    line = "        /*0000*/    EXIT ;   /* 0x0000000000000000 */\n"
    with pytest.raises(ValueError, match="wanted the upper word"):
        read_listings(f".section .text.k\n{line}{line}")


def test_the_time_loop_is_the_largest_with_a_barrier() -> None:
    """With a loop inside of it, and with a cold block behind the kernel's end."""
    code = listing(
        *(".L_x_0:", "LDG.E R0, [R2]", "FADD R0, R0, R0", "FADD R0, R0, R0", "FADD R0, R0, R0"),
        *("FADD R0, R0, R0", "FADD R0, R0, R0", "FADD R0, R0, R0", "@P0 BRA `(.L_x_0)"),
        *(".L_x_1:", "BAR.SYNC.DEFER_BLOCKING 0x0", "@P1 BRA `(.L_x_1)"),
        *(".L_x_2:", "HMMA.16816.F32 R4, R8, R12, R4"),  # address 0xa0
        *(".L_x_3:", "LDS.128 R8, [R20]", "@!P1 BRA `(.L_x_3)"),
        *("@P2 BRA `(.L_x_5)", ".L_x_4:", "BAR.SYNC.DEFER_BLOCKING 0x0", "@P3 BRA `(.L_x_2)"),
        *("EXIT", ".L_x_5:", "MUFU.RCP R0, R0", "BRA `(.L_x_4)", ".L_x_6:", "BRA `(.L_x_6)"),
    )
    flow = Flow(code)
    loop = flow.time_loop
    assert loop is not None
    assert code.instructions[loop.header].address == 0xA0
    assert sorted(code.instructions[p].base for p in loop.places) == [
        *("BAR", "BRA", "BRA", "BRA", "BRA", "HMMA", "LDS", "MUFU"),
    ]
    inner = flow.innermost(loop.header + 1)
    assert inner is not None and len(inner.places) == 2
    assert flow.innermost(loop.header) == loop
    assert len(flow.barrier_loops) == 2
    others = [loop for loop in flow.loops if loop not in flow.barrier_loops]
    assert [len(loop.places) for loop in others] == [8, 1]


def test_a_call_of_a_label_is_a_jump() -> None:
    code = listing(
        *(".L_x_0:", "BAR.SYNC 0x0", "@P1 CALL.REL.NOINC `(.L_x_1)", "BRA `(.L_x_0)"),
        *(".L_x_1:", "CALL.REL.NOINC `($__internal_0)", "EXIT", "$__internal_0:", "RET.REL R4"),
    )
    flow = Flow(code)
    assert flow.next == [[1], [2, 3], [0], [4], [], []]
    assert [i.is_jump for i in code.instructions] == [False, True, True, False, False, False]
