# SPDX-License-Identifier: BSD-3-Clause
"""Finds what blocks exchange: arrays, other than a direction's, that a kernel writes and reads; and
which load reads what which stores have written.

Time is counted in barriers of the block that a warp has passed. A load reads what was last stored
to its sectors: since kernels exchange through several buffers in turn, this tells which stores.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.cuda_report.sass.decode import Listing
from tools.cuda_report.sass.memory import LOADS
from tools.cuda_report.sass.walk import Step

Key = tuple[str, int]  # an array, and the barriers passed when it was written
Place = tuple[int, int]  # a warp, and the number of one of its steps


@dataclass
class Exchange:
    loads: dict[Place, Key] = field(default_factory=dict)  # what each load reads
    published_by: dict[Place, Key] = field(default_factory=dict)  # the stores
    stores: dict[Key, int] = field(default_factory=dict)  # how many


def find_exchange(listing: Listing, warps: Sequence[Sequence[Step]]) -> Exchange:
    found = Exchange()
    written: dict[Key, set[int]] = defaultdict(set)
    reads: list[tuple[Place, int, str, int, frozenset[int]]] = []
    for number, steps in enumerate(warps):
        barriers = 0
        for n, step in enumerate(steps):
            base = listing.instructions[step.place].base
            barriers += base == "BAR"
            access = step.access
            if access is None or access.space != "global":
                continue
            if access.is_store:
                key = (access.array, barriers)
                written[key] |= access.sectors
                found.published_by[number, n] = key
            elif base in LOADS:
                reads.append(((number, n), step.place, access.array, barriers, access.sectors))
    exchanged = {array for array, _ in written} & {read[2] for read in reads}
    exchanged = {array for array in exchanged if not array.startswith("direction[")}
    found.published_by = {p: k for p, k in found.published_by.items() if k[0] in exchanged}
    found.stores = dict(Counter(found.published_by.values()))
    reads = [read for read in reads if read[2] in exchanged]
    _pair(found, written, reads)
    return found


def _pair(
    found: Exchange,
    written: dict[Key, set[int]],
    reads: list[tuple[Place, int, str, int, frozenset[int]]],
) -> None:
    """Finds the stores of each load; of a load that meets none of this block's own, by the distance
    in barriers at which others of the same instruction, or of the same array, meet theirs."""
    times: dict[str, list[int]] = defaultdict(list)
    for array, barriers in written:
        times[array].append(barriers)
    distances: dict[object, Counter[int]] = defaultdict(Counter)
    matched: dict[Place, int] = {}
    for me, place, array, barriers, sectors in reads:
        for time in sorted((t for t in times[array] if t <= barriers), reverse=True):
            if written[array, time] & sectors:
                matched[me] = time
                distances[place][barriers - time] += 1
                distances[array][barriers - time] += 1
                break
    for me, place, array, barriers, _ in reads:
        if me in matched:
            time = matched[me]
        else:
            votes = distances[place] or distances[array]
            if not votes:
                continue
            time = barriers - votes.most_common(1)[0][0]
        if (array, time) in found.stores:
            found.loads[me] = (array, time)
