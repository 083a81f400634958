# SPDX-License-Identifier: BSD-3-Clause
"""The page that `Trace.save_html` writes: one file, with its style, program and data inside."""

from __future__ import annotations

import base64
import html
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lstm_fused._torch.tensor_bytes import tensor_bytes
from lstm_fused._trace.layer import States
from lstm_fused._trace.result import GateTrace
from lstm_fused._trace.statistics import correlations, periodicity
from lstm_fused._trace.summary import GATE_NAMES, summarize
from lstm_fused._trace.text import text_features

_LEVELS = 255  # the largest number that a byte holds
_OPEN, _CLOSED = 0.9, 0.1


def write_page(
    path: str | os.PathLike[str],
    traces: Sequence[GateTrace],
    labels: Sequence[object] | None,
    row: int,
    features: Mapping[str, Sequence[float] | Tensor] | None,
    title: str,
) -> None:
    """Writes the page of one row of these traces; arguments and errors are `Trace.save_html`'s."""
    if not traces:
        raise ValueError("save_html needs one name at least, got none")
    states = [trace.row(row) for trace in traces]
    steps = _common_length(traces, states)
    _check_finite(traces, states)
    shown = _check_labels(labels, steps)
    is_text = labels is not None and all(len(label) == 1 for label in shown)
    followed = _check_features(features, steps)
    if is_text:
        followed = {
            name: torch.tensor(values, dtype=torch.float64)
            for name, values in text_features(shown).items()
            if min(values) < max(values)
        } | followed
    blocks: list[str] = []
    content = {
        "title": title,
        "steps": steps,
        "isText": is_text,
        "labels": "".join(shown) if is_text else shown,
        "features": [
            {"name": name} | _quantised(values.unsqueeze(1), None, blocks)
            for name, values in followed.items()
        ],
        "layers": [
            _layer_content(trace.name, own, followed, blocks)
            for trace, own in zip(traces, states, strict=True)
        ],
    }
    Path(path).write_text(_page(title, content, blocks), encoding="utf-8")


def _common_length(traces: Sequence[GateTrace], states: Sequence[States]) -> int:
    lengths = {trace.name: len(own.c) for trace, own in zip(traces, states, strict=True)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(
            f"a page shows one sequence, got traces of several lengths ({told}): choose by names"
        )
    steps = next(iter(lengths.values()))
    if steps == 0:
        raise ValueError("a page shows at least one step, got a row of length 0")
    return steps


def _check_finite(traces: Sequence[GateTrace], states: Sequence[States]) -> None:
    for trace, own in zip(traces, states, strict=True):
        is_bad = torch.stack([~values.isfinite().all(dim=1) for values in own]).any(dim=0)
        if is_bad.any():
            raise ValueError(
                f"a page shows finite values, got NaN or infinity in {trace.name}, at step "
                f"{int(is_bad.nonzero()[0])} first"
            )


def _check_labels(labels: Sequence[object] | None, steps: int) -> list[str]:
    if labels is None:
        return [str(step) for step in range(steps)]
    if len(labels) != steps:
        raise ValueError(f"labels must be one for each of {steps} steps, got {len(labels)}")
    return [str(label) for label in labels]


def _check_features(
    features: Mapping[str, Sequence[float] | Tensor] | None, steps: int
) -> dict[str, Tensor]:
    if features is None:
        return {}
    if not isinstance(features, Mapping):
        raise TypeError(f"features must map names to numbers, got {type(features).__name__}")
    checked = {}
    for name, numbers in features.items():
        try:
            values = torch.as_tensor(numbers, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"features[{name!r}] must hold numbers: {error}") from None
        if values.shape != (steps,):
            raise ValueError(
                f"features[{name!r}] must have shape ({steps},), got {tuple(values.shape)}"
            )
        if not values.isfinite().all():
            raise ValueError(f"features[{name!r}] must be finite, got NaN or infinity")
        checked[str(name)] = values
    return checked


def _layer_content(
    name: str, states: States, features: Mapping[str, Tensor], blocks: list[str]
) -> dict[str, Any]:
    summary = summarize(states, _OPEN, _CLOSED)
    followed = torch.stack(list(features.values())) if features else torch.empty(0, len(states.c))
    tensors = {}
    for tensor, given in zip(States._fields, states, strict=True):
        values = given.float().cpu()
        strength, period = periodicity(values)
        tensors[tensor] = _quantised(values, tensor, blocks) | {
            "strength": _numbers(strength),
            "period": period.tolist(),
            "correlations": [_numbers(r) for r in correlations(values, followed)],
        }
    return {
        "name": name,
        "tensors": tensors,
        "open": {gate: _numbers(summary.open[gate]) for gate in GATE_NAMES},
        "closed": {gate: _numbers(summary.closed[gate]) for gate in GATE_NAMES},
        "halfLife": _numbers(summary.half_life),
        "dead": summary.dead.tolist(),
    }


def _quantised(values: Tensor, tensor: str | None, blocks: list[str]) -> dict[str, Any]:
    """Values (T, H) as bytes, unit by unit, in a block of their own; and the range of each unit.

    Gates have the range of σ, the candidate that of tanh, so that units compare; others have their
    own, symmetrical where they are states, so that zero is the middle.
    """
    values = values.double().t()
    if tensor is None:
        low, high = values.amin(dim=1), values.amax(dim=1)
    elif tensor in GATE_NAMES:
        low, high = torch.zeros(len(values)), torch.ones(len(values))
    else:
        high = torch.ones(len(values)) if tensor == "g" else values.abs().amax(dim=1)
        low = -high
    span = (high - low).clamp_min(1e-12)
    shares = (values - low.unsqueeze(1)) / span.unsqueeze(1)
    levels = (shares * _LEVELS).round().clamp(0, _LEVELS).to(torch.uint8)
    packed = zlib.compress(tensor_bytes(levels), 6)
    blocks.append(base64.b64encode(packed).decode("ascii"))
    quantised = {"block": len(blocks) - 1, "low": _numbers(low), "high": _numbers(high)}
    if tensor in ("g", "c", "h"):
        # Where colours are full: a few outliers would leave all others pale.
        quantised["full"] = _numbers(_often_reached(values.abs()))
    return quantised


def _often_reached(values: Tensor) -> Tensor:
    """The value of each row (H, T) that one in a hundred exceeds."""
    rank = max(1, round(0.99 * values.shape[1]))
    return values.kthvalue(rank, dim=1).values


def _numbers(values: Tensor) -> list[float | None]:
    """Four digits of each, which JSON holds; infinity, which it does not, is None."""
    return [float(f"{v:.4g}") if abs(v) != float("inf") else None for v in values.tolist()]


def _page(title: str, content: Mapping[str, Any], blocks: Sequence[str]) -> str:
    folder = files("lstm_fused._trace") / "page"

    def part(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    # NOTE: "<" written so that no label can end the script that holds it.
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    scripts = "\n".join(
        f'<script type="text/plain" id="block-{index}">{block}</script>'
        for index, block in enumerate(blocks)
    )
    parts = {
        "title": html.escape(title),
        "style": part("page.css"),
        "data": f'<script type="application/json" id="data">{data}</script>\n{scripts}',
        "program": "\n".join(part(name) for name in ("data.js", "views.js", "main.js")),
    }
    template = part("page.html")
    # NOTE: cut before it is filled, so that what a part holds is not taken for a place.
    pieces = [piece.partition("}}") for piece in template.split("{{")]
    return pieces[0][0] + "".join(parts[name] + rest for name, _, rest in pieces[1:])
