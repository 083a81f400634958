# SPDX-License-Identifier: BSD-3-Clause
"""The history of the headline cases, by made-up records; and that its tables are the records'."""

import copy
import json
import re
from pathlib import Path

import pytest
from kit.benchmark_results import make_results

from benchmarks import cli
from benchmarks.case import CaseError
from benchmarks.headlines import HEADLINES
from benchmarks.history_page import TABLES, draw, make_html, make_markdown, points_of
from benchmarks.history_records import FOLDER, add_run, case_key, make_record, read_all
from benchmarks.records import Record, Results

# The made-up results hold one headline, T=100 N=1 D=H=256.
HEADLINE = HEADLINES[1]


def results_of(commit: str, day: int, factor: float = 1.0) -> Results:
    results = make_results(factor, noise=0.0)
    results.run["time"] = f"2026-01-{day:02}T10:00:00+00:00"
    results.run["machine"]["commit"] = commit
    return results


def records_of(*factors: float) -> list[Record]:
    return [
        make_record(results_of(f"abcdef{i}", i + 1, factor)) for i, factor in enumerate(factors)
    ]


def test_a_record_is_what_the_run_says() -> None:
    (record,) = records_of(0.5)
    assert record["commit"] == "abcdef0" and record["time"].startswith("2026-01-01")
    assert record["machine"] == {"cpu": "a <CPU>", "cores": 2, "caches": None}
    assert list(record["cases"]) == [case_key(HEADLINE)]
    assert record["cases"][case_key(HEADLINE)] == {
        "fused": pytest.approx(0.5e-3),
        "nn": pytest.approx(2e-3),
    }


def test_wrong_rows_are_no_history() -> None:
    results = results_of("abc", 1)
    for row in results.rows:
        row["status"] = "wrong"
    with pytest.raises(CaseError, match="none of the headline cases"):
        make_record(results)


def test_runs_are_added_once_and_stand_by_time(tmp_path: Path) -> None:
    assert add_run(tmp_path, "m", results_of("late", 9))
    assert add_run(tmp_path, "m", results_of("early", 3))
    assert not add_run(tmp_path, "m", results_of("late", 9))
    assert [record["commit"] for record in read_all(tmp_path)["m"]] == ["early", "late"]


def test_another_machine_and_another_file_are_refused(tmp_path: Path) -> None:
    add_run(tmp_path, "m", results_of("one", 1))
    other = results_of("two", 2)
    other.run["machine"]["cores"] = 64
    with pytest.raises(CaseError, match=r"m\.jsonl is of the machine .*'cores': 2.*'cores': 64"):
        add_run(tmp_path, "m", other)
    (tmp_path / "n.jsonl").write_text(json.dumps({"kind": "run"}) + "\n")
    with pytest.raises(CaseError, match="holds no history"):
        read_all(tmp_path)


def test_lines_are_the_times() -> None:
    svg = draw(points_of(HEADLINE, records_of(1.0, 0.5, 0.25)), 3, "<what>")
    heights = {"nn": [], "fused": []}
    for x, y, peer in re.findall(
        r"<circle cx='([\d.]+)' cy='([\d.]+)' r='3.5' fill='var\(--(\w+)", svg
    ):
        heights[peer].append((float(x), float(y)))
    assert [x for x, _ in heights["fused"]] == [10, 130, 250]
    # nn.LSTM's 2 ms are at the top, y = 10, and 0 s at y = 74.
    assert [y for _, y in heights["nn"]] == [10, 10, 10]
    assert [y for _, y in heights["fused"]] == [42, 58, 66]
    assert "<title>abcdef1: 500 µs</title>" in svg and "aria-label='&lt;what&gt;'" in svg
    assert svg.count("<path") == 3


def test_a_run_without_the_case_leaves_its_place_empty() -> None:
    records = records_of(1.0, 1.0, 1.0)
    missing = copy.deepcopy(records)
    missing[1]["cases"] = {}
    points = points_of(HEADLINE, missing)
    assert [point.place for point in points] == [0, 2]
    assert draw(points, 3, "").count("cx='130.0'") == 0
    assert draw(points_of(HEADLINE, records), 3, "").count("cx='130.0'") == 2


def test_one_run_is_a_point() -> None:
    svg = draw(points_of(HEADLINE, records_of(1.0)), 1, "")
    assert svg.count("<circle cx='130.0'") == 2 and svg.count("<path") == 1


def test_pages_have_every_run(tmp_path: Path) -> None:
    histories = {"a-machine": records_of(1.0, 0.5)}
    html, tables = make_html(histories), make_markdown(histories)
    for text in (html, tables):
        assert "a-machine" in text and "abcdef0" in text and "500 µs (4.00)" in text
    assert "<b>500 µs</b>, 4.00× nn.LSTM" in html and "first 1 ms at abcdef0" in html
    assert "http" not in html and "<script" not in html and "a &lt;CPU&gt;" in html
    lines = [line for line in tables.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and {line.count("|") for line in lines} == {15}


def test_the_command_adds_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.jsonl"
    results = results_of("abc", 1)
    run.write_text("".join(json.dumps(record) + "\n" for record in (results.run, *results.rows)))
    folder = tmp_path / "history"
    words = ["history", "--folder", str(folder), "--add", str(run)]
    assert cli.main(words) == 2
    assert "--add wants --machine NAME" in capsys.readouterr().out
    assert cli.main([*words, "--machine", "m"]) == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"m.jsonl", "README.md", "history.html"}
    assert cli.main([*words, "--machine", "m"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert len(read_all(folder)["m"]) == 1


def test_committed_tables_are_those_of_the_records() -> None:
    histories = read_all(FOLDER)
    assert histories
    text = (FOLDER / TABLES).read_text("utf-8")
    assert text == make_markdown(histories), "run python -m benchmarks history"
