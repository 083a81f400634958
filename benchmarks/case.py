# SPDX-License-Identifier: BSD-3-Clause
"""One thing to measure: a shape, its options, and what is done with it; and its least work."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

GATES = 4

# Bytes of an element of each dtype. tf32 is float32 in memory; its products round to 10 bits.
ITEM_BYTES = {"float32": 4, "tf32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
DTYPE_ALIASES = {
    "fp32": "float32",
    "fp64": "float64",
    "bf16": "bfloat16",
    "fp16": "float16",
}

# What one call is. inference: module call without gradients; training: forward, and the gradients
# of the input and of every parameter for a given gradient of y; grad_input: the same, but only the
# input's gradient is asked for, though parameters require theirs; op: the operator beneath the
# module, without gradients (what is left of `inference` is Python).
MODES = ("inference", "training", "grad_input", "op")
# How rows of unequal length are handed over. packed: a PackedSequence goes in and comes out;
# lengths: padded tensors go in and come out, so that a peer that needs packing packs in its time.
RAGGED = ("", "packed", "lengths")
# What drives gates to 0 and 1. inputs: a feature of x is some 100000 large, so that they all are;
# a number: the input gate's bias, for a gate that is almost or altogether closed.
SATURATED = ("", "inputs", "-60", "-1e4")
# Options of FusedLSTM's cell by its arguments' names, and the value that is measured; "plain" has
# none.
VARIANTS: dict[str, float | bool] = {
    "plain": False,
    "recurrent_dropout": 0.2,
    "weight_dropout": 0.2,
    "zoneout": 0.1,
    "layer_norm": True,
    "peephole": True,
    "cell_clip": 3.0,
    "coupled_gates": True,
}
# Variants that draw masks in training: their results are compared in evaluation mode.
RANDOM_VARIANTS = ("recurrent_dropout", "weight_dropout", "zoneout")


class CaseError(ValueError):
    """A shape or option that makes no case: printed as one line."""


@dataclass(frozen=True)
class Case:
    """T steps, N rows, D features in, H units, P projected (0: none)."""

    T: int = 100
    N: int = 1
    D: int = 128
    H: int = 128
    P: int = 0
    layers: int = 1
    bidirectional: bool = False
    # A Python loop over FusedLSTMCell, and for the reference over nn.LSTMCell.
    cell: bool = False
    mode: str = "inference"
    dtype: str = "float32"
    ragged: str = ""
    # The share of steps at which a row's state is reset.
    resets: float = 0.0
    saturated: str = ""
    # Peers may round the weights to 8 or 16 bits; their errors are told, and may be large.
    rounded: bool = False
    # FusedLSTM's option: the backward rebuilds the gates. The others run as without it.
    recompute: bool = False
    # One of VARIANTS: FusedLSTM has the option, its rivals are loops over a cell that has it.
    variant: str = ""
    # "time": seconds of a call; "latency": the same, with percentiles; "memory": peak bytes.
    measure: str = "time"
    # Initial states are zero (for peers that take none); else they are drawn.
    zero_states: bool = False
    # CPU threads; 0: as the run says.
    threads: int = 0
    # Another process keeps every core busy meanwhile.
    busy: bool = False

    def __post_init__(self) -> None:
        for name in ("T", "N", "D", "H", "layers"):
            if getattr(self, name) < 1:
                raise CaseError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.P < self.H:
            raise CaseError(f"P must be at least 0 and below H={self.H}, got {self.P}")
        if self.dtype not in ITEM_BYTES:
            raise CaseError(f"dtype must be one of {', '.join(ITEM_BYTES)}, got {self.dtype}")
        if self.mode not in MODES:
            raise CaseError(f"mode must be one of {', '.join(MODES)}, got {self.mode}")
        if self.ragged not in RAGGED:
            raise CaseError(f"ragged must be packed or lengths, got {self.ragged}")
        if self.saturated not in SATURATED:
            known = ", ".join(SATURATED[1:])
            raise CaseError(f"saturated must be one of {known}, got {self.saturated}")
        if self.variant:
            self._check_variant()

    def _check_variant(self) -> None:
        if self.variant not in VARIANTS:
            raise CaseError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant}")
        others = self.cell or self.ragged or self.resets or self.P or self.rounded
        if others or self.layers > 1 or self.bidirectional or self.mode == "op":
            raise CaseError(
                f"variant {self.variant}: the loops that it is compared with run one layer in one "
                "direction, without projection, resets and unequal lengths"
            )

    @property
    def variant_options(self) -> dict[str, float | bool]:
        """FusedLSTM's arguments of the variant."""
        plain = self.variant in ("", "plain")
        return {} if plain else {self.variant: VARIANTS[self.variant]}

    @property
    def draws_masks(self) -> bool:
        """Whether two calls differ."""
        return self.training and self.variant in RANDOM_VARIANTS

    @property
    def training(self) -> bool:
        """Whether the call computes gradients."""
        return self.mode in ("training", "grad_input")

    @property
    def products(self) -> int:
        """Matrix products of a step's size: the forward's, and those of either gradient."""
        return {"training": 3, "grad_input": 2}.get(self.mode, 1)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of one direction's output."""
        return self.P or self.H

    @property
    def row_lengths(self) -> np.ndarray:
        """Lengths of the rows: T falling evenly to T/4, in an order that is not sorted."""
        if not self.ragged:
            return np.full(self.N, self.T)
        lengths = np.linspace(self.T, max(1, self.T / 4), self.N).round().astype(np.int64)
        return np.random.default_rng(0).permutation(lengths)

    def input_size(self, layer: int) -> int:
        return self.D if layer == 0 else self.output_size * self.directions

    @property
    def label(self) -> str:
        """What tells this case from the others of its suite, for people."""
        words = [f"T={self.T} N={self.N}"]
        words.append(f"D=H={self.H}" if self.D == self.H else f"D={self.D} H={self.H}")
        words += [f"P={self.P}"] * bool(self.P) + [f"layers={self.layers}"] * (self.layers > 1)
        words += ["cell"] * self.cell
        words += ["bidirectional"] * self.bidirectional + [self.ragged] * bool(self.ragged)
        words += [f"resets={self.resets:g}"] * bool(self.resets)
        words += [f"saturated={self.saturated}"] * bool(self.saturated)
        words += ["rounded"] * self.rounded + ["recompute"] * self.recompute
        words += [self.variant] * bool(self.variant)
        words += [self.dtype] * (self.dtype != "float32")
        words += [f"threads={self.threads}"] * bool(self.threads) + ["busy"] * self.busy
        return " ".join([*words, self.mode])

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    # ------------------------------------------------------------------------------ least work

    def flops(self) -> float:
        """Multiplications and additions of the matrix products; a backward has twice a forward's.

        The cell's own arithmetic is left out, as in every published figure.
        """
        steps = float(self.row_lengths.sum())
        per_step = 0.0
        for layer in range(self.layers):
            gates = GATES * self.H * (self.input_size(layer) + self.output_size)
            per_step += 2.0 * self.directions * (gates + self.P * self.H)
        return steps * per_step * self.products

    def recurrent_bytes(self) -> int:
        """Bytes of weights that every step must read anew: the recurrent ones, the projection."""
        weights = GATES * self.H * self.output_size + self.P * self.H
        return weights * self.directions * self.layers * ITEM_BYTES[self.dtype]

    def input_weight_bytes(self) -> int:
        """Bytes of W_ih, which a kernel may read once for all steps."""
        weights = sum(GATES * self.H * self.input_size(layer) for layer in range(self.layers))
        return weights * self.directions * ITEM_BYTES[self.dtype]

    def weight_traffic(self) -> int:
        """The least bytes of weights that a call reads, whatever N; a backward reads them again."""
        once = self.T * self.recurrent_bytes() + self.input_weight_bytes()
        return once * (2 if self.training else 1)

    def weight_bytes(self) -> int:
        """The working set of those reads."""
        return self.recurrent_bytes() + self.input_weight_bytes()


