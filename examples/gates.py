# SPDX-License-Identifier: BSD-3-Clause
"""The page that an example writes of the gates of the LSTM that it has trained."""

import copy
from collections.abc import Mapping, Sequence

from common import ExampleError
from contest import Contest
from torch import Tensor

import lstm_fused


def save_gates(
    contest: Contest,
    title: str,
    inputs: Sequence[Tensor],
    labels: Sequence[object],
    features: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the page to `--gates`, on the main rank only: of the first row of the inputs, which the
    model of the last side reads."""
    if not contest.ranks.main:
        return
    # A copy, since the model of nn.LSTM is to stay one.
    model = lstm_fused.convert(copy.deepcopy(contest.sides[-1].model))
    trace = lstm_fused.trace(model, *(tensor.to(contest.ranks.device) for tensor in inputs))
    path = contest.options.gates
    try:
        trace.save_html(path, labels, features=features, title=title)
    except OSError as error:
        raise ExampleError(f"--gates: cannot write {path}: {error.strerror}") from None
    contest.ranks.say(f"gates          {path}")
    contest.ranks.say(f"{trace.summary()}")
