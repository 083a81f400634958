# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark runner: changes between two runs, told from noise."""

import numpy as np
import pytest
from kit.benchmark_results import make_results
from rich.console import Console

from benchmarks.compare import compare, print_comparison
from benchmarks.records import Results
from benchmarks.stats import bootstrap_interval, permutation_p, summarize, thinned


def verdicts(before: Results, after: Results, peer: str = "fused") -> set[str]:
    return {c.verdict for c in compare(before, after).changes if c.before["peer"] == peer}


def test_compare_finds_a_change_of_a_fifth() -> None:
    assert verdicts(make_results(), make_results(1.2, seed=1)) == {"slower"}
    assert verdicts(make_results(1.2), make_results(seed=1)) == {"faster"}


@pytest.mark.parametrize("seed", range(8))
def test_compare_takes_no_noise_for_a_change(seed: int) -> None:
    before, after = make_results(seed=2 * seed + 10), make_results(seed=2 * seed + 11)
    assert verdicts(before, after) == {"same"}


def test_compare_is_not_misled_by_a_slower_machine() -> None:
    assert verdicts(make_results(), make_results(drift=1.5, seed=1)) == {"same"}


def test_compare_is_not_misled_by_a_rival_that_jumps() -> None:
    before, after = make_results(), make_results(seed=1)
    for row in after.rows[1::6]:  # A third of the rows of nn.LSTM.
        assert row["peer"] == "nn"
        row["rounds"] = [[2 * sample for sample in samples] for samples in row["rounds"]]
    assert verdicts(before, after) == {"same"}


def test_compare_finds_a_change_of_one_row() -> None:
    before, after = make_results(noise=0.01), make_results(noise=0.01, seed=1)
    row = after.rows[4]
    row["rounds"] = [[1.2 * sample for sample in samples] for samples in row["rounds"]]
    slower = [c for c in compare(before, after).changes if c.verdict == "slower"]
    assert [c.after for c in slower] == [row]


def test_compare_pairs_rows_that_are_older_than_a_field_of_their_cases() -> None:
    before, after = make_results(), make_results(1.2, seed=1)
    for row in before.rows:
        del row["case"]["saturated"]
    assert verdicts(before, after) == {"slower"}


def test_compare_takes_the_plain_layer_beside_an_option_for_fused() -> None:
    before, after = make_results(), make_results(1.2, seed=1)
    for row in before.rows + after.rows:
        if row["peer"] == "fused":
            row["peer"] = "fused-plain"
    found = compare(before, after)
    # The drift is that of nn.LSTM's rows alone, or half of all rows being slower would count as
    # the machine's.
    assert found.drift == pytest.approx(1, abs=0.03)
    assert print_comparison(Console(quiet=True), found) == 1


def test_compare_says_where_rounds_are_too_few() -> None:
    before, after = make_results(rounds=3), make_results(1.5, rounds=3, seed=1)
    assert verdicts(before, after) == {"too few rounds"}


def test_compare_counts_rows_that_stand_in_one_run() -> None:
    before, after = make_results(), make_results(seed=1)
    after.rows = [row for row in after.rows if row["case"]["H"] != 64]
    found = compare(before, after)
    assert (len(found.changes), found.unmatched) == (10, 2)


def test_permutation_p_is_the_share_of_splits() -> None:
    # 3 and 3 rounds apart: of 20 splits only this one and its mirror image are as uneven.
    assert permutation_p([1, 2, 3], [11, 12, 13]) == pytest.approx(0.1)
    assert permutation_p([1, 2, 3], [1, 2, 3]) == 1.0
    # Beyond exact enumeration.
    far = permutation_p(list(range(12)), list(range(100, 112)))
    assert 0 < far < 0.001


def test_bootstrap_interval_holds_the_difference() -> None:
    low, high = bootstrap_interval([1.0, 1.1, 0.9, 1.0, 1.05], [2.0, 2.1, 1.9, 2.0, 2.05])
    assert low < 1.0 < high
    assert low > 0.7 and high < 1.3


def test_rounds_weigh_the_same_however_many_calls_they_hold() -> None:
    assert summarize([[1.0] * 100, [3.0], [3.0]])["median"] > 1.5
    even = summarize([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert even["median"] == pytest.approx(np.median(range(1, 7)))


def test_thinned_samples_keep_their_distribution() -> None:
    samples = np.random.default_rng(0).exponential(size=5000)
    few = thinned(samples)
    assert len(few) == 41 and few == sorted(few)
    assert np.median(few) == pytest.approx(np.median(samples), rel=1e-3)
