# SPDX-License-Identifier: BSD-3-Clause
"""Traces of models that hold LSTMs."""

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from torch import Tensor, nn

import lstm_fused
from lstm_fused import FusedLSTM


class Reader(nn.Module):
    """Two LSTMs, of which one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.encoder = nn.ModuleDict({"lstm": nn.LSTM(4, 6, num_layers=2, dropout=0.5)})
        self.top = nn.LSTM(6, 6, bidirectional=True)

    def forward(self, tokens: Tensor, *, times: int = 2) -> Tensor:
        y, _ = self.encoder["lstm"](self.embedding(tokens))
        for _ in range(times):
            y, _ = self.top(y)
            y = y[..., :6] + y[..., 6:]
        return y


TOKENS = torch.arange(10).view(5, 2) % 7
NAMES = ["encoder.lstm.l0", "encoder.lstm.l1", "top.l0", "top.l0_reverse"]
LATER = ["top:2.l0", "top:2.l0_reverse"]


def test_a_converted_model() -> None:
    torch.manual_seed(0)
    plain = Reader().eval()
    with torch.no_grad():
        wanted = plain(TOKENS)
    model = lstm_fused.convert(plain)
    trace = lstm_fused.trace(model, TOKENS)
    assert list(trace) == [*NAMES, *LATER]
    torch.testing.assert_close(trace.output, wanted)
    both = trace["top:2.l0"].h + trace["top:2.l0_reverse"].h
    assert_bitwise_equal(both, trace.output)
    assert len(trace) == 6
    assert list(lstm_fused.trace(model, TOKENS, times=1)) == NAMES
    assert repr(trace).startswith("Trace(GateTrace('encoder.lstm.l0', c (5, 2, 6), h (5, 2, 6)), ")


def test_an_open_model_goes_through_every_call() -> None:
    torch.manual_seed(0)
    model = lstm_fused.convert(Reader().eval())
    through = {"top:2.l0.o": torch.zeros_like}
    trace = lstm_fused.trace(model, TOKENS, differentiable=True, through=through)
    assert trace["top.l0"].h.any() and not trace["top:2.l0"].h.any()
    tensors = [trace[name].f for name in trace if name != "top:2.l0"]
    grads = torch.autograd.grad(trace.output.square().sum(), tensors, retain_graph=True)
    assert all(grad.abs().sum() > 0 for grad in grads)
    trace.output.sum().backward()
    assert model.embedding.weight.grad is not None


def test_dropout_acts_in_training_as_in_the_model() -> None:
    torch.manual_seed(0)
    model = lstm_fused.convert(Reader().train())
    torch.manual_seed(1)
    wanted = model(TOKENS).detach()
    torch.manual_seed(1)
    assert_bitwise_equal(lstm_fused.trace(model, TOKENS).output, wanted)


def test_compiled_models_run_eagerly() -> None:
    torch.manual_seed(0)
    module, x = FusedLSTM(3, 5), torch.randn(4, 2, 3)
    wanted = lstm_fused.trace(module, x)
    whole = torch.compile(module, backend="eager", fullgraph=True)
    part = nn.Sequential(torch.compile(module, backend="eager"))
    assert_bitwise_equal(lstm_fused.trace(whole, x)["l0"].f, wanted["l0"].f)
    assert_bitwise_equal(lstm_fused.trace(part, x)["0.l0"].f, wanted["l0"].f)
    y = whole(x)[0]
    assert y.requires_grad
    torch.testing.assert_close(y, wanted.output[0])


def test_a_subclass_with_a_forward_of_its_own() -> None:
    class Scaled(FusedLSTM):
        def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
            y, _ = super().forward(2 * input)
            return y

    torch.manual_seed(0)
    module, x = Scaled(3, 5), torch.randn(4, 2, 3)
    trace = lstm_fused.trace(module, x)
    assert_bitwise_equal(trace["l0"].h, trace.output)


class First(nn.Module):
    """y of an LSTM."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0]
        return y


def test_a_module_in_two_places_has_one_name() -> None:
    module = FusedLSTM(4, 4)
    trace = lstm_fused.trace(nn.Sequential(First(module), First(module)), torch.randn(2, 1, 4))
    assert list(trace) == ["0.lstm.l0", "0.lstm:2.l0"]


@pytest.mark.parametrize("training", [False, True])
def test_the_calls_after_it_are_as_before(training: bool) -> None:
    torch.manual_seed(0)
    module, x = FusedLSTM(3, 5).train(training), torch.randn(4, 2, 3)
    before = module(x)[0]
    lstm_fused.trace(module, x)
    after = module(x)[0]
    assert_bitwise_equal(after.detach(), before.detach())
    assert type(after.grad_fn) is type(before.grad_fn)
