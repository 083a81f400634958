# SPDX-License-Identifier: BSD-3-Clause
"""What is refused, and in which words: what, got, wanted."""

import builtins
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell

X = torch.zeros(4, 2, 3)


class Idle(nn.Module):
    """Holds an LSTM that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = FusedLSTM(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


BAD_CALLS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (3, {}, TypeError, "trace takes a module, got int"),
    (
        nn.LSTM(3, 5), {}, ValueError,
        "trace needs a FusedLSTM in the model, got LSTM with nn.LSTM (itself): call "
        "lstm_fused.convert(model) first",
    ),
    (
        nn.Sequential(nn.LSTM(3, 5)), {}, ValueError,
        "got Sequential with nn.LSTM (0): call lstm_fused.convert(model) first",
    ),
    (FusedLSTMCell(3, 5), {}, ValueError, "needs a FusedLSTM in the model, got FusedLSTMCell with"),
    (
        FusedLSTM(3, 5, backend="cudnn"), {}, ValueError,
        'trace needs backend="auto", got backend=\'cudnn\'',
    ),
    (
        nn.Sequential(FusedLSTM(3, 5, backend="cudnn")), {}, ValueError,
        "got backend='cudnn' of '0'",
    ),
    (Idle(), {}, ValueError, "records FusedLSTM modules that the model calls, got a call of none"),
    (
        FusedLSTM(3, 5), {"through": {}}, ValueError,
        "through needs differentiable=True, got differentiable=False",
    ),
    (
        FusedLSTM(3, 5), {"through": [1], "differentiable": True}, TypeError,
        "through must map names to modules, got list",
    ),
    (
        FusedLSTM(3, 5), {"through": {"l1.f": abs}, "differentiable": True}, ValueError,
        "through must have names of the trace's tensors (l0.i, l0.f, l0.g, l0.o, l0.c, l0.h), got "
        "'l1.f'",
    ),
    (
        FusedLSTM(3, 5), {"through": {"l0.f": 1}, "differentiable": True}, TypeError,
        "through['l0.f'] must be a module or a function, got int",
    ),
    (
        FusedLSTM(3, 5), {"through": {"l0.f": len}, "differentiable": True}, ValueError,
        "through['l0.f'] must give a tensor of shape (4, 2, 5), got int",
    ),
    (
        FusedLSTM(3, 5), {"through": {"l0.c": lambda c: c[0]}, "differentiable": True}, ValueError,
        "through['l0.c'] must give a tensor of shape (4, 2, 5), got (2, 5)",
    ),
    (
        FusedLSTM(3, 5), {"lengths": torch.tensor([4])}, ValueError,
        "lengths must have shape (2,), got (1,)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "options", "error", "sentence"), BAD_CALLS)
def test_bad_calls(
    model: Any, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        lstm_fused.trace(model, X, **options)


@pytest.fixture(scope="module")
def trace() -> lstm_fused.Trace:
    torch.manual_seed(0)
    return lstm_fused.trace(FusedLSTM(3, 5, bidirectional=True), X, lengths=torch.tensor([4, 0]))


def test_names_rows_and_thresholds(trace: lstm_fused.Trace) -> None:
    with pytest.raises(KeyError, match="the trace has l0, l0_reverse, got 'l1'"):
        trace["l1"]
    assert "l1" not in trace
    with pytest.raises(IndexError, match="row must be between 0 and 1, got 2"):
        trace["l0"].row(2)
    with pytest.raises(ValueError, match=r"got closed_below=0\.5, open_above=0\.4"):
        trace.summary(closed_below=0.5, open_above=0.4)


def test_plots(trace: lstm_fused.Trace) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="plot needs a name where a trace has several: l0, l0_rev"):
        trace.plot()
    with pytest.raises(ValueError, match="tensors must be some of i, f, g, o, c, h, got 'fx'"):
        trace.plot("l0", tensors="fx")
    with pytest.raises(ValueError, match=r"units must lie between 0 and 4, got \[5\]"):
        trace.plot("l0", units=[5])
    with pytest.raises(ValueError, match="a plot shows at least one step, got a row of length 0"):
        trace.plot("l0", row=1)


def test_without_matplotlib(trace: lstm_fused.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"trace\.plot needs matplotlib: pip install matplotlib"):
        trace.plot("l0")


BAD_PAGES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"labels": "abc"}, ValueError, "labels must be one for each of 4 steps, got 3"),
    ({"row": 5}, IndexError, "row must be between 0 and 1, got 5"),
    ({"row": 1}, ValueError, "a page shows at least one step, got a row of length 0"),
    ({"names": []}, ValueError, "save_html needs one name at least, got none"),
    ({"names": ["l7"]}, KeyError, "the trace has l0, l0_reverse, got 'l7'"),
    ({"features": [1]}, TypeError, "features must map names to numbers, got list"),
    ({"features": {"a": "abcd"}}, TypeError, "features['a'] must hold numbers: "),
    ({"features": {"a": [1]}}, ValueError, "features['a'] must have shape (4,), got (1,)"),
    (
        {"features": {"a": [1, 2, 3, float("nan")]}}, ValueError,
        "features['a'] must be finite, got NaN or infinity",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "sentence"), BAD_PAGES)
def test_bad_pages(
    trace: lstm_fused.Trace,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    sentence: str,
) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        trace.save_html(tmp_path / "page.html", **options)
    assert not list(tmp_path.iterdir())


def test_calls_of_several_lengths_need_pages_of_their_own(tmp_path: Path) -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = FusedLSTM(3, 3)

        def forward(self, x: torch.Tensor) -> None:
            self.lstm(x)
            self.lstm(x[:2])

    trace = lstm_fused.trace(Halves(), X)
    with pytest.raises(ValueError, match=r"several lengths \(lstm\.l0 4, lstm:2\.l0 2\)"):
        trace.save_html(tmp_path / "page.html")
    trace.save_html(tmp_path / "page.html", names=["lstm:2.l0"])
