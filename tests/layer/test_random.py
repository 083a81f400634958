# SPDX-License-Identifier: BSD-3-Clause
"""Random configurations, all options mixed, the same ones at every run."""

import os

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from kit.cases import LayerCase, Layout, make_inputs
from kit.numeric import run_rival, run_truth
from kit.ours import Expected, assert_results, run_ours
from kit.settings import DTYPES, ISAS, use_isa, use_threads

# LSTM_FUSED_EXAMPLES=10000 searches further than a test run has time for.
settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=int(os.environ.get("LSTM_FUSED_EXAMPLES", "200")),
    suppress_health_check=list(HealthCheck),
)
LAYOUTS: tuple[Layout, ...] = ("contiguous", "strided", "transposed", "expanded")


@st.composite
def layer_cases(draw: st.DrawFn) -> LayerCase:
    """Any case whose layers take a bounded number of multiply-adds.

    The bound is drawn too: most work is small, and some is enough for several threads.
    """
    work = draw(st.sampled_from([20_000, 200_000, 3_000_000]))
    hidden = draw(st.integers(1, 80))
    features = draw(st.integers(1, 50))
    projected = draw(st.one_of(st.just(0), st.integers(0, hidden - 1)))
    per_row = 4 * hidden * (features + (projected or hidden))
    rows = draw(st.integers(0, max(1, min(70, work // per_row))))
    steps = draw(st.integers(1, max(1, min(30, work // (per_row * max(rows, 1))))))
    some_lengths = st.lists(st.integers(0, steps), min_size=rows, max_size=rows).map(tuple)
    lengths = draw(st.one_of(st.none(), some_lengths))
    reset = draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0]))
    layout = draw(st.sampled_from(LAYOUTS))
    return LayerCase(
        steps,
        rows,
        features,
        hidden,
        P=projected,
        bias=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
        num_layers=draw(st.integers(1, 3)),
        batch_first=draw(st.booleans()),
        lengths=lengths,
        reset=reset,
        hx=draw(st.booleans()),
        layout=layout,
        poison=(lengths is not None or reset > 0) and layout != "expanded",
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 10**6)),
    )


@settings(settings.get_profile("repeatable"))
@given(
    case=layer_cases(),
    isa=st.sampled_from(ISAS),
    cell_states=st.booleans(),
    threads=st.sampled_from([1, 1, 1, 2, 3]),
)
def test_results_and_gradients(case: LayerCase, isa: str, cell_states: bool, threads: int) -> None:
    note(f"{case}, {isa}, {threads} thread(s)")
    inputs = make_inputs(case)
    theirs = run_rival(inputs, cell_states=cell_states)
    truth = run_truth(inputs, cell_states=cell_states)
    with use_isa(isa), use_threads(threads):
        ours = run_ours(inputs, cell_states=cell_states)
    assert_results(case, ours, Expected(inputs, theirs, truth))
