# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark of options of the cell: its loops compute what FusedLSTM does, and its ratios."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kit.benchmark_results import make_results
from kit.process import run_python
from rich.console import Console

from benchmarks import cli
from benchmarks.case import RANDOM_VARIANTS, VARIANTS, Case, CaseError
from benchmarks.data import make_data
from benchmarks.peers import PEERS
from benchmarks.pool import Pool
from benchmarks.records import Record
from benchmarks.rows import make_row
from benchmarks.runner import Options, Runner
from benchmarks.session import Session
from benchmarks.suites import SUITES, Entry
from benchmarks.table import COLUMNS, columns_of, suite_table
from benchmarks.write_reports import write_reports

SMALL = Case(T=4, N=2, D=3, H=5, mode="training")
# A compiled loop is here the loop itself: what the compiler makes of it is the compiler's matter.
WITHOUT_COMPILER = """
import torch
compiled = []
torch.compile = lambda function, dynamic: compiled.append(function) or function
"""

# ------------------------------------------------------------------- what the peers compute

# In processes of their own, as the runner has it: preparing a case sets flags of the whole process.
AGREE = (
    WITHOUT_COMPILER
    + """
from dataclasses import replace
from pathlib import Path

from benchmarks.case import VARIANTS, Case
from benchmarks.check import find_fault, load_truth
from benchmarks.data import make_data
from benchmarks.peers import compiled_loop, fused, nn_lstm
from benchmarks.peers.base import Setting
from benchmarks.verifier import write_truth

path = Path("{path}")
cases = [
    Case(T=steps, N=2, D=3, H=5, variant=variant, mode="{mode}")
    for steps in (3, 12)
    for variant in VARIANTS
]
for case in cases:
    write_truth(case, Setting(), path)
    truth, allowed = load_truth(path)
    for peer in (fused, nn_lstm, compiled_loop):
        call = peer.prepare(case, make_data(case), Setting())
        found = call.results()
        assert found.keys() == truth.keys(), (case.label, found.keys() ^ truth.keys())
        fault = find_fault(found, truth, allowed)
        assert not fault, (case.label, peer.__name__, fault)
        call.run()
    plain = replace(case, variant="plain")
    found = fused.prepare(plain, make_data(plain), Setting()).results()
    if find_fault(found, truth, allowed):
        print(case.variant, end=" ")
assert len(compiled) == len(cases)
"""
)


@pytest.mark.parametrize("mode", ["inference", "training", "grad_input"])
def test_loops_and_fused_agree_on_each_option(mode: str, tmp_path: Path) -> None:
    told = run_python(AGREE.format(path=tmp_path / "truth.npz", mode=mode))
    # An option that a peer left out is told, where evaluation has it at all.
    telling = ["zoneout", "layer_norm", "peephole", "cell_clip", "coupled_gates"]
    assert told.split() == 2 * telling


# torch's generator gives FusedLSTM and the loop the same masks, as both draw all of them by
# dropout; those of zoneout are drawn again as the loop does, for the layer in plain torch.
SAME_MASKS = """
import torch

from benchmarks.case import Case
from benchmarks.data import make_data
from benchmarks.peers import fused, variant_loop
from benchmarks.peers.base import Setting
from benchmarks.peers.torch_kit import make_inputs
from lstm_fused.reference_options import LayerOptions, lstm_layer

def of_seed(call):
    torch.manual_seed(3)
    y, h_n, c_n, gradients = call.run()
    return [y, h_n, c_n, *gradients]

for variant in ("recurrent_dropout", "weight_dropout"):
    case = Case(T=6, N=4, D=3, H=16, variant=variant, mode="training", dtype="float64")
    loop, other = (p.prepare(case, make_data(case), Setting()) for p in (variant_loop, fused))
    results, wanted = of_seed(loop), of_seed(other)
    torch.testing.assert_close(results, wanted, rtol=0, atol=1e-12)
    torch.manual_seed(4)
    assert not torch.allclose(loop.run()[0], results[0]), "a call has the masks of another"

case = Case(T=6, N=4, D=3, H=16, variant="zoneout", mode="training", dtype="float64")
inputs = make_inputs(case, make_data(case), Setting())
results = of_seed(variant_loop.prepare(case, make_data(case), Setting()))
torch.manual_seed(3)
keep_c, keep_h = torch.empty(2, 6, 4, 16, dtype=torch.float64).bernoulli_(0.1).bool()
assert 0.05 < keep_c.double().mean() < 0.2 and not torch.equal(keep_c, keep_h)
options = LayerOptions(keep_c=keep_c.view(1, 24, 16), keep_h=keep_h.view(1, 24, 16))
wanted = lstm_layer(inputs.x, *inputs.hx, list(inputs.weights.values()), options)[:3]
torch.testing.assert_close(results[:3], list(wanted), rtol=0, atol=1e-12)
print("equal")
"""


