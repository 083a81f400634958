# SPDX-License-Identifier: BSD-3-Clause
"""Forecast the next cycle of a series with an LSTM, and compare it with repeating the last cycle.

The series is the yearly number of sunspots since 1700, which statsmodels ships, or with `--csv` a
column of any CSV file. The LSTM reads windows of one to four cycles: batches of unequal lengths,
which `FusedLSTM` takes as `lengths=` and `nn.LSTM` as a packed sequence.
"""

import argparse
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import statsmodels.api as sm  # type: ignore[import-untyped]
import torch
from common import (
    DTYPES,
    ExampleError,
    Ranks,
    SharedDropout,
    add_gates_option,
    at_least,
    check_writable,
    fingerprint,
    generator,
    is_default,
    make_parser,
    report_goal,
    run_script,
    widened,
)
from contest import Contest, Side
from gates import save_gates
from matplotlib.axes import Axes
from plots import COLOURS, LINES, draw, finish
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

CYCLES = 4  # the longest window
TRAIN, DEV = 0.65, 0.15  # shares of the series; the rest is held out
STEPS_PER_EPOCH = 16
NOISE = 0.3  # of the windows' standard deviation, added to what the LSTM reads in training


# ---------------------------------------------------------------------------------------- model


class Forecaster(nn.Module):
    """Windows (N, T) of `lengths` (N,) to the `horizon` values after each (N, horizon)."""

    def __init__(
        self, lstm: type[nn.Module], hidden: int, horizon: int, dropout: float, ranks: Ranks
    ) -> None:
        super().__init__()
        self.lstm = lstm(1, hidden, batch_first=True)
        self.dropout = SharedDropout(dropout, ranks)
        self.head = nn.Linear(hidden, horizon)

    def forward(self, windows: Tensor, lengths: Tensor) -> Tensor:
        values = windows.unsqueeze(-1)
        if isinstance(self.lstm, nn.LSTM):
            packed = pack_padded_sequence(
                values, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            _, (h_n, _) = self.lstm(packed)
        else:
            _, (h_n, _) = self.lstm(values, lengths=lengths)
        forecast: Tensor = self.head(self.dropout(h_n[-1]))
        return forecast


# ----------------------------------------------------------------------------------------- data


@dataclass
class Windows:
    """Pieces of the series that end before `origins`, and what comes after; scaled one by one."""

    read: Tensor  # (N, CYCLES * period), padded with 0
    lengths: Tensor  # (N,)
    wanted: Tensor  # (N, horizon)
    mean: Tensor  # (N, 1)
    deviation: Tensor  # (N, 1)


class Series:
    """A series in time order: training part, dev part, held-out part."""

    def __init__(self, values: np.ndarray, times: list[str], period: int, horizon: int, root: bool):
        self.raw, self.times = torch.tensor(values, dtype=torch.float64), times
        self.period, self.horizon, self.root = period, horizon, root
        self.longest = CYCLES * period
        # The square root evens out the spread of a count.
        self.values = self.raw.sqrt() if root else self.raw
        self.train_end = int(len(values) * TRAIN)
        self.dev_end = int(len(values) * (TRAIN + DEV))
        # A flat window would scale its noise up without bound.
        self.least_deviation = 1e-2 * float(self.values[: self.train_end].std())

    def windows(self, origins: Tensor, lengths: Tensor) -> Windows:
        steps = torch.arange(self.longest)
        inside = steps < lengths[:, None]
        places = torch.where(inside, origins[:, None] - lengths[:, None] + steps, 0)
        read = torch.where(inside, self.values[places], 0.0)
        mean = read.sum(1, keepdim=True) / lengths[:, None]
        centred = torch.where(inside, read - mean, 0.0)
        deviation = (centred.square().sum(1, keepdim=True) / lengths[:, None]).sqrt()
        deviation = deviation.clamp_min(self.least_deviation)
        wanted = self.values[origins[:, None] + torch.arange(self.horizon)]
        return Windows(centred / deviation, lengths, (wanted - mean) / deviation, mean, deviation)

    def random_windows(self, count: int, draws: torch.Generator) -> Windows:
        """Windows that end anywhere in the training part, of one to CYCLES cycles, with noise."""
        first, last = self.period, self.train_end - self.horizon
        origins = torch.randint(first, last + 1, (count,), generator=draws)
        spread = origins.clamp_max(self.longest) - self.period + 1
        lengths = self.period + (torch.rand(count, generator=draws) * spread).long()
        windows = self.windows(origins, lengths)
        noise = NOISE * torch.randn(windows.read.shape, generator=draws)
        windows.read += torch.where(torch.arange(self.longest) < lengths[:, None], noise, 0.0)
        return windows

    def origins(self, begin: int, end: int) -> Tensor:
        """All starts of a forecast that lies within [begin, end)."""
        return torch.arange(begin, end - self.horizon + 1)

    def actual(self, origins: Tensor) -> Tensor:
        return self.raw[origins[:, None] + torch.arange(self.horizon)]

    def naive(self, origins: Tensor) -> Tensor:
        """The baseline: the last cycle before each origin, over and over."""
        return self.raw[origins[:, None] - self.period + torch.arange(self.horizon) % self.period]

    def unscaled(self, forecast: Tensor, windows: Windows) -> Tensor:
        values = forecast.double() * windows.deviation + windows.mean
        return values.clamp_min(0).square() if self.root else values


def sunspots() -> tuple[np.ndarray, list[str]]:
    data = sm.datasets.sunspots.load_pandas().data
    return data["SUNACTIVITY"].to_numpy(), [str(int(year)) for year in data["YEAR"]]


def read_csv(path: Path, column: str | None) -> tuple[np.ndarray, list[str]]:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ExampleError(f"--csv: cannot read {path}: {error}") from None
    if column not in table.columns:
        raise ExampleError(f"--column: {path} has no column {column!r}, but {list(table.columns)}")
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ExampleError(
            f"--csv: {len(bad)} of {len(values)} values of {column!r} are not numbers: "
            f"fill or drop them first (the first is in data row {bad[0] + 1})"
        )
    return values, [str(row) for row in range(1, len(values) + 1)]


def make_series(options: argparse.Namespace) -> Series:
    if options.csv is None:
        if options.column is not None:
            raise ExampleError("--column needs --csv")
        values, times = sunspots()
        period = options.period or 11
    else:
        if options.column is None or options.period is None:
            raise ExampleError("--csv also needs --column and --period")
        values, times = read_csv(options.csv, options.column)
        period = options.period
    horizon = options.horizon or period
    root = options.csv is None if options.transform is None else options.transform == "sqrt"
    if root and values.min() < 0:
        raise ExampleError("--transform sqrt: the series has negative values")
    least = max((period + horizon) / TRAIN, (horizon + 1) / DEV) + 2
    if len(values) < least:
        raise ExampleError(
            f"{len(values)} values are too few for --period {period} and --horizon {horizon}: "
            f"{int(least) + 1} are needed"
        )
    return Series(values, times, period, horizon, root)


# ------------------------------------------------------------------------------------- training


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = make_parser("forecast_series.py", __doc__, epochs=40)
    add_gates_option(parser, "forecast_series.py")
    add, positive = parser.add_argument, at_least(int, 1)
    add("--csv", type=Path, metavar="FILE", help="forecast a column of this file")
    add("--column", metavar="NAME", help="the column of the CSV file")
    add("--period", type=positive, metavar="N", help="steps in a cycle (11 for sunspots)")
    add("--horizon", type=positive, metavar="N", help="steps to forecast (default one cycle)")
    add("--transform", choices=("none", "sqrt"), help="(default sqrt for sunspots, none for CSV)")
    add("--hidden", type=positive, default=32, metavar="H", help="(default %(default)s)")
    add("--batch", type=positive, default=64, metavar="N", help="(default %(default)s)")
    add("--lr", type=at_least(float, 0), default=0.1, help="(default %(default)s)")
    add("--dropout", type=at_least(float, 0, 1), default=0.4, help="(default %(default)s)")
    add(
        "--patience",
        type=positive,
        default=12,
        metavar="N",
        help="stop after so many epochs without a lower dev loss (default %(default)s)",
    )
    return parser, parser.parse_args()


def main() -> int:
    parser, options = parse()
    ranks = Ranks(options)
    check_writable(options.gates, "--gates")
    series = make_series(options)
    period, horizon, dtype = series.period, series.horizon, DTYPES[options.dtype]

    def build(lstm: type[nn.Module]) -> nn.Module:
        return Forecaster(lstm, options.hidden, horizon, options.dropout, ranks)

    data_id = fingerprint(series.raw) ^ zlib.crc32(f"{period} {horizon} {series.root}".encode())
    contest = Contest(
        options,
        ranks,
        build,
        data_id,
        ("train loss", "dev loss"),
        # NOTE: with Adam and an absolute error, whose gradient jumps at zero, the forecasts are no
        # better, and rounding parts the two sides by some per cent within 30 epochs.
        lambda weights: torch.optim.SGD(weights, lr=options.lr, momentum=0.9),
        clip=1.0,
        watch="dev loss",
        patience=options.patience,
    )

    def train(side: Side, epoch: int) -> float:
        draws, total = generator(options.seed, epoch), torch.zeros((), device=ranks.device)
        for _ in range(STEPS_PER_EPOCH):
            windows = series.random_windows(options.batch, draws)
            read, lengths, wanted = ranks.share(windows.read, windows.lengths, windows.wanted)
            forecast = widened(side.net(read.to(dtype), lengths))
            loss = F.smooth_l1_loss(forecast, wanted.to(forecast.dtype), reduction="sum")
            loss = loss / windows.wanted.numel()
            side.step(loss)
            total += loss.detach()
        return ranks.total(total)[0] / STEPS_PER_EPOCH

    def forecast(side: Side, origins: Tensor) -> tuple[float, Tensor]:
        """The loss of the forecasts, and the forecasts (N, horizon) in the units of the series.

        Every rank makes all of them: they are few.
        """
        windows = series.windows(origins, origins.clamp_max(series.longest))
        read, lengths = windows.read.to(ranks.device, dtype), windows.lengths.to(ranks.device)
        scaled = side.model(read, lengths).cpu().double()
        loss = F.smooth_l1_loss(scaled, windows.wanted).item()
        return loss, series.unscaled(scaled, windows)

    def measure(side: Side) -> dict[str, float]:
        origins = series.origins(series.train_end, series.dev_end)
        loss, values = forecast(side, origins)
        return {"dev loss": loss, "dev MAE": score(values, series.actual(origins))[0]}

    name, time_label = "sunspots", "year"
    if options.csv is not None:
        name, time_label = options.column, f"data row of {options.csv.name}"
    held_out = series.origins(series.dev_end, len(series.raw))
    ranks.say(
        f"{name}: {len(series.raw)} values; trained on {series.times[0]} to "
        f"{series.times[series.train_end - 1]}, dev to {series.times[series.dev_end - 1]}, "
        f"held out to {series.times[-1]} ({len(held_out)} forecasts of {horizon} steps)"
    )
    contest.run(train, measure, steps=STEPS_PER_EPOCH)
    agree = contest.verdict()

    actual = series.actual(held_out)
    forecasts = {"seasonal naive": series.naive(held_out)}
    with torch.inference_mode():
        for side in contest.sides:
            forecasts[side.name] = forecast(side, held_out)[1]
    scores = {name: score(values, actual) for name, values in forecasts.items()}
    for who, (mae, rmse) in scores.items():
        ranks.say(f"held out       {who:14} MAE {mae:8.4g}   RMSE {rmse:8.4g}")
    baseline = scores.pop("seasonal naive")
    beaten = all(
        error < theirs
        for ours in scores.values()
        for error, theirs in zip(ours, baseline, strict=True)
    )

    def own_panel(axes: Axes) -> None:
        draw_forecasts(axes, series, held_out, forecasts)
        axes.set(xlabel=time_label, ylabel=name)

    draw(
        contest,
        f"{name}: an LSTM forecasts the next {horizon} steps",
        "smooth L1 error of scaled values",
        own_panel,
    )
    # The whole series as one sequence, scaled as a window is.
    values = series.values
    scaled = ((values - values.mean()) / values.std(correction=0)).unsqueeze(0)
    whole = [scaled.to(dtype), torch.tensor([len(values)])]
    change = torch.diff(values, prepend=values[:1])
    followed = {name: series.raw, "change of the scaled value": change}
    save_gates(contest, f"An LSTM reads {name}", whole, series.times, followed)
    goal = report_goal(ranks, "lower errors than the baseline", beaten, is_default(parser, options))
    return 0 if agree and goal else 1


def score(forecast: Tensor, actual: Tensor) -> tuple[float, float]:
    error = forecast - actual
    return error.abs().mean().item(), error.square().mean().sqrt().item()


def draw_forecasts(
    axes: Axes, series: Series, origins: Tensor, forecasts: dict[str, Tensor]
) -> None:
    """The held-out part, and forecasts side by side, each made from what came before it."""
    start = int(origins[0])
    axes.plot(
        range(start, len(series.raw)),
        series.raw[start:],
        color="black",
        linewidth=1.2,
        label="actual",
    )
    for name, values in forecasts.items():
        colour, line = COLOURS.get(name, "tab:gray"), LINES.get(name, {"linestyle": ":"})
        for row in range(0, len(origins), series.horizon):
            begin = int(origins[row])
            label = name if row == 0 else None
            axes.plot(
                range(begin, begin + series.horizon), values[row], color=colour, label=label, **line
            )
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.35 * (high - low))  # room for the legend
    finish(axes, f"held-out part: forecasts of {series.horizon} steps", "time", "value")
    ticks = range(start, len(series.raw), max(1, (len(series.raw) - start) // 5))
    axes.set_xticks(ticks, [series.times[tick] for tick in ticks])


if __name__ == "__main__":
    sys.exit(run_script(main))
