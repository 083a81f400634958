# SPDX-License-Identifier: BSD-3-Clause
"""backend="cudnn": torch's own kernels, on request."""

import copy
import pickle
from typing import Any

import pytest
import torch
from kit.twins import D, H, random_hx
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import lstm_fused
from lstm_fused import FusedLSTM

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True, "bias": False},
        {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    ],
    ids=str,
)
def test_results_are_torchs_bit_for_bit(options: dict[str, Any]) -> None:
    ours = FusedLSTM(D, H, dropout=0.0, **options, backend="cudnn")
    theirs = ours.to_torch()
    x = torch.randn(4, 4, D)
    packed = pack_padded_sequence(x, torch.tensor([4, 2, 3, 1]), enforce_sorted=False)
    hx = random_hx(theirs, 4, torch.float32)
    for arguments in ((x,), (x, hx), (x[0],), (packed,), (packed, hx)):
        for mine, rival in zip(
            torch.utils._pytree.tree_leaves(ours(*arguments)),
            torch.utils._pytree.tree_leaves(theirs(*arguments)),
            strict=True,
        ):
            assert mine is rival or torch.equal(mine, rival)


def test_what_torch_lacks_is_refused() -> None:
    module = FusedLSTM(D, H, backend="cudnn")
    x = torch.randn(4, 2, D)
    for name, value in (
        ("lengths", torch.tensor([4, 1])),
        ("reset_mask", torch.zeros(4, 2, dtype=torch.bool)),
        ("return_cell_states", True),
    ):
        with pytest.raises(ValueError, match=f'{name} needs backend="auto", got'):
            module(x, **{name: value})
    with pytest.raises(ValueError, match=r"backend must be .* got 'fast'"):
        FusedLSTM(D, H, backend="fast")


def test_backend_is_a_setting_of_the_module() -> None:
    module = FusedLSTM(D, H, backend="cudnn")
    assert repr(module) == f"FusedLSTM({D}, {H}, backend='cudnn')"
    assert repr(FusedLSTM(D, H)) == f"FusedLSTM({D}, {H})"
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied.backend == "cudnn"
    assert "backend" not in vars(module.to_torch())
    assert lstm_fused.convert(nn.LSTM(D, H)).backend == "auto"
    assert "torch's own kernels" in lstm_fused.explain(module, torch.randn(4, 2, D))
