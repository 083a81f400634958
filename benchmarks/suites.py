# SPDX-License-Identifier: BSD-3-Clause
"""The suites: named lists of cases, in three sizes.

An entry's level says which runs hold it: "quick" ones are in every run, "default" ones in default
and full runs, "full" ones only there. `every_peer` entries are given to all peers in a default run,
the others to FusedLSTM and nn.LSTM alone; a full run, or --peers, gives every case to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.case import VARIANTS, Case, CaseError

LEVELS = ("quick", "default", "full")


@dataclass(frozen=True)
class Entry:
    case: Case
    level: str = "default"
    every_peer: bool = False


@dataclass(frozen=True)
class Suite:
    """A named list of cases.

    Args:
        about: one sentence for tables and reports.
        entries: in the order in which they run.
        variants: what the suite makes of a shape from the command line: changes to a plain case.
    """

    name: str
    about: str
    entries: tuple[Entry, ...]
    variants: tuple[dict[str, Any], ...]

    def select(self, level: str) -> list[Entry]:
        allowed = LEVELS[: LEVELS.index(level) + 1]
        return [entry for entry in self.entries if entry.level in allowed]

    def of_shape(self, shape: dict[str, Any]) -> list[Entry]:
        """Own shapes are asked for by name, so every peer runs them."""
        found = []
        for variant in self.variants:
            # What the suite varies in relation to H cannot be written down beforehand.
            change = {k: v(shape) if callable(v) else v for k, v in variant.items()}
            try:
                found.append(Entry(replace(Case(), **{**shape, **change}), "quick", True))
            except CaseError:
                continue  # A projection of H = 1, say: there is none.
        return found


# The shapes of the project's goals: (T, N, D, H), level, every_peer.
_GOALS: tuple[tuple[tuple[int, int, int, int], str, bool], ...] = (
    ((100, 1, 64, 64), "quick", True),
    ((100, 1, 256, 256), "default", False),
    ((100, 1, 512, 512), "default", False),
    ((100, 4, 256, 256), "default", False),
    ((100, 16, 128, 128), "quick", True),
    ((28, 64, 28, 128), "default", True),
    ((20, 256, 64, 64), "default", False),
    ((100, 64, 128, 128), "default", False),
    ((100, 32, 128, 256), "default", True),
    ((100, 64, 512, 512), "default", False),
    ((100, 128, 1024, 1024), "default", False),
)


def _goals(mode: str) -> tuple[Entry, ...]:
    entries = []
    for (steps, rows, inputs, units), level, every in _GOALS:
        case = Case(steps, rows, inputs, units, mode=mode)
        # A training step of this one takes seconds, and so does compiling the loop with gradients.
        heavy = mode == "training" and units == 1024
        every = every and (mode == "inference" or units != 128)
        entries.append(Entry(case, "full" if heavy else level, every))
    return tuple(entries)


def _entries(base: Case, changes: Sequence[dict[str, Any]], **options: Any) -> tuple[Entry, ...]:
    return tuple(Entry(replace(base, **change), **options) for change in changes)


_MIDDLE = Case(100, 32, 128, 256, mode="training")
_STEP = Case(T=1, measure="latency")
_OPTIONS = (
    {"bidirectional": True},
    {"layers": 2},
    {"P": lambda shape: shape["H"] // 2},
    {"dtype": "float64"},
    {"recompute": True},
)
_BOTH = ({"mode": "inference"}, {"mode": "training"})
_LOWP = tuple({**mode, "dtype": dtype} for dtype in ("bfloat16", "float16") for mode in _BOTH)
_RAGGED = tuple({"mode": "training", "ragged": kind} for kind in ("packed", "lengths"))
_TINY = Case(T=1, N=1, D=1, H=1, measure="latency")
_NARROW = Case(60, 32, 1, 64)
_SATURATED = tuple(
    {"saturated": kind, **mode} for kind in ("inputs", "-60", "-1e4") for mode in _BOTH
)
_MEMORY = {"measure": "memory", "mode": "training"}
_MEMORY_OPTIONS = tuple(
    {"bidirectional": two, "recompute": recompute}
    for two in (False, True)
    for recompute in (False, True)
)

# What is done with a cell: a step without gradients, a loop of steps in training, the gradient of
# the input alone; and which (N, H) of the grid a default run has.
_CELL = Case(cell=True, threads=1)
_CELL_USES = (
    ({"T": 1}, ((1, 16), (1, 128), (1, 512))),
    ({"T": 10, "mode": "training"}, ((1, 16), (1, 128), (1, 512), (4, 256))),
    ({"T": 1, "mode": "grad_input"}, ((1, 128), (1, 512), (4, 512))),
)
_CELL_GRID = [(n, h) for h in (16, 32, 64, 100, 128, 256, 512, 1024) for n in (1, 2, 4, 16)]


def _cells() -> tuple[Entry, ...]:
    return tuple(
        Entry(replace(_CELL, N=n, D=h, H=h, **use), "default" if (n, h) in default else "full")
        for use, default in _CELL_USES
        for n, h in _CELL_GRID
    )


# Few rows, where the bytes of the weights count: the shape of a quick run, those of a default one,
# and all of a full one.
_WEIGHTS = Case(rounded=True)
_WEIGHTS_QUICK = (100, 1, 256, 1)
_WEIGHTS_DEFAULT = (
    *((100, 1, h, 1) for h in (64, 256, 512, 1024)),
    *((1, 1, h, 1) for h in (64, 512, 1024)),
    *((100, 16, 256, 1), (100, 1, 512, 2)),
)
_WEIGHTS_ALL = [
    (t, n, h, layers)
    for layers in (1, 2)
    for t in (100, 1)
    for n in (1, 4, 16)
    for h in (64, 128, 256, 512, 1024)
]


def _weights() -> tuple[Entry, ...]:
    entries = []
    for shape in _WEIGHTS_ALL:
        steps, rows, units, layers = shape
        case = replace(_WEIGHTS, T=steps, N=rows, D=units, H=units, layers=layers)
        case = replace(case, measure="latency" if steps == 1 else "time")
        level = "default" if shape in _WEIGHTS_DEFAULT else "full"
        entries.append(Entry(case, "quick" if shape == _WEIGHTS_QUICK else level, True))
    return tuple(entries)


# Each option of the cell alone: those of a default run, with many rows, and all of a full one.
_VARIANTS_DEFAULT = ("recurrent_dropout", "layer_norm")


def _variants() -> tuple[Entry, ...]:
    return tuple(
        Entry(
            replace(base, variant=variant),
            "default" if base is _MIDDLE and variant in _VARIANTS_DEFAULT else "full",
        )
        for base in (_MIDDLE, Case(100, 1, 128, 128, mode="training"))
        for variant in VARIANTS
    )


# The short ones stand before the long ones, which a run that is out of time leaves out.
_ALL = (
    Suite("inference", "whole sequences, without gradients", _goals("inference"), (_BOTH[0],)),
    Suite(
        "training",
        "forward, and the gradients of the input and of every parameter",
        _goals("training"),
        (_BOTH[1],),
    ),
    Suite(
        "step",
        "one time step through the module, as in streaming",
        _entries(_STEP, [{"D": 64, "H": 64}], level="quick", every_peer=True)
        + _entries(_STEP, [{"D": h, "H": h} for h in (128, 256, 512)]),
        ({"T": 1, "measure": "latency"},),
    ),
    Suite(
        "overhead",
        "a call with next to no arithmetic: through the module, as an operator, with gradients",
        _entries(_TINY, [{}, {"mode": "op"}], level="quick")
        + _entries(_TINY, [{"mode": "training"}]),
        ({"T": 1, "N": 1, "D": 1, "H": 1}, {"T": 1, "N": 1, "D": 1, "H": 1, "mode": "op"}),
    ),
    Suite(
        "cell",
        "FusedLSTMCell against nn.LSTMCell: a step, a loop in training, the input's gradient alone",
        _cells(),
        tuple({"cell": True, "threads": 1, **use} for use, _ in _CELL_USES),
    ),
    Suite(
        "ragged",
        "rows of lengths T to T/4 in training: a PackedSequence, or padded tensors",
        _entries(_MIDDLE, _RAGGED) + _entries(replace(_MIDDLE, T=400), _RAGGED),
        _RAGGED,
    ),
    Suite(
        "resets",
        "states reset in mid-sequence, against the Python loop that does it",
        _entries(Case(128, 16, 256, 256), [{"resets": 0.03, "mode": "training"}])
        + _entries(Case(128, 16, 256, 256), [{"resets": 0.03}], level="full"),
        ({"resets": 0.03, **_BOTH[0]}, {"resets": 0.03, **_BOTH[1]}),
    ),
    Suite(
        "saturated",
        "gates at 0 and 1, by large inputs or by the input gate's bias, beside the same without",
        _entries(_NARROW, [*_BOTH, _SATURATED[0], _SATURATED[-1]])
        + _entries(replace(_NARROW, dtype="bfloat16"), [_SATURATED[0], _SATURATED[-1]])
        + _entries(_NARROW, _SATURATED[1:-1], level="full")
        + _entries(replace(_NARROW, dtype="bfloat16"), [*_BOTH, *_SATURATED[1:-1]], level="full"),
        (*_BOTH, *_SATURATED),
    ),
    Suite(
        "options",
        "a second direction, a second layer, a projection, float64, rebuilt gates, in training",
        _entries(_MIDDLE, [_OPTIONS[0], _OPTIONS[1], {"P": 128}, *_OPTIONS[3:]]),
        tuple({"mode": "training", **option} for option in _OPTIONS),
    ),
    Suite(
        "variants",
        "options of the cell in training, against loops over such a cell and the plain layer",
        _variants(),
        tuple({"mode": "training", "variant": variant} for variant in VARIANTS),
    ),
    Suite(
        "lowp",
        "16-bit types; the peers that lack them are left out",
        _entries(_MIDDLE, _LOWP[:2] + _LOWP[2:]),
        _LOWP,
    ),
    Suite(
        "memory",
        "peak memory of a training step beyond what was there before it",
        _entries(
            Case(400, 64, 128, 256),
            [{**_MEMORY, **option} for option in _MEMORY_OPTIONS],
        ),
        tuple({**_MEMORY, "recompute": recompute} for recompute in (False, True)),
    ),
    Suite(
        "weights",
        "weights rounded to 8 or 16 bits, and each peer's error; the speed-up is nn.LSTM's float32",
        _weights(),
        ({"rounded": True},),
    ),
    Suite(
        "scaling",
        "how time grows with T, N, H and threads, and beside a busy process",
        _entries(
            Case(100, 32, 256, 256),
            [{"threads": 1}, {"threads": -1}, {"busy": True}, {"busy": True, "mode": "training"}],
        )
        + _entries(_MIDDLE, [{"T": t, "mode": "inference"} for t in (1, 10, 1000)], level="full")
        + _entries(_MIDDLE, [{"N": n, "mode": "inference"} for n in (1, 8, 128, 512)], level="full")
        + _entries(
            _MIDDLE,
            [{"D": h, "H": h, "mode": "inference"} for h in (1, 33, 96, 512, 1024)],
            level="full",
        ),
        ({"threads": 1}, {"threads": -1}, {"T": 1}, {"N": 1}, {"busy": True}),
    ),
)

SUITES = {suite.name: suite for suite in _ALL}


def resolve_threads(case: Case, threads: int) -> Case:
    """A case of -1 threads gets all of the run's; doubling in between is left to --threads."""
    return replace(case, threads=threads) if case.threads == -1 else case


def parse_suites(text: str) -> list[Suite]:
    """Suites of a list with commas, or "all".

    Raises:
        CaseError: a name that no suite has.
    """
    if text == "all":
        return list(_ALL)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SUITES:
            raise CaseError(f"suite {name!r} is none of {', '.join(SUITES)}, all")
    return [SUITES[name] for name in names]
