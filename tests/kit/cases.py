# SPDX-License-Identifier: BSD-3-Clause
"""The shapes and options that layers are tested on, and their seeded inputs.

A case is float32 unless it says otherwise; ``dataclasses.replace(case, dtype=...)`` gives the
others. ``CORE`` is for every change; ``WIDE`` contains it, and covers every pair of options. Both
are selections: the cross product would be 10^6 cases.
"""

import random
import zlib
from collections import Counter
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["CORE", "WIDE", "LayerCase", "LayerInputs", "Layout", "covering_rows", "make_inputs"]

Layout = Literal["contiguous", "strided", "transposed", "expanded"]


@dataclass(frozen=True)
class LayerCase:
    """One call of a layer: T steps, N rows, D features in, H units, P projected (0: none)."""

    T: int
    N: int
    D: int
    H: int
    P: int = 0
    bias: bool = True
    bidirectional: bool = False
    num_layers: int = 1
    batch_first: bool = False
    lengths: tuple[int, ...] | None = None  # one per row, 0 <= length <= T
    reset: float = 0.0  # the share of (t, n) that reset_mask sets; above 0 at least one
    hx: bool = True  # False: no initial states are given
    layout: Layout = "contiguous"  # of the input, the states and the incoming gradients
    poison: bool = False  # NaN and inf in padding, and in initial states that a first step resets
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lengths is not None and len(self.lengths) != self.N:
            raise ValueError(f"lengths: got {len(self.lengths)}, wanted N={self.N}")
        if self.lengths is not None and not all(0 <= n <= self.T for n in self.lengths):
            raise ValueError(f"lengths: got {self.lengths}, wanted 0 to T={self.T}")
        if self.poison and self.layout == "expanded":
            raise ValueError("poison: rows differ in their padding, expanded rows cannot")

    @property
    def dirs(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of one direction's output."""
        return self.P or self.H

    def __str__(self) -> str:
        """Name what is not the default: "T3-N2-D1-H17-P4-bidirectional-lengths3,0"."""
        words = [f"T{self.T}-N{self.N}-D{self.D}-H{self.H}"]
        for field in fields(self)[4:]:
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name == "lengths" and self.N > 5:
                value = f"{min(value)}to{max(value)}"
            elif field.name == "lengths":
                value = ",".join(map(str, value))
            if isinstance(value, bool):
                words.append(field.name if value else f"no_{field.name}")
            elif field.name in ("layout", "dtype"):
                words.append(str(value).removeprefix("torch."))
            else:
                words.append(f"{field.name}{value}")
        return "-".join(words)


@dataclass(frozen=True)
class LayerInputs:
    """The tensors of one case. B = num_layers * dirs; with batch_first T and N are exchanged."""

    case: LayerCase
    input: Tensor  # (T, N, D)
    h_0: Tensor | None  # (B, N, P)
    c_0: Tensor | None  # (B, N, H)
    weights: dict[str, Tensor]  # nn.LSTM's names, in the order of its _flat_weights
    lengths: Tensor | None  # int64 (N,)
    reset_mask: Tensor | None  # bool (T, N)
    grads: dict[str, Tensor]  # of y, h_n, c_n, cell_states, in their shapes; of order 1

    @property
    def hx(self) -> tuple[Tensor, Tensor] | None:
        return None if self.h_0 is None or self.c_0 is None else (self.h_0, self.c_0)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """All that can be differentiated by, by name."""
        states = {} if self.h_0 is None or self.c_0 is None else {"h_0": self.h_0, "c_0": self.c_0}
        return {"input": self.input, **states, **self.weights}

    def to(self, dtype: torch.dtype) -> "LayerInputs":
        """Widen or round the values as they are; float64 gives the inputs of the truth."""

        def cast(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(dtype)

        return replace(
            self,
            case=replace(self.case, dtype=dtype),
            input=self.input.detach().to(dtype),
            h_0=cast(self.h_0),
            c_0=cast(self.c_0),
            weights={name: w.detach().to(dtype) for name, w in self.weights.items()},
            grads={name: g.detach().to(dtype) for name, g in self.grads.items()},
        )

    def requiring_grad(self) -> "LayerInputs":
        """Inputs of equal values and memory layout, as leaves that require gradients."""

        def leaf(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().requires_grad_()

        return replace(
            self,
            input=self.input.detach().requires_grad_(),
            h_0=leaf(self.h_0),
            c_0=leaf(self.c_0),
            weights={name: w.detach().requires_grad_() for name, w in self.weights.items()},
        )


def make_inputs(case: LayerCase, device: torch.device | str = "cpu") -> LayerInputs:
    """Draw the inputs of a case.

    The values depend on the case, but not on its dtype, layout and poison: rounding, "expanded" and
    the poisoned elements apart, cases that differ in these alone have equal inputs.
    """
    key = replace(case, dtype=torch.float32, layout="contiguous", poison=False)
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Draw input, states and gradients.
    blocks = case.num_layers * case.dirs
    times_rows = (case.N, case.T) if case.batch_first else (case.T, case.N)
    x = normal(*times_rows, case.D)
    h_0, c_0 = normal(blocks, case.N, case.output_size), normal(blocks, case.N, case.H)
    grads = {
        "y": normal(*times_rows, case.dirs * case.output_size),
        "h_n": normal(blocks, case.N, case.output_size),
        "c_n": normal(blocks, case.N, case.H),
        "cell_states": normal(*times_rows, case.dirs * case.H),
    }

    # Draw the weights as nn.LSTM does.
    weights = {}
    for name, shape in _weight_shapes(case).items():
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        weights[name] = (uniform / case.H**0.5).to(device, case.dtype)

    # Draw the masks, and put poison where nothing may look.
    lengths = None if case.lengths is None else torch.tensor(case.lengths, dtype=torch.int64)
    reset_mask = None
    if case.reset > 0:
        reset_mask = torch.rand(times_rows, generator=generator) < case.reset
        reset_mask[times_rows[0] // 2 :, times_rows[1] // 2 :][:1, :1] = True
    if case.poison:
        x, h_0, c_0 = _poison(case, x, h_0, c_0, lengths, reset_mask)

    def place(tensor: Tensor, batch_dim: int) -> Tensor:
        return _lay_out(tensor.to(device, case.dtype), case.layout, batch_dim)

    y_batch_dim = 0 if case.batch_first else 1
    return LayerInputs(
        case=case,
        input=place(x, y_batch_dim),
        h_0=place(h_0, 1) if case.hx else None,
        c_0=place(c_0, 1) if case.hx else None,
        weights=weights,
        lengths=None if lengths is None else lengths.to(device),
        reset_mask=None if reset_mask is None else reset_mask.to(device),
        grads={k: place(g, 1 if k in ("h_n", "c_n") else y_batch_dim) for k, g in grads.items()},
    )


def _weight_shapes(case: LayerCase) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(case.num_layers):
        for suffix in [f"l{layer}", f"l{layer}_reverse"][: case.dirs]:
            in_features = case.D if layer == 0 else case.dirs * case.output_size
            shapes[f"weight_ih_{suffix}"] = (4 * case.H, in_features)
            shapes[f"weight_hh_{suffix}"] = (4 * case.H, case.output_size)
            if case.bias:
                shapes[f"bias_ih_{suffix}"] = shapes[f"bias_hh_{suffix}"] = (4 * case.H,)
            if case.P:
                shapes[f"weight_hr_{suffix}"] = (case.P, case.H)
    return shapes


def _poison(
    case: LayerCase,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Put NaN, inf and -inf in turn past each row's length and into states that are never used."""
    bad = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=x.dtype)

    def spoil(tensor: Tensor, where: Tensor) -> Tensor:
        values = bad[torch.arange(tensor.numel()) % 3].view(tensor.shape)
        return torch.where(where.unsqueeze(-1), values, tensor)

    ends = torch.full((case.N,), case.T) if lengths is None else lengths
    past = torch.arange(case.T).unsqueeze(1) >= ends  # (T, N)
    x = spoil(x, past.t() if case.batch_first else past)
    if reset_mask is not None:
        resets = reset_mask.t() if case.batch_first else reset_mask
        at_start = resets[0]
        at_end = resets.gather(0, (ends - 1).clamp(min=0).unsqueeze(0)).squeeze(0)
        unused = torch.stack([at_start, at_end][: case.dirs]) & (ends > 0)  # (dirs, N)
        unused = unused.repeat(case.num_layers, 1)
        h_0, c_0 = spoil(h_0, unused), spoil(c_0, unused)
    return x, h_0, c_0


def _lay_out(tensor: Tensor, layout: Layout, batch_dim: int) -> Tensor:
    """Give a tensor of three dimensions another memory layout; "expanded" gives all rows row 0."""
    if layout == "strided":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "transposed":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "expanded" and tensor.size(batch_dim):
        return tensor.narrow(batch_dim, 0, 1).expand(tensor.shape)
    return tensor


def _ragged(steps: int, rows: int, shortest: int) -> tuple[int, ...]:
    """Draw lengths from shortest to steps, the shortest one among them, the order arbitrary."""
    draw = random.Random(1000 * steps + rows)
    lengths = [draw.randint(shortest, steps) for _ in range(rows)]
    if lengths:
        lengths[rows // 2] = shortest
    return tuple(lengths)


def covering_rows(axes: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Choose rows, one value of every axis each, so that any two values of two axes meet in one.

    Greedy: a row starts from the first pair that no row has yet, and takes on each other axis the
    value that makes most new pairs with those taken; among equals the one whose pairs are rarest.
    """
    seen: Counter[frozenset[tuple[str, Any]]] = Counter()
    rows = []
    for first in (
        ((a, u), (b, v)) for a, b in combinations(axes, 2) for u in axes[a] for v in axes[b]
    ):
        if seen[frozenset(first)]:
            continue
        row: dict[str, Any] = dict(first)
        for name in (name for name in axes if name not in row):

            def gain(value: Any, name: str = name, row: Any = row) -> tuple[int, int]:
                times = [seen[frozenset(((name, value), taken))] for taken in row.items()]
                return times.count(0), -sum(times)

            row[name] = max(axes[name], key=gain)
        row = {name: row[name] for name in axes}
        seen.update(frozenset(pair) for pair in combinations(row.items(), 2))
        rows.append(row)
    return rows


_AXES: dict[str, tuple[Any, ...]] = {
    "H": (1, 2, 3, 4, 15, 16, 17, 31, 33, 64, 100),
    "N": (1, 2, 3, 5, 7, 8, 13, 16, 17, 33, 64),
    "T": (1, 2, 3, 8, 19, 33),
    "D": (1, 3, 16, 40, 64),
    "P": ("none", "none", "one", "half"),  # none, 1 or H // 2; always none where H = 1
    "bias": (True, False),
    "bidirectional": (False, True),
    "num_layers": (1, 2, 3),
    "batch_first": (False, True),
    "lengths": ("none", "none", "full", "ragged", "zeros"),
    "reset": (0.0, 0.2),
    "hx": (True, False),
    "layout": ("contiguous", "strided", "transposed", "expanded"),
}


def _from_row(row: dict[str, Any]) -> LayerCase:
    """Make a case of one value of every axis; what can be poisoned is."""
    steps, units = row["T"], row["H"]
    lengths = {
        "none": None,
        "full": (steps,) * row["N"],
        "ragged": _ragged(steps, row["N"], 1),
        "zeros": _ragged(steps, row["N"], 0),
    }[row["lengths"]]
    projected = {"none": 0, "one": 1, "half": units // 2}[row["P"]] if units > 1 else 0
    poison = (lengths is not None or row["reset"] > 0) and row["layout"] != "expanded"
    return LayerCase(**{**row, "P": projected, "lengths": lengths, "poison": poison})


CORE: tuple[LayerCase, ...] = (
    # The smallest of everything, and an empty batch.
    LayerCase(1, 1, 1, 1),
    LayerCase(1, 1, 3, 17),
    LayerCase(5, 1, 1, 1, bias=False),
    LayerCase(3, 0, 3, 4),
    LayerCase(4, 0, 3, 4, bidirectional=True, lengths=()),
    # Around vector and tile widths, plain.
    LayerCase(4, 7, 3, 15),
    LayerCase(3, 5, 16, 16),
    LayerCase(2, 17, 16, 33, hx=False),
    LayerCase(6, 13, 40, 64),
    LayerCase(3, 64, 16, 16),
    LayerCase(5, 2, 40, 100),
    LayerCase(33, 2, 3, 5),
    LayerCase(9, 4, 8, 128, bias=False),
    # Directions, layers, projection.
    LayerCase(5, 3, 7, 17, bidirectional=True),
    LayerCase(4, 2, 3, 16, num_layers=3, batch_first=True),
    LayerCase(3, 5, 5, 8, bidirectional=True, num_layers=2, bias=False),
    LayerCase(4, 5, 3, 17, P=5),
    LayerCase(3, 2, 16, 33, P=1, bias=False, batch_first=True),
    LayerCase(5, 7, 3, 16, P=8, bidirectional=True, num_layers=2),
    # Rows that end early.
    LayerCase(6, 5, 3, 16, lengths=(3, 6, 1, 6, 2), poison=True),
    LayerCase(7, 5, 3, 17, bidirectional=True, lengths=(0, 7, 3, 0, 5), poison=True),
    LayerCase(4, 3, 5, 33, P=4, lengths=(2, 0, 4), bidirectional=True, poison=True),
    LayerCase(5, 2, 3, 15, num_layers=2, batch_first=True, lengths=(1, 4), hx=False, poison=True),
    LayerCase(3, 2, 3, 4, lengths=(0, 0), poison=True),
    LayerCase(19, 17, 3, 16, lengths=_ragged(19, 17, 0), bidirectional=True, poison=True),
    # States that are reset.
    LayerCase(7, 5, 3, 16, reset=0.3, poison=True),
    LayerCase(1, 3, 5, 17, reset=1.0, poison=True),
    LayerCase(6, 4, 3, 17, bidirectional=True, num_layers=2, reset=0.3, poison=True),
    LayerCase(8, 5, 3, 9, P=3, lengths=(8, 0, 5, 1, 7), reset=0.4, bidirectional=True, poison=True),
    LayerCase(5, 2, 40, 64, batch_first=True, reset=0.2, lengths=(5, 3), bias=False, poison=True),
    # Memory that is not contiguous.
    LayerCase(5, 3, 7, 17, layout="strided"),
    LayerCase(4, 5, 3, 16, layout="transposed", bidirectional=True),
    LayerCase(4, 5, 3, 16, layout="expanded", batch_first=True, lengths=(4, 2, 0, 3, 1)),
)

WIDE: tuple[LayerCase, ...] = tuple(  # a dict: rows that became one case count once
    dict.fromkeys([*CORE, *(_from_row(row) for row in covering_rows(_AXES))])
)

# Enough work for two and three threads, split over rows, units and directions.
PARALLEL = (
    LayerCase(12, 24, 40, 130),
    LayerCase(40, 2, 40, 200),
    LayerCase(10, 13, 33, 100, P=40, bidirectional=True, lengths=(10, 3) * 6 + (0,), reset=0.1),
    LayerCase(40, 1, 64, 256, bidirectional=True),
    LayerCase(9, 33, 24, 96, num_layers=2, batch_first=True, lengths=(9, 4, 1) * 11),
)

# Small enough for finite differences.
SMALL = (
    LayerCase(3, 2, 2, 2, dtype=torch.float64),
    LayerCase(1, 1, 1, 1, bias=False, hx=False, dtype=torch.float64),
    LayerCase(3, 3, 2, 2, lengths=(1, 3, 0), dtype=torch.float64),
    LayerCase(3, 2, 2, 2, reset=0.4, dtype=torch.float64),
    LayerCase(2, 2, 2, 3, P=2, dtype=torch.float64),
    LayerCase(2, 2, 1, 2, bidirectional=True, batch_first=True, bias=False, dtype=torch.float64),
    LayerCase(3, 2, 1, 2, num_layers=2, layout="transposed", dtype=torch.float64),
    LayerCase(3, 2, 1, 2, P=1, bidirectional=True, lengths=(2, 3), reset=0.3, dtype=torch.float64),
    LayerCase(
        2, 2, 1, 2, P=1, bidirectional=True, num_layers=2, lengths=(2, 0), dtype=torch.float64
    ),
)
