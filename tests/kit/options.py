# SPDX-License-Identifier: BSD-3-Clause
"""Layers whose cell has options: their seeded inputs, the kernels' results and the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_fused import reference_options
from lstm_fused.autograd.arguments import LayerArguments, LayerTensors
from lstm_fused.autograd.options_layer import options_layer
from lstm_fused.packing import pack_rows, packed_lengths, packed_positions, pad_rows
from lstm_fused.reference_options import LayerOptions
from lstm_fused.reference_options_backward import lstm_layer_backward

from .numeric import Results

# Options by name, each alone and some together.
OPTION_SETS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("peephole", "h_mask", "keep", "zoneout", "clip", "coupled")},
    "norms": ("norms",),
    "masks": ("peephole", "h_mask", "keep", "coupled"),
    "expectations": ("peephole", "zoneout", "norms"),
    "all": ("peephole", "h_mask", "keep", "clip", "coupled", "norms"),
}


# Tensors of options that gradients are taken by.
OPTION_LEAVES = ("peephole", "reset_h", "reset_c", "gains", "cell_norm")


class Case(NamedTuple):
    """One call of a layer: T steps, N rows, D features in, H units, P projected (0: none)."""

    T: int
    N: int
    D: int
    H: int
    P: int = 0
    directions: int = 1
    bias: bool = True
    lengths: tuple[int, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    reset: str = ""  # "zero", "state", or no resets
    poison: bool = False  # NaN in padding, and in initial states that a first step resets

    def __str__(self) -> str:
        words = [f"T{self.T}-N{self.N}-D{self.D}-H{self.H}"]
        for name, value, default in zip(
            self._fields[4:], self[4:], self._field_defaults.values(), strict=True
        ):
            if value != default:
                words.append(name if value is True else f"{name}{value}".replace(" ", ""))
        return "-".join(words)


CASES = (
    Case(5, 3, 4, 7),
    Case(6, 5, 3, 17, directions=2, lengths=(6, 0, 3, 6, 1), poison=True),
    Case(4, 3, 5, 19, P=6, directions=2, reset="state"),
    Case(1, 1, 2, 1, bias=False),
    Case(7, 40, 11, 33, reset="zero"),
    Case(5, 6, 8, 16, lengths=(5, 2, 5, 0, 4, 1), reset="state"),
    Case(4, 5, 3, 8, P=3, batch_sizes=(5, 4, 4, 1), directions=2),
    Case(30, 1, 20, 40),
    Case(3, 20, 6, 130, P=70),
)


class OptionInputs(NamedTuple):
    """The tensors of one case."""

    case: Case
    input: Tensor
    h_0: Tensor
    c_0: Tensor
    weights: list[Tensor]
    lengths: Tensor | None
    batch_sizes: Tensor | None
    reset_mask: Tensor | None
    options: LayerOptions
    grads: dict[str, Tensor]  # of y, h_n, c_n, cell_states

    @property
    def tensors(self) -> LayerTensors:
        masks = (self.lengths, self.batch_sizes, self.reset_mask)
        return LayerTensors(self.input, self.h_0, self.c_0, *masks)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What gradients are taken by, by name."""
        leaves = {"input": self.input, "h_0": self.h_0, "c_0": self.c_0}
        leaves.update({f"weight_{k}": weight for k, weight in enumerate(self.weights)})
        given = {name: getattr(self.options, name) for name in OPTION_LEAVES}
        return {**leaves, **{name: leaf for name, leaf in given.items() if leaf is not None}}

    def with_leaves(self, leaves: dict[str, Tensor]) -> OptionInputs:
        options = {name: leaves[name] for name in OPTION_LEAVES if name in leaves}
        return self._replace(
            input=leaves["input"],
            h_0=leaves["h_0"],
            c_0=leaves["c_0"],
            weights=[leaves[f"weight_{k}"] for k in range(len(self.weights))],
            options=self.options._replace(**options),
        )

    def requiring_grad(self) -> OptionInputs:
        """Copies of the leaves, which require gradients."""
        leaves = {name: leaf.detach().clone() for name, leaf in self.leaves.items()}
        return self.with_leaves({name: leaf.requires_grad_() for name, leaf in leaves.items()})

    def to(self, dtype: torch.dtype) -> OptionInputs:
        """Other precision; values as they are."""

        def cast(value: Any) -> Any:
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            return value.detach().to(dtype) if is_float else value

        return self._replace(
            input=cast(self.input),
            h_0=cast(self.h_0),
            c_0=cast(self.c_0),
            weights=[cast(w) for w in self.weights],
            options=LayerOptions._make(map(cast, self.options)),
            grads={name: cast(grad) for name, grad in self.grads.items()},
        )


