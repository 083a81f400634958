# SPDX-License-Identifier: BSD-3-Clause
"""Per-sample gradients by Opacus: of DPFusedLSTM, against a loop over samples and DPLSTM."""

import warnings
from typing import Any

import pytest
import torch
from kit.twins import D, H, make_twins, random_hx
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    opacus: Any = pytest.importorskip("opacus", reason="opacus is not installed")

from lstm_fused.opacus import DPFusedLSTM

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:opacus", "ignore::FutureWarning")
ROWS, STEPS = 5, 6
LENGTHS = torch.tensor([6, 1, 4, 0, 3])


class Model(nn.Module):
    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Any, hx: Any = None, **masks: Any) -> Tensor:
        """A loss for each row, of all results."""
        y, (h_n, c_n) = self.lstm(x, hx, **masks)
        if not isinstance(y, Tensor):
            y = nn.utils.rnn.pad_packed_sequence(y, total_length=STEPS)[0]
        y = y if getattr(self.lstm, "batch_first", False) else y.transpose(0, 1)
        states = h_n.square().sum((0, 2)) + c_n.sin().sum((0, 2))
        return y.square().flatten(1).sum(1) + states  # type: ignore[no-any-return]


def grad_samples(model: Model, batch_first: bool, *arguments: Any, **masks: Any) -> Any:
    wrapped = opacus.GradSampleModule(model, batch_first=batch_first, loss_reduction="sum")
    wrapped(*arguments, **masks).sum().backward()
    # Modules that keep their parameters in parts give them nn.LSTM's names in a state_dict.
    names = {p.data_ptr(): name for name, p in model.state_dict().items() if "_l" in name}
    return {names[p.data_ptr()]: p.grad_sample for p in wrapped.parameters()}


OPTIONS = [
    ({}, False),
    ({"num_layers": 2, "bidirectional": True, "batch_first": True}, True),
    ({"num_layers": 2, "proj_size": 2, "bias": False}, True),
]


@pytest.mark.parametrize(("options", "extras"), OPTIONS, ids=str)
def test_gradients_of_each_sample_are_those_of_a_loop(
    options: dict[str, Any], extras: bool
) -> None:
    plain, _ = make_twins(**options)
    ours = DPFusedLSTM.from_fused(plain)
    assert list(ours.state_dict()) == list(plain.state_dict())
    first = plain.batch_first
    x = torch.randn(*((ROWS, STEPS) if first else (STEPS, ROWS)), D, dtype=torch.float64)
    hx, masks = None, {}
    if extras:
        hx = random_hx(plain, ROWS)
        masks = {"lengths": LENGTHS, "reset_mask": torch.rand(x.shape[:2]) < 0.3}
    samples = grad_samples(Model(ours), first, x, hx, **masks)
    expected = Model(plain)
    torch.testing.assert_close(Model(ours)(x, hx, **masks), expected(x, hx, **masks))
    for row in range(ROWS):
        losses = expected(x, hx, **masks)
        grads = torch.autograd.grad(losses[row], list(plain.parameters()))
        for (name, _), grad in zip(plain.named_parameters(), grads, strict=True):
            torch.testing.assert_close(samples[f"lstm.{name}"][row], grad)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_of_each_sample_are_dplstms(packed: bool, bidirectional: bool) -> None:
    from opacus.layers import DPLSTM

    theirs = DPLSTM(D, H, num_layers=2, bidirectional=bidirectional).double()
    ours = DPFusedLSTM(D, H, num_layers=2, bidirectional=bidirectional).double()
    ours.load_state_dict(theirs.state_dict())
    x: Any = torch.randn(STEPS, ROWS, D, dtype=torch.float64)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([6, 5, 4, 2, 1]), enforce_sorted=False)
    torch.testing.assert_close(Model(ours)(x), Model(theirs)(x))
    mine, expected = (grad_samples(Model(lstm), False, x) for lstm in (ours, theirs))
    for name, value in expected.items():
        torch.testing.assert_close(mine[name], value)


def test_privacy_engine_trains_it() -> None:
    torch.manual_seed(0)
    model = Model(DPFusedLSTM(D, H, num_layers=2, batch_first=True, dropout=0.1))
    data = torch.utils.data.TensorDataset(torch.randn(16, STEPS, D))
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    private, optimizer, loader = opacus.PrivacyEngine(secure_mode=False).make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    losses = []
    for _ in range(4):
        for (x,) in loader:
            optimizer.zero_grad()
            loss = private(x).mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
    assert losses[-1] < losses[0]
