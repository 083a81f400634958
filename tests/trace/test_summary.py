# SPDX-License-Identifier: BSD-3-Clause
"""What the summary and the statistics say of series that were made by hand."""

import math

import pytest
import torch

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused._trace.result import GateTrace
from lstm_fused._trace.statistics import correlations, periodicity
from lstm_fused._trace.text import text_features


def hand_made(valid: torch.Tensor | None = None) -> lstm_fused.Trace:
    """Two rows of two steps, three units."""
    f = torch.tensor([[[0.5, 1.0, 0.0], [0.5, 1.0, 0.0]], [[0.5, 1.0, 0.0], [0.7, 1.0, 0.0]]])
    i = torch.tensor([[[0.95, 0.05, 0.5], [0.95, 0.95, 0.5]], [[0.95, 0.05, 0.5], [0.2, 0.2, 0.9]]])
    c = torch.tensor([[[1.0, 2.0, 0.0], [-1.0, 2.0, 0.0]], [[1.0, 2.0, 0.0], [-1.0, 2.0, 0.1]]])
    o = torch.full_like(f, 0.5)
    return lstm_fused.Trace({"l0": GateTrace("l0", i, f, i, o, c, c, valid)}, None)


def test_shares_half_life_and_dead_units() -> None:
    own = hand_made().summary()["l0"]
    assert own.steps == 4
    assert own.open["i"].tolist() == [0.75, 0.25, 0.0]  # 0.9 itself is not beyond it
    assert own.closed["i"].tolist() == [0.0, 0.5, 0.0]
    assert own.open["f"].tolist() == [0.0, 1.0, 0.0]
    assert own.closed["f"].tolist() == [0.0, 0.0, 1.0]
    assert own.open["o"].tolist() == own.closed["o"].tolist() == [0.0, 0.0, 0.0]
    wanted = [math.log(2) / -math.log(0.55), math.inf, 0.0]
    assert own.half_life.tolist() == pytest.approx(wanted)
    assert own.dead.tolist() == [False, True, False]


def test_what_lies_past_a_length_does_not_count() -> None:
    own = hand_made(torch.tensor([[True, True], [True, False]])).summary()["l0"]
    assert own.steps == 3
    assert own.open["i"].tolist() == pytest.approx([1.0, 1 / 3, 0.0])
    assert own.half_life[0] == pytest.approx(1.0)
    assert own.dead.tolist() == [False, True, True]


def test_other_thresholds() -> None:
    own = hand_made().summary(open_above=0.4, closed_below=0.3)["l0"]
    assert own.open["i"].tolist() == [0.75, 0.25, 1.0]
    assert own.closed["i"].tolist() == [0.25, 0.75, 0.0]


def test_a_table_is_printed() -> None:
    text = str(hand_made().summary())
    assert text.splitlines() == [
        "l0: 3 units, 4 steps",
        "  gate        open (> 0.9)  closed (< 0.1)",
        "  input             33.3 %          16.7 %",
        "  forget            33.3 %          33.3 %",
        "  output             0.0 %           0.0 %",
        "  half-life of a memory: median 1.16 steps, longest inf (unit 1)",
        "  dead units: 1 (1)",
    ]


def test_one_step_and_none() -> None:
    module = FusedLSTM(3, 5)
    one = lstm_fused.trace(module, torch.randn(1, 1, 3)).summary()["l0"]
    assert one.steps == 1 and not one.dead.any()
    trace = lstm_fused.trace(module, torch.randn(2, 1, 3), lengths=torch.tensor([0]))
    assert str(trace.summary()) == "l0: 5 units, 0 steps"


def test_projected_layers_have_units_too() -> None:
    trace = lstm_fused.trace(FusedLSTM(3, 5, proj_size=2), torch.randn(6, 2, 3))
    assert trace["l0"].h.shape == (6, 2, 2)
    assert trace.summary()["l0"].dead.shape == (5,)


def test_periodicity_of_a_sine_of_noise_and_of_constants() -> None:
    torch.manual_seed(0)
    time = torch.arange(1000.0)
    series = torch.stack(
        [
            torch.sin(2 * math.pi * time / 25),
            5 + (time % 40 == 0).float(),
            torch.randn(1000),
            torch.full((1000,), 3.0),
            time,
        ],
        dim=1,
    )
    strength, period = periodicity(series)
    assert period[:2].tolist() == [25, 40]
    assert strength[0] > 0.95 and strength[1] > 0.9
    assert strength[2] < 0.15
    assert strength[3] == 0 and period[3] == 0
    assert strength[4] < 0.01  # what only rises never comes back


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_periodicity_of_short_series(steps: int) -> None:
    strength, period = periodicity(torch.randn(steps, 2))
    assert strength.isfinite().all() and (period < max(steps, 2)).all()


def test_correlations() -> None:
    torch.manual_seed(0)
    feature = torch.randn(50)
    noise = torch.randn(50)
    values = torch.stack([feature, -2 * feature + 1, torch.ones(50), noise], dim=1)
    features = torch.stack([feature, torch.zeros(50)])
    found = correlations(values, features)
    theirs = torch.corrcoef(torch.stack([feature, noise]))[0, 1]
    assert found[0].tolist() == pytest.approx([1, -1, 0, float(theirs)], abs=1e-6)
    assert not found[1].any()


def test_features_of_a_text() -> None:
    found = text_features('  a "bc"\n(x)\n\n"y')
    assert found["position in the line"] == [1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 0, 0, 1, 2]
    assert found["indentation"] == [1, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0]
    assert found["inside double quotes"] == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert found["depth of brackets"] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert found["position in the word"] == [0, 0, 1, 0, 0, 1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_a_paragraph_ends_what_was_left_open() -> None:
    found = text_features('"a (\n  \nb')
    assert found["inside double quotes"] == [1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert found["depth of brackets"] == [0, 0, 0, 1, 1, 1, 1, 0, 0]
