# SPDX-License-Identifier: BSD-3-Clause
"""The suite `weights`: which shapes it has, what its peers compute, and what their rows tell."""

from dataclasses import replace

import pytest

from benchmarks.case import Case
from benchmarks.peers import PEERS, REFERENCE
from benchmarks.pool import Pool
from benchmarks.records import Record
from benchmarks.rows import bytes_floor, make_row
from benchmarks.runner import Options, Runner
from benchmarks.suites import SUITES
from benchmarks.table import cells, columns_of

SMALL = Case(T=12, N=1, D=24, H=32, layers=2, rounded=True)
# By peer: the least and the largest error of y in the cases below. The least one tells that weights
# were rounded at all; the largest one, 8-bit activations from wider ones.
ERRORS = {
    "fused-float16": (2e-5, 5e-4),
    "fused-bfloat16": (2e-4, 4e-3),
    "fused-int8": (2e-4, 5e-3),
    "mnn-int8": (2e-4, 5e-3),
    "torch-int8": (1e-3, 5e-2),
    "onnxruntime-int8": (1e-3, 5e-2),
    "ncnn-int8": (5e-4, 2e-2),
    "openvino-int8": (1e-3, 5e-2),
}


def test_the_suite_has_every_shape() -> None:
    entries = SUITES["weights"].entries
    shapes = [(e.case.H, e.case.layers, e.case.N, e.case.T) for e in entries]
    wanted = [
        (units, layers, rows, steps)
        for units in (64, 128, 256, 512, 1024)
        for layers in (1, 2)
        for rows in (1, 4, 16)
        for steps in (1, 100)
    ]
    assert sorted(shapes) == sorted(wanted)
    assert all(e.case.rounded and e.every_peer and e.case.D == e.case.H for e in entries)
    assert {e.level for e in entries} == {"quick", "default", "full"}


def test_every_peer_that_rounds_weights_is_tried() -> None:
    assert ERRORS.keys() == {peer.name for peer in PEERS.values() if peer.weight_bytes}


def test_errors_are_those_of_rounded_weights() -> None:
    """The truth is nn.LSTM's in float64, of weights that are not rounded.

    One test for all peers, because each starts a process; absent ones are left out.
    """
    peers = [PEERS[REFERENCE], *(PEERS[name] for name in ERRORS if not PEERS[name].missing())]
    with Pool() as pool:
        runner = Runner(pool, Options(rounds=1, seconds=0.0))
        cases = [replace(SMALL, N=rows) for rows in (1, 3)]
        one, three = (runner.run_case("weights", case, peers) for case in cases)
        runner.close()
    for exact, *rounded in (one, three):
        assert exact["status"] == "ok" and exact["y_error"] < 1e-6
        for row in rounded:
            _check(row)


def _check(row: Record) -> None:
    name, rows = row["peer"], row["case"]["N"]
    if (name, rows) == ("ncnn-int8", 3):
        assert (row["status"], row["reason"]) == ("unsupported", "ncnn: no second row")
    elif name == "openvino-int8" and row["status"] == "unsupported":
        assert "on this processor" in row["reason"]
    else:
        assert row["status"] == "ok", f"{name}: {row['reason']}"
        least, largest = ERRORS[name]
        assert least < row["y_error"] < largest, name
        assert row["floor_seconds"] > 0


def row_of(case: Case, peer: str) -> Record:
    verdict = {"suite": "weights", "threads": 1, "device": "cpu", "status": "ok", "y_error": 0.0042}
    rates = {"gemm_flops": 1e11, "kernel_flops": 1e11, "read_bandwidth": [[1 << 10, 2e9]]}
    return make_row(case, peer, verdict, [[1e-3]], [[2e-3]], rates, [0.0])


@pytest.mark.parametrize("rows", [1, 16])
def test_the_floor_is_of_the_bytes_that_a_peer_reads(rows: int) -> None:
    case = replace(SMALL, N=rows)
    floats = bytes_floor(case, [[1 << 10, 2e9]])
    assert floats is not None
    for peer, share in (("fused", 1.0), ("mnn-int8", 1.0), ("fused-float16", 0.5)):
        assert row_of(case, peer)["floor_seconds"] == pytest.approx(share * floats)
    assert row_of(case, "openvino-int8")["floor_seconds"] == pytest.approx(floats / 4)
    # Where no weights are rounded, many rows are bound by arithmetic.
    plain = row_of(replace(case, rounded=False), "fused")
    assert (plain["floor_seconds"] is None) == (rows > 1)


def test_errors_stand_beside_times() -> None:
    row = row_of(SMALL, "fused-int8")
    columns = columns_of([row])
    assert columns[:2] == ("median", "error of y")
    assert dict(zip(columns, cells(row, columns), strict=True))["error of y"] == "4.2e-03"
    # A file that is older than the field.
    del row["y_error"]
    assert "error of y" not in columns_of([row])
    assert len(cells(row)) == len(columns) - 1
