# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark runner: what it computes from samples, and that it never times a wrong result.

Nothing here depends on how long anything takes.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kit.benchmark_results import make_results
from kit.process import run_python

from benchmarks import cli
from benchmarks.case import Case, CaseError, from_record, parse_dtype, parse_shape
from benchmarks.check import budgets, find_fault
from benchmarks.compare import compare
from benchmarks.data import make_data, rounded
from benchmarks.peers import PEERS, Peer
from benchmarks.pool import Pool
from benchmarks.records import Results, Writer, read_results
from benchmarks.rows import bytes_floor, scaled
from benchmarks.runner import Options, Runner
from benchmarks.suites import SUITES

# A process of its own whose results are off by one; torch is not needed for that.
WRONG_PEER = """
import numpy as np
from benchmarks.peers.base import Call, Refusal

def prepare(case, data, setting):
    if case.layers > 1:
        raise Refusal("one layer at most")
    y = np.ones((case.T, case.N, case.H))
    def run():
        raise AssertionError("a wrong result was timed")
    return Call(run, lambda: {"y": y})
"""


# --------------------------------------------------------------------------- shapes and their work


def test_parse_shape() -> None:
    assert parse_shape("T=100,N=32,D=128,H=256") == {"T": 100, "N": 32, "D": 128, "H": 256}
    assert parse_shape("H=8") == {"H": 8, "D": 8}
    assert parse_shape("H=8, L=2, bi=1, P=4") == {
        "H": 8,
        "D": 8,
        "layers": 2,
        "bidirectional": True,
        "P": 4,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("T=1", "H is missing"),
        ("H=8,X=1", "'X' is none of"),
        ("H=8,H=9", "given twice"),
        ("H=-8", "whole number"),
        ("H=0", "must be at least 1, got 0"),
        ("H=8,P=8", "P must be at least 0 and below H=8"),
    ],
)
def test_parse_shape_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(CaseError, match=message):
        parse_shape(text)


def test_parse_dtype() -> None:
    assert parse_dtype("bf16") == "bfloat16"
    with pytest.raises(CaseError, match="int8"):
        parse_dtype("int8")


def test_flops() -> None:
    case = Case(T=10, N=3, D=5, H=7)
    forward = 10 * 3 * 2 * 4 * 7 * (5 + 7)
    assert case.flops() == forward
    assert replace(case, mode="training").flops() == 3 * forward
    assert replace(case, mode="grad_input").flops() == 2 * forward
    assert replace(case, bidirectional=True).flops() == 2 * forward
    assert replace(case, layers=2).flops() == forward + 10 * 3 * 2 * 4 * 7 * (7 + 7)
    assert replace(case, P=2).flops() == 10 * 3 * 2 * (4 * 7 * (5 + 2) + 2 * 7)
    # Rows of lengths 8, 5 and 2 in place of three of 8.
    assert Case(8, 3, 5, 7, ragged="packed").flops() == (8 + 5 + 2) * 2 * 4 * 7 * 12


def test_bytes_floor() -> None:
    step = Case(T=1, N=1, D=8, H=16)
    weights = 4 * 4 * 16 * (8 + 16)
    assert step.weight_traffic() == weights
    assert bytes_floor(step, [[1 << 10, 2e9], [1 << 20, 2e9]]) == pytest.approx(weights / 2e9)
    long = replace(step, T=100)
    assert long.weight_traffic() == 4 * 4 * 16 * (8 + 100 * 16)
    assert bytes_floor(step, []) is None
    # Halfway between the two sizes on a logarithmic scale.
    halfway = [[weights / 4, 3e9], [weights * 4, 1e9]]
    assert bytes_floor(step, halfway) == pytest.approx(weights / 2e9)


def test_cases_survive_their_record() -> None:
    for suite in SUITES.values():
        for entry in suite.entries:
            case = entry.case
            assert from_record(json.loads(json.dumps(case.as_record()))) == case


