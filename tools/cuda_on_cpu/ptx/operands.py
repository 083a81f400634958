# SPDX-License-Identifier: BSD-3-Clause
"""Operands of instructions as C++ expressions: registers, immediates, symbols and addresses."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .syntax import SIZES, Function, Instruction, Variable

CPP_TYPES = {
    "pred": "bool",
    **{f"{kind}{8 * size}": f"uint{8 * size}_t" for kind in "bu" for size in (1, 2, 4, 8)},
    **{f"s{8 * size}": f"int{8 * size}_t" for size in (1, 2, 4, 8)},
    **{"f16": "f16", "bf16": "bf16", "f16x2": "f16x2", "bf16x2": "bf16x2"},
    **{"f32": "float", "f64": "double", "tf32": "uint32_t"},
}
WORDS = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}

_SPECIAL = {
    **{f"%tid.{d}": f"th.tid.{d}" for d in "xyz"},
    **{f"%ntid.{d}": f"th.ntid.{d}" for d in "xyz"},
    **{f"%ctaid.{d}": f"th.ctaid.{d}" for d in "xyz"},
    **{f"%nctaid.{d}": f"th.nctaid.{d}" for d in "xyz"},
    # Without clusters each block is a cluster of its own.
    **{f"%clusterid.{d}": f"th.ctaid.{d}" for d in "xyz"},
    **{f"%nclusterid.{d}": f"th.nctaid.{d}" for d in "xyz"},
    **{f"%cluster_ctaid.{d}": "0u" for d in "xyz"},
    **{f"%cluster_nctaid.{d}": "1u" for d in "xyz"},
    **{"%cluster_ctarank": "0u", "%cluster_nctarank": "1u", "%is_explicit_cluster": "false"},
    **{"%laneid": "th.lane", "%warpid": "th.warp", "WARP_SZ": "32u", "%nwarpid": "32u"},
    **{"%smid": "sm_id(th)", "%nsmid": "sm_count(th)", "%gridid": "uint64_t(1)"},
    **{"%clock": "uint32_t(clock(th))", "%clock64": "clock(th)"},
    "%globaltimer": "nanoseconds(th)",
    "%globaltimer_lo": "uint32_t(nanoseconds(th))",
    "%globaltimer_hi": "uint32_t(nanoseconds(th) >> 32)",
    "%envreg1": "uint32_t(grid_workspace(th) >> 32)",
    "%envreg2": "uint32_t(grid_workspace(th))",
    "%dynamic_smem_size": "th.dynamic_shared_bytes",
    "%total_smem_size": "uint32_t(th.shared_bytes)",
    "%lanemask_eq": "(1u << th.lane)",
    "%lanemask_lt": "((1u << th.lane) - 1)",
    "%lanemask_le": "((2u << th.lane) - 1)",
    "%lanemask_gt": "~((2u << th.lane) - 1)",
    "%lanemask_ge": "~((1u << th.lane) - 1)",
}


class UnsupportedError(Exception):
    """An instruction, or a form of one, that the translator does not know."""


def cpp_name(name: str) -> str:
    return "r_" + re.sub(r"\W", "_", name)


def cpp_label(name: str) -> str:
    return "L_" + re.sub(r"\W", "_", name)


@dataclass
class Body:
    """The function being translated, and what its instructions have asked for so far."""

    function: Function
    checked: bool
    shared: dict[str, int]  # variable -> shared address
    pointers: dict[str, str]  # symbol -> C++ expression of its host address
    functions: dict[str, Function]
    add_site: Callable[[Instruction], int]
    used: dict[str, str] = field(default_factory=dict)  # register -> type
    uses_carry: bool = False
    seen_labels: set[str] = field(default_factory=set)

    def register_type(self, name: str) -> str | None:
        if name in self.function.registers:
            return self.function.registers[name]
        return self.function.ranges.get(name.rstrip("0123456789"))

    def register(self, name: str) -> str:
        type_ = self.register_type(name)
        if type_ is None:
            raise UnsupportedError(f"register {name}")
        self.used[name] = type_
        return cpp_name(name)

    def value(self, operand: str, type_: str) -> str:
        """Return the operand read as `type_`: a C++ expression of that type."""
        size, cpp = SIZES[type_], CPP_TYPES[type_]
        if operand.startswith("!"):
            return "!" + self.value(operand[1:], type_)
        if operand in _SPECIAL:
            return f"static_cast<{cpp}>({_SPECIAL[operand]})"
        if self.register_type(operand) is not None:
            return self._read_register(operand, type_)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
            word = f"as<float>(0x{operand[2:]}u)"
            return word if type_ in ("f32", "f64") else f"as<{cpp}>(0x{operand[2:]}u)"
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", operand):
            return f"static_cast<{cpp}>(as<double>(0x{operand[2:]}ull))"
        if re.fullmatch(r"[-+]?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            number = int(operand.rstrip("U"), 0)
            if type_ == "pred":
                return "true" if number else "false"
            word = f"{WORDS[size]}({number & ((1 << 8 * size) - 1)}ull)"
            return word if cpp == WORDS[size] else f"as<{cpp}>({word})"
        return f"static_cast<{cpp}>({self.symbol(operand)})"

    def _read_register(self, name: str, type_: str) -> str:
        held = SIZES[self.register(name) and self.used[name]]
        size, cpp, text = SIZES[type_], CPP_TYPES[type_], cpp_name(name)
        if type_ == "pred":
            return text
        if held < size:
            raise UnsupportedError(f"{name} read as the wider {type_}")
        if held > size:
            text = f"static_cast<{WORDS[size]}>({text})"
        return text if cpp == WORDS[size] else f"as<{cpp}>({text})"

    def assign(self, operand: str, type_: str, expression: str) -> str:
        """Return the statement that gives the register the value of `expression`, of `type_`."""
        if operand == "_":
            return f"(void)({expression});"
        name = self.register(operand)
        held = self.used[operand]
        if held == "pred":
            return f"{name} = {expression};"
        if SIZES[held] < SIZES[type_]:
            raise UnsupportedError(f"{operand} is too narrow for {type_}")
        if type_.startswith("s") and SIZES[type_] < SIZES[held]:
            return f"{name} = static_cast<{WORDS[SIZES[held]]}>(int64_t({expression}));"
        if SIZES[type_] < SIZES[held]:
            return f"{name} = static_cast<{WORDS[SIZES[held]]}>(bits({expression}));"
        if CPP_TYPES[type_] == WORDS[SIZES[held]]:
            return f"{name} = {expression};"
        return f"{name} = bits({expression});"

    def symbol(self, name: str) -> str:
        """Return the address of a variable, as a 64-bit integer in its own space."""
        if name in self.shared:
            return f"{self.shared[name]}ull"
        if name in self.pointers:
            return f"reinterpret_cast<uint64_t>({self.pointers[name]})"
        raise UnsupportedError(f"symbol {name}")

    def address(self, operand: str) -> str:
        """Return the number in brackets, as a 64-bit integer."""
        match = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+)|(-\s*\d+))?\s*\]", operand)
        if match is None:
            raise UnsupportedError(f"address {operand}")
        base = match[1]
        offset = (match[2] or match[3] or "").replace(" ", "")
        if self.register_type(base) is not None:
            text = self.register(base)
            if SIZES[self.used[base]] == 4:
                # 32-bit addresses wrap at 32 bits.
                text = f"uint64_t(uint32_t({text} + {offset or 0}))"
                offset = ""
        elif base.isdigit():
            text = f"{base}ull"
        else:
            text = self.symbol(base)
        return f"{text} + {offset}" if offset not in ("", "0") else text


def space_of(instruction: Instruction) -> str | None:
    spaces = ("global", "shared", "local", "param", "const")
    for modifier in instruction.modifiers:
        if modifier.partition("__")[0] in spaces:
            if modifier.endswith("__cluster"):
                raise UnsupportedError("shared memory of the cluster")
            return modifier.partition("__")[0]
    return None


def types_of(instruction: Instruction) -> list[str]:
    return [modifier for modifier in instruction.modifiers if modifier in SIZES]


def layout(variables: list[Variable], offset: int) -> tuple[dict[str, int], int]:
    """Lay variables out one after another; return their offsets and the end."""
    offsets = {}
    for variable in variables:
        offset = -(-offset // variable.align) * variable.align
        offsets[variable.name] = offset
        offset += variable.bytes
    return offsets, offset
