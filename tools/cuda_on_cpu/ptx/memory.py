# SPDX-License-Identifier: BSD-3-Clause
"""Instructions that touch memory: loads, stores, atomics, asynchronous copies, fences."""

from .operands import CPP_TYPES, WORDS, Body, UnsupportedError, space_of, types_of
from .registry import HALVES, PAIRS, handles, last_type
from .syntax import SIZES, Instruction, split_operands

_SCOPES = {"cta": "kCta", "cluster": "kCluster", "gpu": "kGpu", "sys": "kSys", "gl": "kGpu"}
_STRONG = ("volatile", "relaxed", "acquire", "release", "acq_rel", "mmio")
_UNSUPPORTED = ("unified", "mbarrier", "multimem", "bulk", "tensor")


def pointer(body: Body, operand: str, space: str | None, size: int, site: int) -> str:
    """Return the checked host pointer to `size` bytes at the operand's address."""
    address = body.address(operand)
    if space in ("param", "const"):
        return f"reinterpret_cast<char*>({address})"
    if space == "shared":
        return f"shared_at<{size}>(th, {address}, {site})"
    if space == "global":
        return f"global_at<{size}>(th, spans, {address}, {site})"
    name = "find_local" if space == "local" else "find_generic"
    return f"{name}(th, {address}, {size}, {site})"


def _scope(instruction: Instruction) -> str:
    named = [_SCOPES[m] for m in instruction.modifiers if m in _SCOPES]
    if named:
        return named[0]
    return "kSys" if "volatile" in instruction.modifiers else "kGpu"


def _kind(body: Body, instruction: Instruction, access: str, atomic: bool = False) -> str:
    flags = [access]
    modifiers = instruction.modifiers
    if atomic or any(m in modifiers for m in _STRONG):
        flags.append("kStrong")
        flags.append(f"{_scope(instruction)} << kScopeShift")
    if ("acquire" in modifiers or "acq_rel" in modifiers) and "kRead" in access:
        flags.append("kAcquire")
    if ("release" in modifiers or "acq_rel" in modifiers) and "kWrite" in access:
        flags.append("kRelease")
    kind = " | ".join(flags)
    # Mutations name `weaken`: see emitter.py. They are of checked builds.
    orders = body.checked and ("kAcquire" in flags or "kRelease" in flags)
    return f"({kind}) & ~(weaken ? kAcquire | kRelease : 0u)" if orders else kind


def _hook(body: Body, space: str | None, size: int, kind: str, site: int) -> str:
    if not body.checked or space in ("param", "const", "local"):
        return ""
    return f"on_access(th, at, {size}, {kind}, {site}); "


def _refuse(instruction: Instruction) -> None:
    for modifier in instruction.modifiers:
        if modifier in _UNSUPPORTED:
            raise UnsupportedError(f".{modifier}")


def _is_strong(instruction: Instruction) -> bool:
    return any(m in instruction.modifiers for m in _STRONG)


@handles("ld", "ldu")
def _load(body: Body, instruction: Instruction) -> str:
    _refuse(instruction)
    type_, space = last_type(instruction), space_of(instruction)
    to, address = instruction.operands[:2]
    parts = split_operands(to[1:-1]) if to.startswith("{") else [to]
    size, cpp = SIZES[type_], CPP_TYPES[type_]
    site = body.add_site(instruction) if space not in ("param", "const") else 0
    at = pointer(body, address, space, size * len(parts), site)
    text = f"const char* at = {at}; "
    text += _hook(body, space, size * len(parts), _kind(body, instruction, "kRead"), site)
    source = "at"
    if body.checked and space in (None, "global"):
        source = "from"
        text += f"char copy[{size * len(parts)}]; const char* from = at; "
        text += f"if (th.holds_stores) from = seen_words(th, at, {size * len(parts)}, copy); "
    # All values are read before the first register is written: the address may be one of them.
    text += " ".join(
        f"const auto value{i} = load<{cpp}>({source} + {i * size});" for i in range(len(parts))
    )
    text += " " + " ".join(body.assign(part, type_, f"value{i}") for i, part in enumerate(parts))
    if _is_strong(instruction) and space != "local":
        values = ", ".join(f"uint64_t(bits(value{i}))" for i in range(len(parts)))
        text += f" spin(th, at, mix({values}), {site});"
    return text