def test_loops_apply_masks_as_fused_does() -> None:
    assert run_python(SAME_MASKS) == "equal\n"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (np.ones(3), "zoneout: y in training is that of evaluation"),
        (np.ones(4), r"y in training: shape \(3,\), wanted finite values of shape \(4,\)"),
    ],
)
def test_a_call_that_draws_no_masks_is_told(second: np.ndarray, message: str) -> None:
    from torch import nn

    from benchmarks.peers.base import Call
    from benchmarks.peers.torch_kit import checked_in_evaluation

    module = nn.Identity()
    call = Call(lambda: None, lambda: {"y": np.ones(3) if module.training else second})
    case = replace(SMALL, variant="zoneout")
    with pytest.raises(ArithmeticError, match=message):
        checked_in_evaluation(case, call, module).results()
    assert checked_in_evaluation(replace(case, mode="inference"), call, module) is call
    assert checked_in_evaluation(replace(case, variant="peephole"), call, module) is call


def test_data_of_an_option_are_the_plain_layers_and_more() -> None:
    plain = make_data(replace(SMALL, variant="plain"))
    more = {}
    for variant in VARIANTS:
        data = make_data(replace(SMALL, variant=variant))
        assert np.array_equal(data.x, plain.x) and np.array_equal(data.grad_y, plain.grad_y)
        assert all(np.array_equal(data.weights[n], plain.weights[n]) for n in plain.weights)
        more[variant] = {n: w.shape for n, w in data.weights.items() if n not in plain.weights}
    norms = {"gamma_l0": (2, 20), "gamma_c_l0": (5,), "beta_c_l0": (5,)}
    assert {name: shapes for name, shapes in more.items() if shapes} == {
        "layer_norm": norms,
        "peephole": {"peephole_l0": (3, 5)},
    }


# ----------------------------------------------------------------------------- cases and peers


def test_cases_of_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(CaseError, match=r"variant must be one of plain, .*, got gru"):
        Case(variant="gru")
    for other in ({"layers": 2}, {"P": 3}, {"resets": 0.1}, {"ragged": "packed"}, {"mode": "op"}):
        with pytest.raises(CaseError, match="variant zoneout: the loops that it is compared with"):
            replace(SMALL, **{"variant": "zoneout", **other})
    assert Case(variant="plain").variant_options == {} == Case().variant_options
    assert Case(variant="cell_clip").variant_options == {"cell_clip": 3.0}


def test_the_suite_has_every_option_at_both_shapes() -> None:
    suite = SUITES["variants"]
    found = [(entry.case.N, entry.case.H, entry.case.variant) for entry in suite.entries]
    assert found == [(n, h, name) for n, h in ((32, 256), (1, 128)) for name in VARIANTS]
    default = [(entry.case.N, entry.case.variant) for entry in suite.select("default")]
    assert default == [(32, "recurrent_dropout"), (32, "layer_norm")]
    assert not suite.select("quick")
    own = suite.of_shape({"T": 3, "N": 2, "D": 4, "H": 6})
    assert [entry.case.variant for entry in own] == list(VARIANTS)


def names_of(case: Case, *, every_peer: bool) -> list[str]:
    session = Session([], list(PEERS.values()), [], Options(), every_peer, 1.0, {})
    return [peer.name for peer in session._peers_of(Entry(case))]


