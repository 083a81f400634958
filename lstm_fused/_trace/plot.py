# SPDX-License-Identifier: BSD-3-Clause
"""Heat maps by matplotlib, where that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lstm_fused._trace.layer import States

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "i": "input gate i",
    "f": "forget gate f",
    "g": "candidate g",
    "o": "output gate o",
    "c": "cell state c",
    "h": "output h",
}
_COLOURS = "RdBu_r"  # blue is low or closed, red high or open, white the middle


def plot_states(
    name: str, states: States, tensors: Sequence[str], units: Sequence[int] | None
) -> Figure:
    """The figure of `Trace.plot`, of one row's states (T, H)."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            f"trace.plot needs matplotlib: pip install matplotlib ({error})"
        ) from None
    if not tensors or not set(tensors) <= set(TITLES):
        raise ValueError(f"tensors must be some of {', '.join(TITLES)}, got {tensors!r}")
    hidden_size = states.c.shape[1]
    if units is not None and not (units and all(0 <= unit < hidden_size for unit in units)):
        raise ValueError(f"units must lie between 0 and {hidden_size - 1}, got {units!r}")
    if len(states.c) == 0:
        raise ValueError("a plot shows at least one step, got a row of length 0")
    columns = 1 if len(tensors) == 1 else 2
    rows = -(-len(tensors) // columns)
    figure = Figure(figsize=(6.5 * columns, 0.6 + 2.6 * rows), layout="constrained")
    figure.suptitle(name)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, tensor in zip(grid, tensors, strict=False):
        values = getattr(states, tensor).double().cpu()
        is_by_unit = values.shape[1] == hidden_size
        if units is not None and is_by_unit:
            values = values[:, list(units)]
        largest = float(values.abs().max()) if values.numel() else 0.0
        low, high = (0.0, 1.0) if tensor in "ifo" else (-largest, largest)
        image = axes.imshow(
            values.t().numpy(),
            cmap=_COLOURS,
            vmin=low,
            vmax=high,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set(title=TITLES[tensor], xlabel="step", ylabel="unit" if is_by_unit else "feature")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if units is not None and is_by_unit and len(units) <= 24:  # more labels would overlap
            axes.set_yticks(range(len(units)), [str(unit) for unit in units])
        else:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=axes)
    for axes in grid[len(tensors) :]:
        axes.set_axis_off()
    return figure
