# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of conversions share."""

import warnings
from typing import Any

import torch
from torch import nn

import lstm_fused

SIZES = (3, 5)


def make_lstm(kind: Any = nn.LSTM, **options: Any) -> Any:
    """A float64 module of equal weights at each call."""
    torch.manual_seed(0)
    return kind(*SIZES, dtype=torch.float64, **options)


def left_by(model: nn.Module, does: Any = lstm_fused.convert) -> dict[str, str]:
    """Convert, or what `does` is. Paths and reasons of what was left, as the report has them; the
    warning names each of them too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, report = does(model, return_report=True)
    found = [w for w in caught if w.category is UserWarning]
    assert len(found) == (1 if report.left else 0)
    assert all(warning.filename == __file__ for warning in found)
    for left in report.left:
        assert left.path in str(found[0].message)
        assert left.reason in str(found[0].message)
        assert left.reason in str(report)
    return {left.path: left.reason for left in report.left}
