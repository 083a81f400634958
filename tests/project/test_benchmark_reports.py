# SPDX-License-Identifier: BSD-3-Clause
"""The reports of a run: that they hold every figure, load nothing, and can be read on a phone; and
the yardstick of their shares."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from kit.benchmark_results import make_results
from kit.chromium import open_browser

from benchmarks import rates
from benchmarks.case import Case
from benchmarks.headlines import HEADLINES
from benchmarks.html_report import make_html
from benchmarks.records import Record, Results, read_results
from benchmarks.report import rate_rows, yardstick_line
from benchmarks.rows import make_row, peak_flops, scaled, share_of
from benchmarks.suites import SUITES
from benchmarks.table import GEMM_COLUMN, SHARE_COLUMN, columns_of
from benchmarks.write_reports import write_reports
from lstm_fused import build_info

COMMITTED = sorted((Path(rates.__file__).parent / "results").glob("*.jsonl"))


def text_of(results: Results, folder: Path, suffix: str) -> str:
    written = write_reports(results, folder / "run.jsonl")
    return next(path for path in written if path.suffix == suffix).read_text()


def aged(results: Results) -> Results:
    """The results as they were before the micro-kernel's rate was measured."""
    for row in results.rows:
        del row["kernel_flops"], row["peak_share"]
        row["gemm_share"] = row["gflops"] * 1e9 / row["gemm_flops"]
    return results


# ---------------------------------------------------------------------------------- the yardstick


def a_row(dtype: str, gemm: float | None, kernel: float | None) -> Record:
    case = Case(T=10, N=2, D=4, H=8, dtype=dtype)
    verdict = {"suite": "inference", "threads": 2, "device": "cpu", "status": "ok"}
    found = {"gemm_flops": gemm, "kernel_flops": kernel}
    seconds = case.flops() / 1e9
    return make_row(case, "fused", verdict, [[seconds]], [[seconds]], found, [0, 0, 0])


@pytest.mark.parametrize(
    ("dtype", "gemm", "kernel", "peak"),
    [
        ("float32", 2e9, 4e9, 4e9),
        ("float32", 4e9, 2e9, 4e9),
        ("float64", 4e9, 2e9, 2e9),  # torch's rate is that of float32
        ("bfloat16", 4e9, None, 4e9),
    ],
)
def test_shares_are_of_the_yardstick(
    dtype: str, gemm: float, kernel: float | None, peak: float
) -> None:
    row = a_row(dtype, gemm, kernel)
    assert peak_flops(row) == peak
    # The row's own rate is 1 GFLOP/s.
    assert row["peak_share"] == share_of(row) == pytest.approx(1e9 / peak)


def test_without_a_yardstick_there_is_no_share() -> None:
    assert a_row("float32", None, None)["peak_share"] is None


def test_the_micro_kernel_is_timed_on_all_its_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def best(run: object, seconds: float) -> float:
        runs.append(run)
        run()
        return 1.0 if len(runs) % 2 else 0.5

    if not build_info()["kernels"]:
        pytest.skip("lstm_fused has no compiled kernels")
    monkeypatch.setattr(rates, "_best", best)
    monkeypatch.setattr(rates, "KERNEL_SHAPE", (2, 3, 5, 4))
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        # One thread's rate, and two threads' with twice the rows in half the time.
        found = rates._kernel(2, dtype)
        assert found == Case(T=2, N=6, D=5, H=4).flops() / 0.5
    assert len(runs) == 8


def test_the_yardstick_is_stated() -> None:
    results = make_results()
    line = yardstick_line(results)
    assert "micro-kernel, 200 GFLOP/s" in line and "torch's sgemm, 100 GFLOP/s" in line
    assert rate_rows(results) == [["inference", "2", "float32", "200", "100"]]
    assert SHARE_COLUMN in columns_of(results.rows)