@handles("st")
def _store(body: Body, instruction: Instruction) -> str:
    _refuse(instruction)
    type_, space = last_type(instruction), space_of(instruction)
    address, source = instruction.operands[:2]
    parts = split_operands(source[1:-1]) if source.startswith("{") else [source]
    size, cpp = SIZES[type_], CPP_TYPES[type_]
    site = body.add_site(instruction) if space not in ("param", "const") else 0
    text = f"char* at = {pointer(body, address, space, size * len(parts), site)}; "
    total, kind = size * len(parts), _kind(body, instruction, "kWrite")
    text += _hook(body, space, total, kind, site)
    is_global = space in (None, "global")
    calls = (body.checked and is_global) or (_is_strong(instruction) and space != "local")
    to = "words" if calls else "at"
    stores = " ".join(
        f"store<{cpp}>({to} + {i * size}, {body.value(part, type_)});"
        for i, part in enumerate(parts)
    )
    if not calls:
        return text + stores
    return (
        f"{text}char words[{total}]; {stores} store_words(th, at, words, {total}, {size}, {kind});"
    )


_ATOMIC = {
    "add": "add(old, b)",
    "exch": "b",
    "min": "minimum(old, b)",
    "max": "maximum(old, b)",
    "and": "old & b",
    "or": "old | b",
    "xor": "old ^ b",
    "inc": "wrap_increment(old, b)",
    "dec": "wrap_decrement(old, b)",
    "cas": "old == b ? c : old",
}


@handles("atom", "red")
def _atomic(body: Body, instruction: Instruction) -> str:
    _refuse(instruction)
    type_, space = last_type(instruction), space_of(instruction)
    operation = next((m for m in instruction.modifiers if m in _ATOMIC), None)
    operands = list(instruction.operands)
    result = operands.pop(0) if instruction.opcode == "atom" else "_"
    if operation is None or any(o.startswith("{") for o in operands):
        raise UnsupportedError("this atomic operation")
    if type_ in (*HALVES, *PAIRS) and operation in ("min", "max", "cas"):
        raise UnsupportedError("this atomic operation")
    size, cpp, site = SIZES[type_], CPP_TYPES[type_], body.add_site(instruction)
    text = f"char* at = {pointer(body, operands[0], space, size, site)}; "
    text += _hook(body, space, size, _kind(body, instruction, "kRead | kWrite", atomic=True), site)
    text += f"const {cpp} old = load<{cpp}>(at), b = {body.value(operands[1], type_)}; "
    if operation == "cas":
        text += f"const {cpp} c = {body.value(operands[2], type_)}; "
    update = _ATOMIC[operation]
    if type_ in PAIRS:
        update = f"each([]({cpp[:-2]} x, {cpp[:-2]} y) {{ return add(x, y); }}, old, b)"
    text += f"const {cpp} now = {update}; store<{cpp}>(at, now); "
    if result != "_":
        text += body.assign(result, type_, "old") + " "
    return text + f"atomic_done(th, at, bits(now) != bits(old), {site});"


@handles("cvta")
def _convert_address(body: Body, instruction: Instruction) -> str:
    to, source = instruction.operands
    space, type_ = space_of(instruction), last_type(instruction)
    if SIZES[type_] != 8:
        raise UnsupportedError("32-bit addresses")
    is_symbol = body.register_type(source) is None
    value = body.symbol(source) if is_symbol else body.value(source, "u64")
    if space == "shared":
        sign = "-" if "to" in instruction.modifiers else "+"
        value = f"{value} {sign} reinterpret_cast<uint64_t>(th.shared)"
    return body.assign(to, "u64", value)


@handles("isspacep")
def _is_in_space(body: Body, instruction: Instruction) -> str:
    space = space_of(instruction)
    inside = (
        f"{body.value(instruction.operands[1], 'u64')} - kSharedBase - "
        "reinterpret_cast<uint64_t>(th.shared) < th.shared_bytes"
    )
    if space not in ("shared", "global"):
        raise UnsupportedError(f"isspacep.{space}")
    return body.assign(
        instruction.operands[0], "pred", inside if space == "shared" else f"!({inside})"
    )


@handles("membar", "fence")
def _fence(body: Body, instruction: Instruction) -> str:
    modifiers = instruction.modifiers
    if "proxy" in modifiers or "mbarrier_init" in modifiers:
        raise UnsupportedError("a proxy fence")
    if "acquire" in modifiers or "release" in modifiers:
        raise UnsupportedError("a fence of one direction")
    if not body.checked:
        return ""
    scope = next((_SCOPES[m] for m in modifiers if m in _SCOPES), "kSys")
    return f"on_fence(th, {scope});"


@handles("prefetch", "prefetchu", "discard", "applypriority", "createpolicy")
def _hint(body: Body, instruction: Instruction) -> str:
    if instruction.opcode == "createpolicy":
        return body.assign(instruction.operands[0], "b64", "uint64_t(0)")
    if instruction.opcode == "discard":
        raise UnsupportedError("not emulated")
    return ""