def make_option_inputs(case: Case, names: tuple[str, ...], dtype: torch.dtype) -> OptionInputs:
    generator = torch.Generator().manual_seed(1)

    def draw(*sizes: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*sizes, generator=generator, dtype=torch.float64)).to(dtype)

    def flags(*sizes: int, share: float) -> Tensor:
        return torch.rand(*sizes, generator=generator) < share

    T, N, D, H, P, L = case[:6]
    output, rows = P or H, T * N if case.batch_sizes is None else sum(case.batch_sizes)
    weights: list[Tensor] = []
    for _ in range(L):
        weights += [draw(4 * H, D, scale=D**-0.5), draw(4 * H, output, scale=output**-0.5)]
        weights += [draw(4 * H, scale=0.5), draw(4 * H, scale=0.5)] if case.bias else []
        weights += [draw(P, H, scale=H**-0.5)] if P else []
    packed = case.batch_sizes is not None
    x = draw(rows, D) if packed else draw(T, N, D)
    if case.poison and case.lengths is not None:
        for n, length in enumerate(case.lengths):
            x[length:, n] = torch.nan
    h_0, c_0 = draw(L, N, output), draw(L, N, H)
    given: dict[str, Any] = {}
    if "peephole" in names:
        given["peephole"] = draw(L, 3, H, scale=0.5)
    if "h_mask" in names:
        given["h_mask"] = (flags(L, N, output, share=0.7) / 0.7).to(dtype)
    if "keep" in names:
        given["keep_c"] = flags(L, rows, H, share=0.3)
        given["keep_h"] = None if P else flags(L, rows, H, share=0.2)
    if "zoneout" in names:
        given["zoneout_c"], given["zoneout_h"] = 0.3, 0.0 if P else 0.2
    if "clip" in names:
        given["cell_clip"] = 0.75
    if "coupled" in names:
        given["coupled_gates"] = True
    if "norms" in names:
        given["gains"] = 1 + draw(L, 2, 4 * H, scale=0.3)
        given["cell_norm"] = torch.stack([1 + draw(L, H, scale=0.3), draw(L, H, scale=0.3)], dim=1)
    reset_mask = flags(T, N, share=0.4) if case.reset else None
    if case.poison and reset_mask is not None:
        lengths = case.lengths or (T,) * N
        for n, length in ((n, length) for n, length in enumerate(lengths) if length):
            for d, first in enumerate((0, length - 1)[:L]):
                if reset_mask[first, n]:
                    h_0[d, n] = c_0[d, n] = torch.nan
    if case.reset == "state":
        given["reset_h"], given["reset_c"] = draw(L, N, output), draw(L, N, H)
    leading = (rows,) if packed else (T, N)
    return OptionInputs(
        case,
        x,
        h_0,
        c_0,
        weights,
        None if case.lengths is None else torch.tensor(case.lengths),
        None if case.batch_sizes is None else torch.tensor(case.batch_sizes),
        reset_mask,
        LayerOptions(**given),
        {
            "y": draw(*leading, L * output),
            "h_n": draw(L, N, output),
            "c_n": draw(L, N, H),
            "cell_states": draw(*leading, L * H),
        },
    )


Layer = Callable[[LayerArguments, LayerOptions, list[Tensor]], tuple[Tensor, ...]]


def run_options(inputs: OptionInputs, layer: Layer = options_layer) -> Results:
    """Results and gradients, by name."""
    inputs = inputs.requiring_grad()
    leaves = inputs.leaves
    arguments = LayerArguments(*inputs.tensors, return_cell_states=True)
    outputs = dict(
        zip(inputs.grads, layer(arguments, inputs.options, inputs.weights), strict=False)
    )
    grads = torch.autograd.grad(
        list(outputs.values()),
        list(leaves.values()),
        list(inputs.grads.values()),
        allow_unused=True,
    )
    found = {
        n: torch.zeros_like(leaves[n]) if g is None else g
        for n, g in zip(leaves, grads, strict=True)
    }
    return {
        **{n: o.detach() for n, o in outputs.items()},
        **{f"grad_{n}": g for n, g in found.items()},
    }


def reference_layer(
    arguments: LayerArguments, options: LayerOptions, weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """The reference in its arguments' dtype, of packed input too."""
    tensors, options, positions = padded_layer(arguments.tensors, options)
    y, h_n, c_n, cell_states = reference_options.lstm_layer(
        *(*tensors[:3], weights, options),
        lengths=tensors.lengths,
        reset_mask=tensors.reset_mask,
    )
    if positions is None:
        return y, h_n, c_n, cell_states
    return pack_rows(y, positions), h_n, c_n, pack_rows(cell_states, positions)


def run_by_hand(inputs: OptionInputs) -> Results:
    """Results by the reference, and gradients by formulas derived by hand: what kernels are held
    to, in float64."""
    outputs = reference_layer(LayerArguments(*inputs.tensors), inputs.options, inputs.weights)
    tensors, options, positions = padded_layer(inputs.tensors, inputs.options)
    grads = dict(inputs.grads)
    if positions is not None:
        for name in ("y", "cell_states"):
            grads[name] = pad_rows(grads[name], positions, *tensors.input.shape[:2])
    found = lstm_layer_backward(
        *(*grads.values(), *tensors[:3], inputs.weights, options),
        lengths=tensors.lengths,
        reset_mask=tensors.reset_mask,
    )
    grad_input = found.input if positions is None else pack_rows(found.input, positions)
    results = dict(zip(inputs.grads, outputs, strict=True))
    results.update({"grad_input": grad_input, "grad_h_0": found.h_0, "grad_c_0": found.c_0})
    results.update({f"grad_weight_{k}": grad for k, grad in enumerate(found.weights)})
    of_options = zip(LayerOptions._fields, found.options.tensors, strict=False)
    return {**results, **{f"grad_{n}": grad for n, grad in of_options if grad is not None}}


def padded_layer(
    tensors: LayerTensors, options: LayerOptions
) -> tuple[LayerTensors, LayerOptions, Tensor | None]:
    """A layer's tensors and options with packed rows padded, and where each packed row belongs."""
    if tensors.batch_sizes is None:
        return tensors, options, None
    batch, steps = tensors.h_0.shape[1], tensors.batch_sizes.numel()
    positions = packed_positions(tensors.batch_sizes, batch)

    def padded(keep: Tensor | None) -> Tensor | None:
        if keep is None:
            return None
        return torch.stack([pad_rows(k, positions, steps, batch).flatten(0, 1) for k in keep])

    options = options._replace(keep_c=padded(options.keep_c), keep_h=padded(options.keep_h))
    lengths = packed_lengths(tensors.batch_sizes, batch)
    input = pad_rows(tensors.input, positions, steps, batch)
    return tensors._replace(input=input, lengths=lengths, batch_sizes=None), options, positions