def test_files_without_the_micro_kernels_rate_have_their_reports(tmp_path: Path) -> None:
    results = aged(make_results())
    assert "100 GFLOP/s: this run is older" in yardstick_line(results)
    assert rate_rows(results) == [["inference", "2", "float32", "–", "100"]]
    assert GEMM_COLUMN in columns_of(results.rows)
    row = results.rows[0]
    assert share_of(row) == row["gemm_share"]
    for suffix in (".html", ".md"):
        text = text_of(results, tmp_path, suffix)
        assert f"{row['gemm_share']:.0%}" in text and "of sgemm" in text


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_have_their_reports(path: Path) -> None:
    results = read_results(path)
    html = make_html(results)
    for row in results.timed():
        assert scaled(row["median"], row["unit"]) in html


def test_headlines_are_cases_of_the_suites() -> None:
    assert len(set(HEADLINES)) == 10
    for headline in HEADLINES:
        labels = [entry.case.label for entry in SUITES[headline.suite].select("default")]
        assert headline.label in labels


# ------------------------------------------------------------------------------------ the formats


def test_the_report_loads_nothing(tmp_path: Path) -> None:
    results = make_results()
    bad = {**results.rows[0], "status": "wrong", "reason": "y: <b>off</b>"}
    results.rows.append(bad)
    page = text_of(results, tmp_path, ".html")
    assert not re.search(r"\b(?:src|href|url)\s*[=(]", page)
    assert "http" not in page and "<script" not in page and "@import" not in page
    assert "a &lt;CPU&gt;" in page and "&lt;b&gt;off" in page
    assert {path.suffix for path in tmp_path.iterdir()} == {".html", ".md"}


def test_the_report_begins_with_the_summary_and_folds_the_rest(tmp_path: Path) -> None:
    results = make_results(noise=0.0)
    results.rows.append({**results.rows[0], "status": "wrong", "reason": "y: off"})
    page = text_of(results, tmp_path, ".html")
    first, _, _ = page.partition("<details")
    assert "wrong: FusedLSTM" in first and "<td>2.00</td>" in first
    assert json.dumps("schema") not in first and page.count("<details") == page.count("</details>")
    # A headline of the table is T=100 N=1 D=H=256, with the time of each.
    _, _, headlines = first.partition("Headline cases")
    assert "<b>1 ms</b> 2.00×" in headlines and "<b>2 ms</b>" in headlines


def test_lengths_of_bars_are_the_ratios() -> None:
    page = make_html(make_results(factor=0.5, noise=0.0))
    sizes = re.findall(r"--size:([\d.]+);--low:[\d.]+;--high:([\d.]+);--one:([\d.]+)", page)
    # 4 times as fast, the longest; nn.LSTM's own bars end at the mark.
    assert set(sizes[:2]) == {("1.0000", "1.0000", "0.2500"), ("0.2500", "0.2500", "0.2500")}


def test_the_markdown_report_has_every_figure(tmp_path: Path) -> None:
    results = make_results()
    results.rows.append({**results.rows[0], "status": "wrong", "reason": "y: a|b\nc"})
    page = text_of(results, tmp_path, ".md")
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (5, 6, 11) for line in tables)
    for row in results.rows:
        assert row["label"].split(",")[0] in page
        if row["status"] == "ok":
            assert scaled(row["median"], row["unit"]) in page
    assert r"y: a\|b c" in page


@pytest.mark.parametrize("width", [1280, 390])
def test_only_tables_scroll_sideways(width: int, tmp_path: Path) -> None:
    results = make_results()
    long = replace(Case(100, 32, 128, 256, P=128, layers=2), bidirectional=True, mode="training")
    results.rows.append({**results.rows[0], "label": long.label, "note": "a note of words " * 9})
    results.rows[-1]["peer"] = "nn-plain"  # the longest name
    path = tmp_path / "page.html"
    path.write_text(make_html(results))
    with open_browser() as page:
        page.resize(width, 900, mobile=width < 500)
        page.open(path)
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        wide = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth > e.clientWidth)"
        assert any(page.evaluate(wide))
        # No figure behind a bar leaves the page.
        ends = "[...document.querySelectorAll('.track span')].map(e => e.getBoundingClientRect())"
        assert max(page.evaluate(f"{ends}.map(box => box.right)")) <= width
        assert page.problems == [] and len(page.requests) == 1
