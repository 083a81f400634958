# SPDX-License-Identifier: BSD-3-Clause
"""Instructions that branch, call, or synchronise threads."""

import re

from .operands import Body, UnsupportedError, cpp_label
from .registry import handles
from .syntax import Instruction


def _jump(body: Body, label: str) -> str:
    # A loop lets other threads run now and then, so that waiting in a plain loop does not hang.
    pause = "if (--fuel == 0) fuel = preempt(th); " if label in body.seen_labels else ""
    return f"{pause}goto {cpp_label(label)};"


@handles("bra")
def _branch(body: Body, instruction: Instruction) -> str:
    return _jump(body, instruction.operands[0])


@handles("brx")
def _branch_table(body: Body, instruction: Instruction) -> str:
    index, table = instruction.operands
    targets = body.function.branch_targets[table]
    cases = " ".join(f"case {i}: {_jump(body, target)}" for i, target in enumerate(targets))
    site = body.add_site(instruction)
    return f"switch ({body.value(index, 'u32')}) {{ {cases} default: unsupported(th, {site}); }}"


@handles("ret", "exit")
def _return(body: Body, instruction: Instruction) -> str:
    if instruction.opcode == "exit" and not body.function.is_kernel:
        raise UnsupportedError("exit within a function")
    return "return;"


@handles("trap")
def _trap(body: Body, instruction: Instruction) -> str:
    return f"trap(th, {body.add_site(instruction)});"


@handles("pragma", "griddepcontrol", "setmaxnreg")
def _nothing(body: Body, instruction: Instruction) -> str:
    return ""


@handles("nanosleep")
def _sleep(body: Body, instruction: Instruction) -> str:
    return "sleep(th);"


def _names(text: str) -> list[str]:
    return re.findall(r"[\w$]+", text)


@handles("call")
def _call(body: Body, instruction: Instruction) -> str:
    # call (results), name, (arguments); either list may be missing.
    operands = list(instruction.operands)
    results = _names(operands.pop(0)) if operands[0].startswith("(") else []
    name = operands.pop(0)
    arguments = _names(operands.pop(0)) if operands else []
    if name == "__assertfail":
        text, file, line, function = (body.pointers[a] for a in arguments[:4])
        return (
            f"assert_failed(th, load<const char*>({text}), load<const char*>({file}), "
            f"load<uint32_t>({line}), load<const char*>({function}));"
        )
    callee = body.functions.get(name)
    if callee is None or not callee.has_body:
        raise UnsupportedError(f"call of {name}")
    passed = ["th", *(body.pointers[a] for a in [*results, *arguments])]
    return f"function_{name}({', '.join(passed)});"


@handles("bar", "barrier")
def _barrier(body: Body, instruction: Instruction) -> str:
    modifiers, operands, site = (
        instruction.modifiers,
        instruction.operands,
        body.add_site(instruction),
    )
    if "cluster" in modifiers:
        raise UnsupportedError("barriers of a cluster")
    if "warp" in modifiers:
        return f"warp_sync(th, {body.value(operands[0], 'u32')}, {site});"
    if "red" in modifiers:
        return _barrier_reduction(body, instruction, site)
    count = body.value(operands[1], "u32") if len(operands) > 1 else "kWholeBlock"
    name = "barrier_arrive" if "arrive" in modifiers else "barrier_sync"
    return f"{name}(th, {body.value(operands[0], 'u32')}, {count}, {site});"


def _barrier_reduction(body: Body, instruction: Instruction, site: int) -> str:
    result, barrier, *rest = instruction.operands
    count = body.value(rest[0], "u32") if len(rest) > 1 else "kWholeBlock"
    test = body.value(rest[-1], "pred")
    # Mutations name `alone`: see emitter.py. They are of checked builds.
    text = f"uint32_t arrived = 1, true_count = {test}; "
    text += "if (!alone) " if body.checked else ""
    text += f"true_count = barrier_popc(th, {body.value(barrier, 'u32')}, {count}, "
    text += f"true_count != 0, &arrived, {site}); "
    if "popc" in instruction.modifiers:
        return text + body.assign(result, "u32", "true_count")
    how = "true_count == arrived" if "and" in instruction.modifiers else "true_count != 0"
    return text + body.assign(result, "pred", how)


