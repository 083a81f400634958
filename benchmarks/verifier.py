# SPDX-License-Identifier: BSD-3-Clause
"""What is right: nn.LSTM in float64 and, for the error budget, nn.LSTM in the case's dtype."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.case import Case
from benchmarks.check import budgets, save_truth
from benchmarks.data import make_data
from benchmarks.peers import nn_lstm
from benchmarks.peers.base import Setting


def write_truth(case: Case, setting: Setting, path: Path) -> None:
    """Writes every result of the case, and what error each may have, into one file."""
    data = make_data(case)
    mode = "inference" if case.mode == "op" else case.mode
    plain = replace(case, mode=mode, cell=False)
    truth = nn_lstm.prepare(replace(plain, dtype="float64"), data, setting).results()
    rival = truth
    if case.dtype != "float64":
        rival = nn_lstm.prepare(plain, data, setting).results()
    save_truth(path, truth, budgets(rival, truth, case.dtype))
