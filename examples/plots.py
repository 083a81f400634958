# SPDX-License-Identifier: BSD-3-Clause
"""The PNG that each example writes: curves, the script's own panel, agreement and time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import TOLERANCES, Contest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = {"nn.LSTM": "tab:blue", "FusedLSTM": "tab:orange"}
# A broad pale line below a thin dark one, so that two equal curves are both seen.
LINES: dict[str, dict[str, Any]] = {
    "nn.LSTM": {"linewidth": 5.0, "alpha": 0.35},
    "FusedLSTM": {"linewidth": 1.3},
}


def draw(contest: Contest, title: str, loss_label: str, own_panel: Callable[[Axes], None]) -> None:
    """Write the figure to `--plot`, on the main rank only."""
    if not contest.ranks.main:
        return
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title)
    (losses, own), (gaps, seconds) = figure.subplots(2, 2)
    draw_losses(losses, contest, loss_label)
    own_panel(own)
    draw_gaps(gaps, contest)
    draw_seconds(seconds, contest)
    path: Path = contest.options.plot
    figure.savefig(path, dpi=110, format="png")
    contest.ranks.say(f"plot           {path}")


def draw_losses(axes: Axes, contest: Contest, label: str) -> None:
    for name, colour in zip(contest.compared, ("tab:blue", "tab:red"), strict=False):
        for side in contest.sides:
            values = [row[name] for row in side.history]
            axes.plot(
                epochs(contest),
                values,
                color=colour,
                label=f"{name}, {side.name}",
                **LINES[side.name],
            )
    finish(axes, "losses", "epoch", label)


def draw_gaps(axes: Axes, contest: Contest) -> None:
    """How far the losses are apart, against the tolerance."""
    if len(contest.sides) < 2:
        axes.set_axis_off()
        return
    # Equal losses have no place on a logarithmic axis: draw them at its foot.
    dtype = contest.options.dtype
    foot = 1e-17 if dtype == "float64" else 1e-9
    gaps = [max(gap, foot) for gap in contest.gaps()]
    label = "largest over the losses"
    axes.semilogy(epochs(contest), gaps, "o-", color="tab:green", markersize=4, label=label)
    axes.set_ylim(foot / 3, 1)
    if dtype in TOLERANCES:
        axes.axhline(
            TOLERANCES[dtype],
            color="black",
            linestyle="--",
            linewidth=1,
            label=f"tolerance for {dtype}",
        )
    finish(axes, "nn.LSTM against FusedLSTM", "epoch", "relative difference of the losses")


def draw_seconds(axes: Axes, contest: Contest) -> None:
    width = 0.8 / len(contest.sides)
    for place, side in enumerate(contest.sides):
        shift = (place - (len(contest.sides) - 1) / 2) * width
        axes.bar(
            [epoch + shift for epoch in epochs(contest)],
            side.seconds,
            width,
            color=COLOURS[side.name],
            label=f"{side.name}, {sum(side.seconds):.1f} s in all",
        )
    finish(axes, "training time", "epoch", "seconds per epoch")
    axes.set_ylim(0, 1.25 * max(max(side.seconds) for side in contest.sides))


def epochs(contest: Contest) -> range:
    return range(1, contest.epochs_done + 1)


def finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize="small")
