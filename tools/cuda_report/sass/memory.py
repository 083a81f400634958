# SPDX-License-Identifier: BSD-3-Clause
"""Accesses to memory: which array, how many sectors and wavefronts; contents of shared memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from tools.cuda_report.arguments import Arguments
from tools.cuda_report.sass.decode import Instruction
from tools.cuda_report.sass.lanes import WARP, Lanes, Truth, joined, unknown
from tools.cuda_report.sass.operands import Operand
from tools.cuda_report.sass.warp import Warp, values

LOADS = {"LDG": "global", "LD": "global", "LDS": "shared", "LDL": "local", "LDSM": "shared"}
STORES = {"STG": "global", "ST": "global", "STS": "shared", "STL": "local", "STSM": "shared"}
ATOMICS = {"ATOM": "global", "ATOMG": "global", "RED": "global", "REDG": "global"} | {
    "ATOMS": "shared"
}
ASYNC = {"LDGSTS": "global"}  # cp.async: from global to shared memory
SPACES = {**LOADS, **STORES, **ATOMICS, **ASYNC}
_BANKS, _WORD, _SECTOR = 32, 4, 32


@dataclass(frozen=True)
class Access:
    """What an instruction of a warp asks of memory."""

    space: str
    array: str  # of global memory: the argument's name, "?" where the address is not known
    is_store: bool
    lanes: int
    size: int  # bytes of a lane
    sectors: frozenset[int]  # of 32 bytes; of global memory
    wavefronts: int  # cycles of shared memory

    @property
    def bytes_moved(self) -> int:
        return len(self.sectors) * _SECTOR if self.sectors else self.lanes * self.size


def access_bytes(i: Instruction) -> int:
    """Bytes of a lane."""
    small = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "8": 1, "16": 2}
    if i.base in ("LDSM", "STSM"):
        return 16
    for modifier in i.modifiers:
        if modifier in ("64", "128", "256"):
            return int(modifier) // 8
        if modifier in small:
            return small[modifier]
    return 4


def shared_wavefronts(addresses: list[int], size: int) -> int:
    """Cycles of shared memory: lanes go together by 128 bytes, one word of a bank at a time."""
    together = min(WARP, WARP * _WORD // max(size, _WORD))
    total = 0
    for first in range(0, len(addresses), together):
        words: dict[int, set[int]] = {}
        for address in addresses[first : first + together]:
            for word in range(address // _WORD, (address + size - 1) // _WORD + 1):
                words.setdefault(word % _BANKS, set()).add(word)
        total += max((len(found) for found in words.values()), default=0)
    return max(total, 1)


@dataclass
class SharedMemory:
    """Contents of a block's shared memory, as far as they are known."""

    words: dict[int, int] = field(default_factory=dict)

    def load(self, addresses: Lanes, lanes: Truth, origin: str) -> Lanes:
        bits, known = np.zeros(WARP, np.uint64), np.zeros(WARP, bool)
        for n in np.flatnonzero(lanes.surely & addresses.known):
            word = self.words.get(int(addresses.bits[n]))
            known[n] = word is not None
            bits[n] = word or 0
        return Lanes(bits, known, "" if known.all() else origin)

    def store(self, addresses: Lanes, value: Lanes, lanes: Truth) -> None:
        if not (addresses.known | lanes.surely_not).all():
            self.words.clear()  # it may have gone anywhere
            return
        for n in np.flatnonzero(~lanes.surely_not):
            place = int(addresses.bits[n])
            if value.known[n] and lanes.known[n]:
                self.words[place] = int(value.bits[n])
            else:
                self.words.pop(place, None)

    def forget(self, addresses: Lanes, lanes: Truth) -> None:
        self.store(addresses, unknown("shared memory"), lanes)