# ------------------------------------------------------------------------------- command line

_SHAPE_FIELDS = {
    "T": "T",
    "N": "N",
    "D": "D",
    "H": "H",
    "P": "P",
    "L": "layers",
    "bi": "bidirectional",
}


def parse_shape(text: str) -> dict[str, Any]:
    """Reads ``T=100,N=32,D=128,H=256[,P=..][,L=layers][,bi=1]``; D is H where it is not given.

    Raises:
        CaseError: an unknown name, one that is given twice, or a value that is no count.
    """
    found: dict[str, Any] = {}
    for part in filter(None, re.split(r"[,\s]+", text)):
        name, _, value = part.partition("=")
        if name not in _SHAPE_FIELDS:
            raise CaseError(f"shape {text!r}: {name!r} is none of {', '.join(_SHAPE_FIELDS)}")
        if not value.isdecimal():
            raise CaseError(f"shape {text!r}: {name} must be a whole number, got {value!r}")
        field = _SHAPE_FIELDS[name]
        if field in found:
            raise CaseError(f"shape {text!r}: {name} is given twice")
        found[field] = bool(int(value)) if field == "bidirectional" else int(value)
    if "H" not in found:
        raise CaseError(f"shape {text!r}: H is missing")
    found.setdefault("D", found["H"])
    replace(Case(), **found)  # Raises for sizes that make no case.
    return found


def parse_dtype(text: str) -> str:
    name = DTYPE_ALIASES.get(text, text)
    if name not in ITEM_BYTES:
        known = ", ".join([*ITEM_BYTES, *DTYPE_ALIASES])
        raise CaseError(f"dtype {text!r} is none of {known}")
    return name


def from_record(record: dict[str, Any]) -> Case:
    """The case of a record; fields that this version does not know are left out."""
    known = {field.name for field in fields(Case)}
    return Case(**{name: value for name, value in record.items() if name in known})