_SHUFFLES = {"up": "kUp", "down": "kDown", "bfly": "kButterfly", "idx": "kIndex"}


@handles("shfl")
def _shuffle(body: Body, instruction: Instruction) -> str:
    if "sync" not in instruction.modifiers:
        raise UnsupportedError("shfl without .sync")
    to, *operands = instruction.operands
    mode = next(_SHUFFLES[m] for m in instruction.modifiers if m in _SHUFFLES)
    values = ", ".join(body.value(operand, "b32") for operand in operands)
    site = body.add_site(instruction)
    result, *predicate = to.split("|")
    arguments = f"th, Shuffle::{mode}, {values}, &inside, {site}"
    text = f"bool inside; const uint32_t got = shuffle({arguments}); "
    text += body.assign(result, "b32", "got")
    return text + (" " + body.assign(predicate[0], "pred", "inside") if predicate else "")


@handles("vote")
def _vote(body: Body, instruction: Instruction) -> str:
    modifiers = instruction.modifiers
    if "sync" not in modifiers:
        raise UnsupportedError("vote without .sync")
    to, test, mask = instruction.operands
    site = body.add_site(instruction)
    text = f"const uint32_t mask = {body.value(mask, 'u32')}; "
    text += f"const uint32_t votes = ballot(th, {body.value(test, 'pred')}, mask, {site}); "
    if "ballot" in modifiers:
        return text + body.assign(to, "b32", "votes")
    if "uni" in modifiers:
        return text + body.assign(to, "pred", "votes == 0 || votes == mask")
    how = "votes == mask" if "all" in modifiers else "votes != 0"
    return text + body.assign(to, "pred", how)


@handles("match")
def _match(body: Body, instruction: Instruction) -> str:
    to, value, mask = instruction.operands
    size = "u64" if "b64" in instruction.modifiers else "u32"
    arguments = f"{body.value(value, size)}, {body.value(mask, 'u32')}"
    site = body.add_site(instruction)
    if "any" in instruction.modifiers:
        return body.assign(to, "b32", f"match_any(th, {arguments}, {site})")
    result, *predicate = to.split("|")
    text = f"bool all; const uint32_t got = match_all(th, {arguments}, &all, {site}); "
    text += body.assign(result, "b32", "got")
    return text + (" " + body.assign(predicate[0], "pred", "all") if predicate else "")


_REDUCTIONS = {
    **{("add", s): "kAdd" for s in ("u32", "s32")},
    **{("min", "u32"): "kMinU", ("max", "u32"): "kMaxU"},
    **{("min", "s32"): "kMinS", ("max", "s32"): "kMaxS"},
    **{(op, "b32"): f"k{op.title()}" for op in ("and", "or", "xor")},
}


@handles("redux")
def _reduce(body: Body, instruction: Instruction) -> str:
    operation = _REDUCTIONS.get((instruction.modifiers[1], instruction.modifiers[-1]))
    if operation is None:
        raise UnsupportedError("this reduction")
    to, value, mask = instruction.operands
    arguments = f"{body.value(value, 'b32')}, {body.value(mask, 'u32')}"
    return body.assign(
        to, "b32", f"reduce(th, Reduce::{operation}, {arguments}, {body.add_site(instruction)})"
    )


@handles("elect")
def _elect(body: Body, instruction: Instruction) -> str:
    to, mask = instruction.operands
    result, predicate = to.split("|")
    site = body.add_site(instruction)
    arguments = f"th, {body.value(mask, 'u32')}, &leader, {site}"
    text = f"bool leader; const uint32_t lane = elect({arguments}); "
    text += body.assign(predicate, "pred", "leader")
    return text + (" " + body.assign(result, "b32", "lane") if result != "_" else "")


@handles("activemask")
def _active_mask(body: Body, instruction: Instruction) -> str:
    return body.assign(instruction.operands[0], "b32", "live_lanes(th)")


@handles("mapa", "getctarank")
def _cluster(body: Body, instruction: Instruction) -> str:
    raise UnsupportedError("clusters")