class Memory:
    """A block's memory. Global memory is unknown, but for arrays that are given contents."""

    def __init__(self, arguments: Arguments, contents: dict[str, int]) -> None:
        self.arguments = arguments
        self.contents = contents  # one 32-bit value in all even words; the odd ones are zero
        self.shared = SharedMemory()

    def execute(self, warp: Warp, i: Instruction, lanes: Truth) -> Access | None:
        """Carries out an access; None if no lane takes part."""
        touched = ~lanes.surely_not
        space = SPACES[i.base]
        is_store = i.base in STORES or (i.base in ATOMICS)
        places = self._addresses(warp, i)
        size = access_bytes(i)
        if space == "shared":
            self._access_shared(warp, i, places, size, lanes)
        elif i.base in LOADS:
            self._load_global(warp, i, places, size, lanes)
        elif i.base in ASYNC:
            target = next(o for o in i.operands if o.kind == "memory").address
            assert target is not None
            for n in range(size // _WORD):
                word = replace(target, offset=target.offset + n * _WORD)
                self.shared.forget(warp.address(word), lanes)
        if i.base in ATOMICS and not i.base.startswith("RED"):
            self._forget_results(warp, i, 1, lanes)
        if not touched.any():
            return None
        return self._describe(space, is_store, places, size, touched)

    def _addresses(self, warp: Warp, i: Instruction) -> Lanes:
        found = [o for o in i.operands if o.kind == "memory"]
        operand = found[-1]  # of LDGSTS the second is the source
        assert operand.address is not None
        return warp.address(operand.address)

    def _describe(
        self,
        space: str,
        is_store: bool,
        places: Lanes,
        size: int,
        touched: np.typing.NDArray[np.bool_],
    ) -> Access:
        known = touched & places.known
        addresses = [int(a) for a in places.bits[known]]
        count = int(touched.sum())
        unknown_lanes = count - len(addresses)
        if space == "shared":
            wavefronts = shared_wavefronts(addresses, size) if addresses else 0
            wavefronts += -(-unknown_lanes * size // (_BANKS * _WORD))
            return Access(space, "shared", is_store, count, size, frozenset(), wavefronts)
        array = self.arguments.array_of(addresses[0]) if addresses else None
        sectors = {s for a in addresses for s in range(a // _SECTOR, (a + size - 1) // _SECTOR + 1)}
        sectors |= {-1 - n for n in range(-(-unknown_lanes * size // _SECTOR))}
        return Access(space, array or "?", is_store, count, size, frozenset(sectors), 0)

    def _access_shared(
        self, warp: Warp, i: Instruction, places: Lanes, size: int, lanes: Truth
    ) -> None:
        words = max(1, size // _WORD)
        for n in range(words):
            part = Lanes(places.bits + np.uint64(n * _WORD), places.known, places.origin)
            if i.base == "STS" and size >= _WORD:
                source = values(i.operands)[-1]
                value = warp.raw(_next_register(source, n))
                self.shared.store(part, value, lanes)
            elif i.base == "LDS" and size >= _WORD:
                result = values(i.operands)[0]
                origin = f"shared memory at {i.address:#x}"
                loaded = self.shared.load(part, lanes, origin)
                warp.registers.write(_next_register(result, n).index, loaded, lanes)
            elif i.base in LOADS:
                self._forget_results(warp, i, words, lanes)
            else:
                self.shared.forget(part, lanes)

    def _load_global(
        self, warp: Warp, i: Instruction, places: Lanes, size: int, lanes: Truth
    ) -> None:
        result = values(i.operands)[0]
        first = places.bits[places.known]
        array = self.arguments.array_of(int(first[0])) if len(first) else None
        origin = f"{i.name} of {array} at {i.address:#x}"
        for n in range(max(1, size // _WORD)):
            value = unknown(origin)
            if array in self.contents and size >= _WORD:
                odd = (places.bits // np.uint64(_WORD) + np.uint64(n)) & np.uint64(1)
                bits = np.where(odd, 0, self.contents[array]).astype(np.uint64)
                value = Lanes(bits, *joined(places))
            warp.registers.write(_next_register(result, n).index, value, lanes)

    def _forget_results(self, warp: Warp, i: Instruction, words: int, lanes: Truth) -> None:
        result = values(i.operands)[0]
        count = 4 if i.base == "LDSM" else words
        for n in range(count):
            place = _next_register(result, n).index
            warp.registers.write(place, unknown(f"{i.name} at {i.address:#x}"), lanes)


def _next_register(operand: Operand, n: int) -> Operand:
    if n == 0 or operand.kind != "register" or operand.index % 256 == 255:
        return operand
    return replace(operand, index=operand.index + n)
