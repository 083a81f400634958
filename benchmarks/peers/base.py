# SPDX-License-Identifier: BSD-3-Clause
"""What a peer's module is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.case import Case


class Refusal(Exception):
    """This peer does not do this case; the message says why."""


@dataclass(frozen=True)
class Setting:
    """Where and with how much the peer computes."""

    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Call:
    """One thing that is ready to be called again and again.

    run: one call. On the CPU it has finished when it returns; on a GPU it is in torch's current
        stream.
    results: from one call of its own, in nn.LSTM's shapes: y (T, N, features), h_n, c_n, and in
        training grad_x and "grad_" + each parameter's name. A peer may leave out final states and
        the gradient of a parameter that it has no counterpart for.
    note: how this was done, where a reader would want to know.
    """

    run: Callable[[], Any]
    results: Callable[[], dict[str, np.ndarray]]
    note: str = ""


def refuse(case: Case, who: str, *options: str) -> None:
    """Raises `Refusal` if the case uses one of these options.

    Args:
        who: the subject of the message.
        options: of "training", "grad_input", "op", "ragged", "resets", "layers", "bidirectional",
            "P".
    """
    used = {
        "training": case.training,
        "grad_input": case.mode == "grad_input",
        "op": case.mode == "op",
        "ragged": bool(case.ragged),
        "resets": case.resets > 0,
        "layers": case.layers > 1,
        "bidirectional": case.bidirectional,
        "P": case.P > 0,
    }
    words = {
        "training": "gradients",
        "grad_input": "gradient of the input alone",
        "op": "operator beneath a module",
        "ragged": "rows of unequal length",
        "resets": "resets",
        "layers": "second layer",
        "bidirectional": "second direction",
        "P": "projection",
    }
    for option in options:
        if used[option]:
            raise Refusal(f"{who}: no {words[option]}")


def refuse_dtypes(case: Case, who: str, *allowed: str) -> None:
    if case.dtype not in allowed:
        raise Refusal(f"{who}: no {case.dtype}")
