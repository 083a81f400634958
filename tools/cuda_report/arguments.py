# SPDX-License-Identifier: BSD-3-Clause
"""The persistent kernels' arguments as bytes, laid out as the structs in the headers say.

Pointers get addresses of their own, far apart, so that an address tells which array it lies in.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tools.cuda_report.cubins import SOURCES

# An array begins here, counted from the array's number times ARRAY_SPACE.
ARRAY_SPACE, ARRAY_START = 1 << 44, 1 << 43

_SCALARS: dict[str, Any] = {
    **{"int": ctypes.c_int32, "unsigned": ctypes.c_uint32, "float": ctypes.c_float},
    **{f"int{n}_t": getattr(ctypes, f"c_int{n}") for n in (8, 16, 32, 64)},
    **{f"uint{n}_t": getattr(ctypes, f"c_uint{n}") for n in (8, 16, 32, 64)},
    **{"bool": ctypes.c_bool, "size_t": ctypes.c_uint64},
    "unsigned long long": ctypes.c_uint64,
}
_HEADERS = ("recurrence.h", "persistent/arguments.h")
_DIRECTIONS = "kMaxDirections"
MAX_DIRECTIONS = 2


@dataclass
class Arguments:
    """A kernel's parameters: bytes, which of them are known, and the names of the arrays."""

    data: bytes
    known: bytes  # 1 for each known byte
    arrays: list[str]  # by number

    def array_of(self, address: int) -> str | None:
        number = address // ARRAY_SPACE
        return self.arrays[number - 1] if 1 <= number <= len(self.arrays) else None

    @staticmethod
    def offset(address: int) -> int:
        """Bytes from the beginning of the array in which an address lies."""
        return address % ARRAY_SPACE - ARRAY_START


@cache
def struct_fields(name: str) -> tuple[tuple[str, str], ...]:
    """Names and types of the fields of a struct in csrc/cuda: ("steps", "int")."""
    for header in _HEADERS:
        found = parse_struct((SOURCES / header).read_text(), name)
        if found is not None:
            return found
    raise ValueError(f"no struct {name} in {', '.join(_HEADERS)} of {SOURCES}")


def parse_struct(text: str, name: str) -> tuple[tuple[str, str], ...] | None:
    text = re.sub(r"//[^\n]*", "", text)
    body = re.search(rf"\bstruct {name}\s*\{{(.*?)\n\}};", text, re.DOTALL)
    if body is None:
        return None
    fields = []
    for statement in body[1].split(";"):
        declaration = re.sub(r"=.*|\{\}", "", statement.strip(), flags=re.DOTALL).strip()
        if not declaration:
            continue
        first, *others = (part.strip() for part in declaration.split(","))
        match = re.match(r"(?:const\s+)?([\w: ]+?)\s*(\**)\s*(\w+)(\[\w+\])?$", first)
        if match is None:
            raise ValueError(f"struct {name}: got {declaration!r}, wanted a type and a name")
        kind = "pointer" if match[2] else match[1] + (match[4] or "")
        fields += [(field, kind) for field in (match[3], *others)]
    return tuple(fields)