@handles("cp")
def _copy_async(body: Body, instruction: Instruction) -> str:
    _refuse(instruction)
    modifiers, operands = instruction.modifiers, instruction.operands
    if "async" not in modifiers:
        raise UnsupportedError("cp")
    if "commit_group" in modifiers:
        return "cp_async_commit(th);"
    if "wait_group" in modifiers:
        return f"cp_async_wait(th, {body.value(operands[0], 'u32')}, false);"
    if "wait_all" in modifiers:
        return "cp_async_wait(th, 0, true);"
    size, site = int(operands[2], 0), body.add_site(instruction)
    taken = f"{size}u"
    rest = list(operands[3:])
    if any(m.startswith("L2__cache_hint") for m in modifiers):
        rest.pop()
    if rest:
        is_predicate = body.register_type(rest[0]) == "pred"
        taken = (
            f"({body.value(rest[0], 'pred')} ? 0u : {size}u)"
            if is_predicate
            else body.value(rest[0], "u32")
        )
    # A source of which no byte is read may lie anywhere.
    to = pointer(body, operands[0], "shared", size, site)
    address = body.address(operands[1])
    return (
        f"const uint32_t taken = {taken}; char* to = {to}; "
        "const char* from = taken == 0 ? nullptr : "
        f"find_copy_source(th, {address}, taken, {size}, {site}); "
        f"cp_async(th, to, from, {size}, taken, {site});"
    )


@handles("ldmatrix", "stmatrix")
def _matrix(body: Body, instruction: Instruction) -> str:
    modifiers = instruction.modifiers
    if "m8n8" not in modifiers or "b16" not in types_of(instruction):
        raise UnsupportedError("this shape")
    space, site = space_of(instruction), body.add_site(instruction)
    is_load = instruction.opcode == "ldmatrix"
    registers, address = instruction.operands if is_load else instruction.operands[::-1]
    parts = split_operands(registers[1:-1]) if registers.startswith("{") else [registers]
    transpose = "true" if "trans" in modifiers else "false"
    # Lanes past 8 per matrix name no row, and their addresses are not looked at.
    at = f"th.lane < {8 * len(parts)} ? {pointer(body, address, space, 16, site)} : nullptr"
    if is_load:
        return (
            f"uint32_t words[{len(parts)}]; const char* at = {at}; "
            f"load_matrix(th, words, {len(parts)}, {transpose}, at, {site}); "
            + " ".join(body.assign(part, "b32", f"words[{i}]") for i, part in enumerate(parts))
        )
    words = ", ".join(body.value(part, "b32") for part in parts)
    return (
        f"const uint32_t words[{len(parts)}] = {{{words}}}; char* at = {at}; "
        f"store_matrix(th, words, {len(parts)}, {transpose}, at, {site});"
    )


_MMA = {
    ("m16n8k16", "bf16"): ("k16816Bf16", 4, 2),
    ("m16n8k16", "f16"): ("k16816F16", 4, 2),
    ("m16n8k8", "bf16"): ("k1688Bf16", 2, 1),
    ("m16n8k8", "f16"): ("k1688F16", 2, 1),
    ("m16n8k8", "tf32"): ("k1688Tf32", 4, 2),
    ("m16n8k4", "tf32"): ("k1684Tf32", 2, 1),
    ("m8n8k4", "f64"): ("k884F64", 1, 1),
}


@handles("mma")
def _mma(body: Body, instruction: Instruction) -> str:
    modifiers = instruction.modifiers
    types = types_of(instruction)
    shape = next((m for m in modifiers if m.startswith("m") and m[1:2].isdigit()), "")
    form = _MMA.get((shape, types[1] if len(types) == 4 else ""))
    accumulator = "f64" if "f64" in types else "f32"
    fits = len(types) == 4 and types[0] == types[3] == accumulator and types[1] == types[2]
    if form is None or not fits or "row" not in modifiers or "col" not in modifiers:
        raise UnsupportedError("this shape or type")
    name, a_count, b_count = form
    words = SIZES[accumulator] // 4
    operand_type = "b64" if accumulator == "f64" else "b32"
    d, a, b, c = (split_operands(operand[1:-1]) for operand in instruction.operands)
    if len(a) != a_count or len(b) != b_count:
        raise UnsupportedError("this shape or type")

    def fragment(registers: list[str]) -> str:
        return ", ".join(body.value(register, operand_type) for register in registers)

    word = WORDS[4 * words]
    cast = "reinterpret_cast<uint32_t*>" if words == 2 else ""
    const_cast = "reinterpret_cast<const uint32_t*>" if words == 2 else ""
    arguments = ", ".join([f"{cast}(d)", *(f"{const_cast}({name})" for name in "abc")])
    return (
        f"{word} d[{len(d)}]; const {word} a[] = {{{fragment(a)}}}, b[] = {{{fragment(b)}}}, "
        f"c[] = {{{fragment(c)}}}; "
        f"mma(th, Mma::{name}, {arguments}, {body.add_site(instruction)}); "
        + " ".join(body.assign(register, operand_type, f"d[{i}]") for i, register in enumerate(d))
    )