# In a process of its own, as the runner has it: preparing a case sets flags of the whole process,
# which torch's own test kit, once imported, forbids.
CELL_CASE = """
from pathlib import Path

from benchmarks.case import Case
from benchmarks.check import find_fault, load_truth
from benchmarks.data import make_data
from benchmarks.verifier import write_truth
from benchmarks.peers import fused, nn_lstm
from benchmarks.peers.base import Setting

case = Case(T={steps}, N=2, D=3, H=5, cell=True, mode="{mode}")
write_truth(case, Setting(), Path("{path}"))
truth, allowed = load_truth(Path("{path}"))
for peer in (fused, nn_lstm):
    call = peer.prepare(case, make_data(case), Setting())
    found = call.results()
    assert found.keys() == truth.keys(), found.keys() ^ truth.keys()
    assert find_fault(found, truth, allowed) == "", find_fault(found, truth, allowed)
    call.run()
print(len([name for name in truth if name.startswith("grad_")]))
"""


@pytest.mark.parametrize(
    ("mode", "gradients"), [("inference", 0), ("training", 5), ("grad_input", 1)]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_cells_are_asked_for_what_the_case_says(
    steps: int, mode: str, gradients: int, tmp_path: Path
) -> None:
    code = CELL_CASE.format(steps=steps, mode=mode, path=tmp_path / "truth.npz")
    assert run_python(code) == f"{gradients}\n"


def test_cells_of_the_default_run_are_some_of_all() -> None:
    suite = SUITES["cell"]
    default = [entry.case for entry in suite.select("default")]
    assert len(default) == 10 and len(suite.entries) == 3 * 4 * 8
    assert {case.mode for case in default} == {"inference", "training", "grad_input"}
    assert all(entry.case.threads == 1 and entry.case.cell for entry in suite.entries)


def test_own_shapes_reach_every_suite() -> None:
    for suite in SUITES.values():
        assert suite.of_shape(parse_shape("T=3,N=2,H=6")), suite.name
    halves = [entry.case.P for entry in SUITES["options"].of_shape({"H": 6, "D": 6})]
    assert 3 in halves


def test_labels_tell_the_cases_of_a_suite_apart() -> None:
    for suite in SUITES.values():
        labels = [entry.case.label for entry in suite.entries]
        assert len(set(labels)) == len(labels), suite.name


def test_figures_have_fitting_units() -> None:
    assert scaled(12.34e-6, "s") == "12.3 µs"
    assert scaled(0.0123, "s") == "12.3 ms"
    assert scaled(3 * 2**20, "bytes") == "3 MiB"
    assert scaled(None, "") == "–"


# ------------------------------------------------------------------------------ data and checks


def test_sixteen_bit_data_are_exact() -> None:
    import torch

    values = np.random.default_rng(0).standard_normal(1000, dtype=np.float32)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        expected = torch.from_numpy(values).to(dtype).float().numpy()
        assert np.array_equal(rounded(values, name), expected)


def test_data_are_the_same_in_every_process_and_mode() -> None:
    case = Case(T=4, N=3, D=2, H=5, ragged="packed")
    one, two = make_data(case), make_data(replace(case, mode="training", threads=1))
    assert np.array_equal(one.x, two.x)
    assert np.array_equal(one.weights["weight_hh_l0"], two.weights["weight_hh_l0"])
    assert all(not one.x[length:, row].any() for row, length in enumerate(one.lengths))


def test_saturated_data_differ_from_plain_ones_where_they_say() -> None:
    case = Case(T=4, N=3, D=2, H=5, bidirectional=True, dtype="bfloat16")
    plain = make_data(case)
    large = make_data(replace(case, saturated="inputs"))
    assert np.array_equal(large.x[:, :, 0], rounded(plain.x[:, :, 0] * 1e5, "bfloat16"))
    assert np.array_equal(large.x[:, :, 1], plain.x[:, :, 1])
    assert all(np.array_equal(large.weights[k], plain.weights[k]) for k in plain.weights)
    closed = make_data(replace(case, saturated="-60"))
    assert np.array_equal(closed.x, plain.x)
    for name, weight in closed.weights.items():
        kept = 5 if name.startswith("bias_ih") else 0
        assert (weight[:kept] == -60).all()
        assert np.array_equal(weight[kept:], plain.weights[name][kept:])
    with pytest.raises(CaseError, match="saturated must be one of inputs, -60, -1e4, got 3"):
        Case(saturated="3")


def test_find_fault() -> None:
    truth = {"y": np.zeros((2, 3)), "h_n": np.zeros(3)}
    allowed = budgets({"y": np.full((2, 3), 1e-3), "h_n": np.zeros(3)}, truth, "float32")
    assert allowed["y"] == pytest.approx(2e-3 + 5e-6)
    assert find_fault({"y": np.full((2, 3), 1.9e-3)}, truth, allowed) == ""
    assert "y: error 0.003" in find_fault({"y": np.full((2, 3), 3e-3)}, truth, allowed)
    assert "y: error inf" in find_fault({"y": np.full((2, 3), np.nan)}, truth, allowed)
    assert "shape (3, 2)" in find_fault({"y": np.zeros((3, 2))}, truth, allowed)
    assert find_fault({}, truth, allowed) == "gave no result"


# --------------------------------------------------------------------------------------- peers


def test_a_peer_that_is_not_installed_is_named_as_skipped() -> None:
    absent = Peer("x", "X", "x", ("torch", "no_such_package"), hint="pip install no-such-package")
    assert absent.missing() == "not installed: no_such_package (pip install no-such-package)"
    options = cli.parse(["--peers", "haste,fused"])
    peers, skipped = cli.select_peers(options)
    # The reference is always there.
    assert [peer.name for peer in peers] == ["fused", "nn"]
    assert [(s["kind"], s["peer"]) for s in skipped] == [("skipped", "haste")]
    assert skipped[0]["reason"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(CaseError, match="'nobody' is none of"):
        cli.select_peers(cli.parse(["--peers", "nobody"]))
    with pytest.raises(CaseError, match="'nothing' is none of"):
        cli.select_entries(cli.parse(["--suite", "nothing"]), 2)
    with pytest.raises(CaseError, match="tf32"):
        cli.select_entries(cli.parse(["--dtype", "tf32"]), 2)


def test_selection_has_no_repetitions_and_takes_the_dtype() -> None:
    plan = cli.select_entries(cli.parse(["--suite", "options", "--dtype", "fp64"]), 2)
    assert len(plan) == 5 and {entry.case.dtype for _, entry in plan} == {"float64"}
    both = ["--suite", "scaling", "--shape", "T=2,N=2,H=3"]
    assert 2 in [entry.case.threads for _, entry in cli.select_entries(cli.parse(both), 2)]


def test_a_wrong_result_is_told_and_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong_peer.py").write_text(WRONG_PEER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = Options(rounds=2, seconds=0.0, modules=(("fused", "wrong_peer"),))
    case = Case(T=3, N=2, D=4, H=5)
    peers = [PEERS["fused"], PEERS["nn"]]
    with Pool() as pool:
        runner = Runner(pool, options)
        wrong, right = runner.run_case("inference", case, peers)
        refused, _ = runner.run_case("inference", replace(case, layers=2), peers)
        runner.close()
        assert all(worker.alive for worker in pool.workers.values())
    assert wrong["status"] == "wrong" and re.match(r"y: error [\d.]+, allowed", wrong["reason"])
    assert wrong["rounds"] == [] and wrong["median"] is None and wrong["speedup"] is None
    assert right["status"] == "ok" and right["speedup"] == 1.0
    assert len(right["rounds"]) == 2 and right["error_share"] <= 1
    assert (refused["status"], refused["reason"]) == ("unsupported", "one layer at most")
    assert not any(worker.alive for worker in pool.workers.values())


# -------------------------------------------------------------------------------------- output


def test_results_survive_their_file(tmp_path: Path) -> None:
    results = make_results()
    results.skipped = [{"kind": "skipped", "peer": "haste", "reason": "not installed"}]
    path = tmp_path / "run.jsonl"
    writer = Writer(path)
    for record in (results.run, *results.skipped, *results.rows):
        writer.write(record)
    writer.close()
    assert read_results(path) == results
    (tmp_path / "other").write_text("{}\n")
    with pytest.raises(CaseError, match="no benchmark results"):
        read_results(tmp_path / "other")
    with pytest.raises(CaseError, match="cannot read"):
        read_results(tmp_path / "absent")


def test_every_row_has_the_documented_fields() -> None:
    documented = (Path(cli.__file__).parent / "README.md").read_text()
    for row in make_results().rows:
        for name in row.keys() - {"kind"}:
            assert f"`{name}`" in documented, name


def test_geometric_means() -> None:
    means = make_results(noise=0.0).geometric_means()
    assert means == {"inference": {"fused": (pytest.approx(2.0), 6)}}


def test_nothing_of_nothing() -> None:
    empty = Results(make_results().run, [], [])
    assert empty.geometric_means() == {} and empty.disturbed() == 0.0
    found = compare(empty, empty)
    assert (found.changes, found.drift) == ([], 1.0)