class _Layout:
    def __init__(self, values: Mapping[str, int | None]) -> None:
        self.values, self.arrays = values, list[str]()

    def structure(self, name: str, recurrence: str) -> Any:
        """A ctypes structure type; a template's Recurrence is the struct of this name."""
        fields = []
        for field, kind in struct_fields(name):
            base, _, count = kind.partition("[")
            if kind == "pointer":
                fields.append((field, ctypes.c_uint64))
            elif base == "Recurrence":
                part = self.structure(recurrence, recurrence)
                number = MAX_DIRECTIONS if count == f"{_DIRECTIONS}]" else int(count[:-1])
                fields.append((field, part * number))
            elif kind in _SCALARS:
                fields.append((field, _SCALARS[kind]))
            else:
                raise ValueError(f"{name}::{field}: got {kind}, wanted a scalar or a pointer")
        return type(name, (ctypes.Structure,), {"_fields_": fields})

    def fill(self, struct: Any, known: Any, prefix: str = "") -> None:
        """Gives every field a value; fields that `values` does not name are arrays, or unknown."""
        for (field, kind), (_, ctype) in zip(
            struct_fields(type(struct).__name__), struct._fields_, strict=True
        ):
            name = prefix + field
            place = getattr(type(struct), field)
            if issubclass(ctype, ctypes.Array):
                for i, element in enumerate(getattr(struct, field)):
                    size = ctypes.sizeof(element)
                    start = place.offset + i * size
                    self.fill(element, known[start : start + size], f"{name}[{i}].")
                continue
            end = place.offset + place.size
            if name in self.values:
                value = self.values[name]
                if value is not None:
                    setattr(struct, field, value)
                    known[place.offset : end] = b"\1" * place.size
            elif kind == "pointer":
                self.arrays.append(name)
                setattr(struct, field, len(self.arrays) * ARRAY_SPACE + ARRAY_START)
                known[place.offset : end] = b"\1" * place.size


def make_arguments(values: Mapping[str, int | None], backward: bool, group: bool) -> Arguments:
    """Arguments of a persistent kernel.

    Args:
        values: of fields, by name ("direction[0].cells" for those of a direction); 0 is a null
            pointer too, None is unknown. Pointers without a value are arrays, numbers are unknown.
    """
    layout = _Layout(values)
    recurrence = "BackwardRecurrence" if backward else "ForwardRecurrence"
    data, known = bytearray(), bytearray()
    for name in ("PersistentArgs", "GroupArgs") if group else ("PersistentArgs",):
        struct = layout.structure(name, recurrence)()
        flags = bytearray(ctypes.sizeof(struct))
        layout.fill(struct, memoryview(flags))
        data += bytes(struct)
        known += flags
    return Arguments(bytes(data), bytes(known), layout.arrays)


def parameter_place(cubin: Path, symbol: str) -> tuple[int, int]:
    """Where a kernel's parameters lie in constant bank 0, and their bytes: EIATTR_PARAM_CBANK."""
    data = cubin.read_bytes()
    info = _section(data, f".nv.info.{symbol}")
    place = 0
    while place < len(info):
        format_, attribute = info[place], info[place + 1]
        size = int.from_bytes(info[place + 2 : place + 4], "little")
        value = info[place + 4 : place + 4 + size] if format_ == 4 else b""
        if format_ == 4 and attribute == 0x0A:
            return (
                int.from_bytes(value[4:6], "little"),
                int.from_bytes(value[6:8], "little"),
            )
        place += 4 + len(value)
    raise ValueError(f"{cubin}: {symbol} does not say where its parameters lie")


def constant_tables(cubin: Path, symbol: str) -> dict[int, bytes]:
    """The constant banks, by number, that the compiler has filled: tables of jumps, for one."""
    data = cubin.read_bytes()
    banks = {bank: _find_section(data, f".nv.constant{bank}.{symbol}") for bank in (2, 3, 4)}
    return {bank: found for bank, found in banks.items() if found is not None}


def _section(elf: bytes, name: str) -> bytes:
    found = _find_section(elf, name)
    if found is None:
        raise ValueError(f"no section {name}")
    return found


def _find_section(elf: bytes, name: str) -> bytes | None:
    """A section of a 64-bit ELF file."""

    def number(place: int, size: int) -> int:
        return int.from_bytes(elf[place : place + size], "little")

    table, entry, count, names = number(40, 8), number(58, 2), number(60, 2), number(62, 2)
    headers = [table + i * entry for i in range(count)]
    strings = number(headers[names] + 24, 8)
    for header in headers:
        start = strings + number(header, 4)
        if elf[start : elf.index(b"\0", start)].decode() == name:
            offset, size = number(header + 24, 8), number(header + 32, 8)
            return elf[offset : offset + size]
    return None
