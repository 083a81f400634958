# SPDX-License-Identifier: BSD-3-Clause
"""What every report of a run holds, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.records import Record, Results
from benchmarks.rows import shown
from benchmarks.table import cells, columns_of, label_of

HOW_TO_READ = (
    "Each peer computes in a process of its own, one at a time, in alternation; results were "
    "checked before anything was timed. Speed-ups are ratios of medians against nn.LSTM in the "
    "same run; the share is of the yardstick that was measured in the same run; the floor, for one "
    "row, is the time of reading the weights. benchmarks/README.md tells more."
)
MEANS_COLUMNS = ("suite", "peer", "speed-up", "cases")
RATES_COLUMNS = ("suite", "threads", "dtype", "micro-kernel", "torch's product")


def title_of(results: Results) -> str:
    moment = results.run["time"].replace("T", " ")[:16]
    return f"lstm_fused: benchmarks of {moment}"


def machine_line(results: Results) -> str:
    run, machine = results.run, results.run["machine"]
    where = machine.get("gpu") or machine["cpu"]
    return (
        f"{where}, {machine['cores']} cores, {run['threads']} threads; commit {machine['commit']}; "
        f"torch {machine['packages']['torch']}; {run['rounds']} rounds."
    )


def mean_rows(results: Results) -> list[list[str]]:
    """Geometric means of speed-ups, in the order of MEANS_COLUMNS."""
    return [
        [suite, label_of(peer), f"{mean:.2f}", str(count)]
        for suite, by_peer in results.geometric_means().items()
        for peer, (mean, count) in by_peer.items()
    ]


def rate_rows(results: Results) -> list[list[str]]:
    """The measured yardsticks in GFLOP/s, in the order of RATES_COLUMNS; each once."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in results.rows:
        rates = [row.get("kernel_flops"), row["gemm_flops"]]
        dtype = row["case"]["dtype"]
        if row["device"] == "cpu" and dtype != "float32" and not rates[0]:
            dtype = "float32"  # all that was measured
        key = (row["suite"], str(row["threads"]), dtype)
        if any(rates):
            found[key] = [*key, *(shown(rate and rate * 1e-9, ".0f") for rate in rates)]
    return list(found.values())


def yardstick_line(results: Results) -> str:
    """What the shares of a run are of, in a sentence or two; empty where nothing was measured."""
    kernel = [row["kernel_flops"] for row in _float32(results) if row.get("kernel_flops")]
    gemm = [row["gemm_flops"] for row in _float32(results) if row["gemm_flops"]]
    if kernel and gemm:
        return (
            f"Shares are of the rate of FusedLSTM's own micro-kernel, {median(kernel) * 1e-9:.0f} "
            f"GFLOP/s in float32, or of torch's sgemm, {median(gemm) * 1e-9:.0f} GFLOP/s, where "
            "that is higher; in other dtypes, of the micro-kernel's rate there."
        )
    if gemm and all(row["device"] == "cpu" for row in results.rows):
        return (
            f"Shares are of torch's sgemm, {median(gemm) * 1e-9:.0f} GFLOP/s: this run is older "
            "than the micro-kernel's rate. On AMD processors that product may take AVX2 where "
            "FusedLSTM takes AVX-512, so that shares can exceed 100 %."
        )
    return "Shares are of torch's matrix product in the row's dtype." if gemm else ""


def _float32(results: Results) -> list[Record]:
    """Rows of float32 with the run's number of threads, or all where there is none."""
    own = [row for row in results.rows if row["threads"] == results.run["threads"]]
    return [row for row in own if row["case"]["dtype"] == "float32"] or results.rows


def figure_table(rows: Sequence[Record]) -> tuple[tuple[str, ...], list[list[str]]]:
    """A suite's columns, and its rows in their order; a case's name stands in its first one."""
    columns = columns_of(rows)
    shown, last = [], ""
    for row in rows:
        name = row["label"] if row["label"] != last else ""
        last = row["label"]
        if row["status"] == "ok":
            figures = [*cells(row, columns), row["note"]]
        else:
            figures = [row["status"], *[""] * (len(columns) - 1), row["reason"]]
        shown.append([name, label_of(row["peer"]), *figures])
    return ("case", "peer", *columns, "note"), shown
