# SPDX-License-Identifier: BSD-3-Clause
"""From samples to a row: the figures that tables, plots and reports show."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from benchmarks.case import ITEM_BYTES, Case
from benchmarks.peers import PEERS
from benchmarks.records import Record
from benchmarks.stats import Rounds, summarize, thinned

# Fields of every row that was not measured.
EMPTY: Record = {
    "unit": "",
    "rounds": [],
    "median": None,
    "p10": None,
    "p90": None,
    "p99": None,
    "speedup": None,
    "plain_ratio": None,
    "gflops": None,
    "peak_share": None,
    "floor_seconds": None,
    "others_cpu": None,
}


def make_row(
    case: Case,
    peer: str,
    verdict: Record,
    rounds: Rounds | None,
    reference: Rounds | None,
    rates: Record,
    load: list[float],
    plain: Rounds | None = None,
) -> Record:
    """
    Args:
        verdict: suite, threads, device, and status with its reason, note, error_share
            and y_error.
        rounds: samples of each round, in seconds (bytes for "memory"); None if not measured.
        reference: nn.LSTM's.
        plain: FusedLSTM's without the case's option.
        rates: what `rates.measure` found.
    """
    row: Record = {
        "kind": "row",
        "suite": verdict["suite"],
        "peer": peer,
        "device": verdict["device"],
        "threads": verdict["threads"],
        "case": case.as_record(),
        "label": case.label,
        "status": verdict["status"],
        "reason": verdict.get("reason", ""),
        "note": verdict.get("note", ""),
        "error_share": verdict.get("error_share"),
        "y_error": verdict.get("y_error"),
        "kernels": verdict.get("kernels", []),
        "gemm_flops": rates.get("gemm_flops"),
        "kernel_flops": rates.get("kernel_flops"),
        "load": load,
        **EMPTY,
    }
    if row["status"] != "ok" or not rounds:
        return row
    row["unit"] = "bytes" if case.measure == "memory" else "s"
    row["others_cpu"] = verdict.get("others_cpu")
    row["rounds"] = [thinned(samples) for samples in rounds]
    row |= summarize(rounds)
    if reference:
        row["speedup"] = summarize(reference)["median"] / row["median"]
    if plain:
        row["plain_ratio"] = row["median"] / summarize(plain)["median"]
    if row["unit"] == "s" and case.H > 1:
        row["gflops"] = case.flops() / row["median"] * 1e-9
        if peak := peak_flops(row):
            row["peak_share"] = row["gflops"] * 1e9 / peak
        if case.N == 1 or case.rounded:
            item = PEERS[peer].weight_bytes if peer in PEERS else 0
            row["floor_seconds"] = bytes_floor(case, rates.get("read_bandwidth") or [], item)
    return row


def peak_flops(row: Record) -> float | None:
    """The yardstick of a row's arithmetic: what the machine reached in the row's dtype.

    On the CPU it is the micro-kernel's rate, or torch's matrix product's where that is higher,
    which is known in float32 alone. torch's is also what a GPU has, and what rows have that are
    older than the field `kernel_flops`.
    """
    kernel, gemm = row.get("kernel_flops"), row["gemm_flops"]
    if kernel and gemm and row["case"]["dtype"] == "float32":
        return max(kernel, gemm)
    return kernel or gemm


def share_of(row: Record) -> float | None:
    """The row's arithmetic as a share of its yardstick; old files have it as `gemm_share`."""
    return row["peak_share"] if "peak_share" in row else row["gemm_share"]


def bytes_floor(case: Case, bandwidth: list[list[float]], item: int = 0) -> float | None:
    """Seconds that reading the weights takes at the measured bandwidth of their working set.

    Args:
        bandwidth: [[bytes, bytes per second], ...], bytes rising; interpolated in log(bytes).
        item: bytes of a weight; 0: of the case's dtype.
    """
    if not bandwidth:
        return None
    working_set = case.weight_bytes() if case.T == 1 else case.recurrent_bytes()
    share = item / ITEM_BYTES[case.dtype] if item else 1.0
    return share * case.weight_traffic() / _interpolate(bandwidth, share * working_set)


def _interpolate(points: list[list[float]], size: float) -> float:
    if size <= points[0][0]:
        return points[0][1]
    for (low, at_low), (high, at_high) in pairwise(points):
        if size <= high:
            share = math.log(size / low) / math.log(high / low)
            return at_low + share * (at_high - at_low)
    return points[-1][1]


def scaled(value: float | None, unit: str) -> str:
    """A figure with a fitting unit, three digits: "12.3 µs", "1.20 ms", "326 MiB"."""
    if value is None:
        return "–"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB" if value >= 2**20 else f"{value / 2**10:.3g} KiB"
    for factor, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.3g} {name}"
    return f"{value / 1e-6:.3g} µs"


def shown(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)