def test_cases_of_options_go_to_the_peers_that_have_them() -> None:
    case = replace(SMALL, variant="peephole")
    assert names_of(case, every_peer=False) == ["fused", "nn", "fused-plain"]
    assert names_of(case, every_peer=True) == ["fused", "nn", "compiled-loop", "fused-plain"]
    for every_peer in (False, True):
        assert "fused-plain" not in names_of(SMALL, every_peer=every_peer)
        assert "fused-plain" not in names_of(replace(SMALL, rounded=True), every_peer=every_peer)


# ------------------------------------------------------------------------------- rows, reports


@pytest.mark.parametrize("variant", ["peephole", RANDOM_VARIANTS[0]])
def test_the_plain_layer_is_run_beside_the_option(variant: str) -> None:
    peers = [PEERS[name] for name in ("fused", "nn", "jax", "fused-plain")]
    with Pool() as pool:
        runner = Runner(pool, Options(rounds=2, seconds=0.0))
        rows = runner.run_case("variants", replace(SMALL, variant=variant), peers)
        runner.close()
    fused, loop, jax, plain = rows
    assert [row["status"] for row in rows] == ["ok", "ok", "unsupported", "ok"]
    assert jax["reason"] == "no options of the cell"
    assert fused["plain_ratio"] == fused["median"] / plain["median"]
    assert loop["plain_ratio"] == loop["median"] / plain["median"]
    assert (plain["plain_ratio"], plain["speedup"], loop["speedup"]) == (1.0, None, 1.0)
    assert loop["note"] == "loop over such a cell"
    assert all(row["case"]["variant"] == variant for row in rows)


# Refuses by the name of what it is asked for.
ASKED_PEER = """
from benchmarks.peers.base import Refusal

def prepare(case, data, setting):
    raise Refusal(f"{case.variant}, {len(data.weights)} weights")
"""


def test_the_plain_layer_is_asked_for_no_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked_peer.py").write_text(ASKED_PEER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ("fused", "fused-plain")
    options = Options(modules=tuple((name, "asked_peer") for name in names))
    with Pool() as pool:
        runner = Runner(pool, options)
        case = replace(SMALL, variant="peephole")
        rows = runner.run_case("variants", case, [PEERS[name] for name in names])
        runner.close()
    assert [row["reason"] for row in rows] == ["peephole, 5 weights", "plain, 4 weights"]


def rows_of_options() -> list[Record]:
    case = replace(SMALL, variant="zoneout")
    times = {"fused": [[3e-3]] * 2, "nn": [[9e-3]] * 2, "fused-plain": [[2.4e-3]] * 2}
    verdict = {"suite": "variants", "threads": 2, "device": "cpu", "status": "ok"}
    return [
        make_row(case, peer, verdict, rounds, times["nn"], {}, [0, 0, 0], times["fused-plain"])
        for peer, rounds in times.items()
    ]


def test_reports_have_the_ratio_to_the_plain_layer(tmp_path: Path) -> None:
    results = make_results()
    assert columns_of(results.rows) == COLUMNS
    results.rows += rows_of_options()
    page, html = (
        next(path for path in write_reports(results, tmp_path / "run.jsonl") if path.suffix == kind)
        for kind in (".md", ".html")
    )
    before, after = page.read_text().split("## variants")
    assert "of plain" not in before
    assert re.search(r"\| T=4 N=2 D=3 H=5 zoneout training \| FusedLSTM \| 3 ms \| 1\.25 \|", after)
    assert "| nn.LSTM | 9 ms | 3.75 |" in after
    assert "<td>3 ms</td><td>1.25</td>" in html.read_text()
    console = Console(width=200)
    with console.capture() as capture:
        console.print(suite_table(results, "variants"))
    assert "of plain" in capture.get() and "1.25" in capture.get()


def test_rows_that_are_older_than_the_ratio_have_their_table(tmp_path: Path) -> None:
    results = make_results()
    for row in results.rows:
        del row["plain_ratio"], row["case"]["variant"]
    written = write_reports(results, tmp_path / "run.jsonl")
    assert any("FusedLSTM" in path.read_text() for path in written if path.suffix == ".md")


def test_the_list_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--suite", "variants", "--full", "--list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 * len(VARIANTS)
    assert "variants: T=100 N=1 D=H=128 coupled_gates training" in shown
