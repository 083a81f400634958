# SPDX-License-Identifier: BSD-3-Clause
"""docs/cell_options.md: its program for haste's weights computes haste's formulas, and its tables
have every option and parameter."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from lstm_fused import FusedLSTM
from lstm_fused._cell_options import CellOptions

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cell_options.md").read_text("utf-8")
T, N, D, H = 7, 3, 4, 6


def from_haste(state: dict[str, Tensor], **options: Any) -> FusedLSTM:
    (program,) = re.findall(
        r"^```python\n(import torch\n.*?def from_haste.*?)^```", PAGE, re.M | re.S
    )
    names: dict[str, Any] = {}
    exec(program, names)
    module: FusedLSTM = names["from_haste"](state, **options)
    return module


def haste_lstm(
    x: Tensor, h: Tensor, c: Tensor, state: dict[str, Tensor], zoneout: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What haste's layers compute in inference; gates are in the order i, g, f, o."""
    gamma, ys = state.get("gamma"), []
    for x_t in x:
        from_x, from_h, shown = x_t @ state["kernel"], h @ state["recurrent_kernel"], None
        if gamma is not None:
            from_x = gamma[0] * layer_norm(from_x, (4 * H,))
            from_h = gamma[1] * layer_norm(from_h, (4 * H,))
        i, g, f, o = (from_x + from_h + state["bias"]).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        shown = c
        if gamma is not None:
            shown = layer_norm(c, (H,), state["gamma_h"], state["beta_h"])
        h = zoneout * h + (1 - zoneout) * (o.sigmoid() * shown.tanh())
        ys.append(h)
    return torch.stack(ys), h, c


@pytest.mark.parametrize("zoneout", [0.0, 0.3])
@pytest.mark.parametrize("normalised", [False, True])
def test_weights_of_haste(normalised: bool, zoneout: float) -> None:
    torch.manual_seed(8)
    sizes = {"kernel": (D, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": (4 * H,)}
    if normalised:
        sizes |= {"gamma": (2, 4 * H), "gamma_h": (H,), "beta_h": (H,)}
    state = {name: torch.randn(size).double() for name, size in sizes.items()}
    x, h_0, c_0 = torch.randn(T, N, D).double(), *torch.randn(2, N, H).double()
    lstm = from_haste(state, zoneout=(0.0, zoneout), dtype=torch.float64).eval()
    assert lstm.layer_norm is normalised
    with torch.no_grad():
        y, (h_n, c_n) = lstm(x, (h_0[None], c_0[None]))
    expected = haste_lstm(x, h_0, c_0, state, zoneout)
    for ours, theirs in zip((y, h_n[0], c_n[0]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_tables_have_every_option_and_parameter() -> None:
    for name in CellOptions._fields:
        assert re.search(rf"^\| `{name}=[^`]+` \|", PAGE, re.M), name
    lstm = FusedLSTM(D, H, peephole=True, layer_norm=True)
    plain = {name for name, _ in FusedLSTM(D, H).named_parameters()}
    for name, parameter in lstm.named_parameters():
        if name in plain:
            continue
        found = re.search(rf"^\| .*\| `{name}` \| \((.*?)\) \|", PAGE, re.M)
        assert found, name
        shape = [
            int(size.strip("H") or 1) * (H if "H" in size else 1) for size in found[1].split(", ")
        ]
        assert shape == list(parameter.shape), name
