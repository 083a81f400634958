# SPDX-License-Identifier: BSD-3-Clause
"""Streams of modules: the module's own results, a step at a time."""

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal, assert_within_budget
from kit.settings import use_isa
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell, Stream
from lstm_fused._ops import native

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPTIONS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "three layers": {"num_layers": 3},
    "projection": {"num_layers": 2, "proj_size": 5},
    "no bias": {"bias": False},
}
T, D, H = 7, 5, 19
assert native.compiled is not None
ISAS = native.compiled.available_isas()


def make(dtype: torch.dtype = torch.float32, **options: Any) -> FusedLSTM:
    torch.manual_seed(0)
    return FusedLSTM(D, H, **options).to(dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_steps_are_those_of_the_module(name: str, dtype: torch.dtype, batch: int, isa: str) -> None:
    module = make(dtype, **OPTIONS[name])
    x = torch.randn(T, batch, D).to(dtype)
    theirs = module.to_torch()
    truth_module = copy.deepcopy(theirs).double()
    with use_isa(isa), torch.no_grad():
        stream = module.stream(batch)
        y = torch.stack([stream.step(row) for row in x])
        rival, (rival_h, rival_c) = theirs(x)
        truth, (truth_h, truth_c) = truth_module(x.double())
    assert_within_budget("y", y, rival, truth, dtype)
    h, c = stream.state
    assert_within_budget("h", h, rival_h, truth_h, dtype)
    assert_within_budget("c", c, rival_c, truth_c, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", OPTIONS)
def test_run_has_the_bits_of_steps(name: str, isa: str) -> None:
    module = make(**OPTIONS[name])
    x = torch.randn(T, 3, D)
    with use_isa(isa):
        steps, run, halves = module.stream(3), module.stream(3), module.stream(3)
    y = torch.stack([steps.step(row) for row in x])
    assert_bitwise_equal(run.run(x), y)
    assert_bitwise_equal(torch.cat([halves.run(x[:2]), halves.run(x[2:])]), y)
    for ours, wanted in zip(run.state, steps.state, strict=True):
        assert_bitwise_equal(ours, wanted)
    assert run.run(x[:0]).shape == (0, 3, y.shape[-1])


def test_a_cell_has_streams_too() -> None:
    torch.manual_seed(0)
    cell = FusedLSTMCell(D, H)
    stream = cell.stream(4)
    states: tuple[Tensor, Tensor] | None = None
    with torch.no_grad():
        for x in torch.randn(T, 4, D):
            states = cell(x, states)
            torch.testing.assert_close(stream.step(x), states[0])
    assert states is not None
    torch.testing.assert_close(stream.state[1][0], states[1])


@pytest.mark.parametrize("batch_first", [False, True])
def test_run_takes_the_modules_layout(batch_first: bool) -> None:
    module = make(batch_first=batch_first)
    x = torch.randn(2, T, D) if batch_first else torch.randn(T, 2, D)
    with torch.no_grad():
        torch.testing.assert_close(module.stream(2).run(x), module(x)[0])
        row = torch.randn(T, D)
        torch.testing.assert_close(module.stream().run(row), module(row)[0])


def test_one_row_may_be_left_out() -> None:
    stream, x = make().stream(), torch.randn(D)
    y = stream.clone().step(x)
    assert y.shape == (H,)
    assert_bitwise_equal(stream.step(x[None])[0], y)


def test_results_go_where_they_are_wanted() -> None:
    module = make()
    x, out = torch.randn(T, 2, D), torch.full((T, 2, H), float("nan"))
    stream, wanted = module.stream(2), module.stream(2).run(x)
    assert stream.step(x[0], out[0]).data_ptr() == out.data_ptr()
    assert stream.run(x[1:], out[1:]).data_ptr() == out[1].data_ptr()
    assert_bitwise_equal(out, wanted)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_reset_is_that_of_a_mask(name: str) -> None:
    module = make(**OPTIONS[name])
    x, mask = torch.randn(T, 6, D), torch.rand(T, 6) < 0.4
    stream = module.stream(6)
    rows = []
    for t in range(T):
        stream.reset(mask[t])
        rows.append(stream.step(x[t]))
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(rows), module(x, reset_mask=mask)[0])
    stream.reset()
    assert all(not state.any() for state in stream.state)


def test_state_is_read_and_written() -> None:
    module = make(num_layers=2, proj_size=4)
    x = torch.randn(T, 2, D)
    h, c = torch.randn(2, 2, 4), torch.randn(2, 2, H)
    for steps in (0, 1):  # whichever of its two buffers holds the state
        stream = module.stream(2)
        stream.run(x[:steps])
        stream.state = (h, c)
        for got, wanted in zip(stream.state, (h, c), strict=True):
            assert_bitwise_equal(got, wanted)
        with torch.no_grad():
            torch.testing.assert_close(stream.run(x), module(x, (h, c))[0])


def test_a_clone_goes_its_own_way() -> None:
    module = make()
    x = torch.randn(T, 1, D)
    stream = module.stream()
    stream.run(x[:3])
    for twin in (stream.clone(), copy.deepcopy(stream)):
        kept = stream.state
        wanted = twin.clone().run(x[3:])
        assert_bitwise_equal(twin.run(x[3:]), wanted)
        for ours, before in zip(stream.state, kept, strict=True):
            assert_bitwise_equal(ours, before)


def test_weights_are_a_snapshot() -> None:
    module = make()
    x = torch.randn(2, 1, D)
    stream, other = module.stream(), module.stream()
    first = stream.step(x[0])
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
        module.bias_ih_l0.add_(1)
    assert_bitwise_equal(other.step(x[0]), first)
    other.refresh()
    with torch.no_grad():
        wanted = module(x[1:], stream.state)[0][0]
    torch.testing.assert_close(other.step(x[1]), wanted)
    assert not torch.equal(stream.step(x[1]), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_refresh_keeps_every_bit_of_the_state(dtype: torch.dtype) -> None:
    """Bits of c too, which 16-bit streams keep in float32, and `state` rounds."""
    stream = make(dtype, num_layers=2).stream(2)
    x = torch.randn(9, 2, D).to(dtype)
    stream.run(x[:4])
    twin = stream.clone()
    stream.refresh()
    assert_bitwise_equal(stream.run(x[4:]), twin.run(x[4:]))
    with use_isa("baseline"):  # whose kernels may hold h in another type
        stream.refresh()
    for ours, wanted in zip(stream.state, twin.state, strict=True):
        assert_bitwise_equal(ours, wanted)


def test_parametrized_weights_are_read() -> None:
    module = weight_norm(make(), "weight_hh_l0")
    x = torch.randn(T, 1, D)
    with torch.no_grad():
        torch.testing.assert_close(module.stream().run(x), module(x)[0])


def test_inputs_may_lie_anyhow() -> None:
    module = make()
    x = torch.randn(T, 2, D)
    wanted = module.stream(2).run(x)
    for form in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.cat([x, x], 2)[..., :D],
        nn.Parameter(x).detach(),
    ):
        assert_bitwise_equal(module.stream(2).run(form), wanted)
        assert_bitwise_equal(module.stream(2).step(form[0]), wanted[0])
    negated = torch.view_as_complex(torch.stack([x, -x], -1)).conj().imag
    assert negated.is_neg()
    assert_bitwise_equal(module.stream(2).run(negated), wanted)
    assert_bitwise_equal(module.stream(2).step(negated[0]), wanted[0])


def test_saturated_and_special_inputs() -> None:
    module = make()
    x = torch.randn(4, 3, D)
    x[0, 0, 0], x[1, 1, 1], x[2, 2] = float("inf"), float("nan"), 1e30
    with torch.no_grad():
        torch.testing.assert_close(module.stream(3).run(x), module(x)[0], equal_nan=True)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda s: s.step([1.0]), TypeError, "x must be a tensor, got list"),
        (lambda s: s.step(torch.zeros(2, D).double()), TypeError, "x must be torch.float32"),
        (lambda s: s.step(torch.zeros(3, D)), ValueError, r"shape \(2, 5\), got \(3, 5\)"),
        (lambda s: s.step(torch.zeros(D)), ValueError, r"shape \(2, 5\), got \(5,\)"),
        (lambda s: s.step(torch.zeros(2, D, device="meta")), ValueError, "on the CPU, got meta"),
        (lambda s: s.step(torch.zeros(2, D, requires_grad=True)), RuntimeError, "no gradients"),
        (lambda s: s.step(torch.zeros(2, D), torch.zeros(2, D)), ValueError, r"\(2, 19\)"),
        (lambda s: s.step(torch.zeros(2, D), torch.zeros(2, 2 * H)[:, ::2]), ValueError, "contig"),
        (lambda s: s.step(torch.zeros(2, D), torch.zeros(2, H).half()), TypeError, "out must be"),
        (lambda s: s.run(torch.zeros(T, 3, D)), ValueError, r"\(7, 2, 5\), got \(7, 3, 5\)"),
        (lambda s: s.run(torch.zeros(D)), ValueError, "2 or 3 dimensions, got 1"),
        (lambda s: s.reset(torch.zeros(2)), TypeError, "mask must be bool"),
        (lambda s: s.reset(torch.zeros(3, dtype=torch.bool)), ValueError, r"shape \(2,\)"),
        (lambda s: setattr(s, "state", torch.zeros(1)), TypeError, "tuple of two tensors"),
        (
            lambda s: setattr(s, "state", (torch.zeros(1, 2, H), torch.zeros(1, 2, D))),
            ValueError,
            r"c must have shape \(1, 2, 19\), got \(1, 2, 5\)",
        ),
        (lambda s: pickle.dumps(s), TypeError, "cannot be pickled"),
    ],
)
def test_faults_are_told_and_nothing_is_lost(call: Any, error: type, text: str) -> None:
    stream = make().stream(2)
    stream.run(torch.randn(3, 2, D))
    before = stream.state
    with pytest.raises(error, match=text):
        call(stream)
    for ours, wanted in zip(stream.state, before, strict=True):
        assert_bitwise_equal(ours, wanted)


def test_overlapping_memory_is_refused() -> None:
    stream = FusedLSTM(H, H).stream(2)
    memory = torch.zeros(3, H)
    with pytest.raises(ValueError, match="overlap"):
        stream.step(memory[:2], memory[1:])
    stream.step(memory[:2], torch.empty(2, H))


@pytest.mark.parametrize(
    ("make_stream", "error", "text"),
    [
        (lambda: make(bidirectional=True).stream(), ValueError, "bidirectional"),
        (lambda: make().stream(0), ValueError, "at least 1, got 0"),
        (lambda: make().stream(True), TypeError, "an int, got bool"),
        (lambda: make().stream(2.0), TypeError, "an int, got float"),
        (lambda: make().to("meta").stream(), ValueError, "weights on meta"),
        (lambda: make().stream(1 << 60), RuntimeError, "."),
    ],
)
def test_streams_that_cannot_be_are_refused(make_stream: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        make_stream()


def test_mixed_and_misshapen_weights_are_refused() -> None:
    module = make()
    module.bias_ih_l0.data = module.bias_ih_l0.data.double()
    with pytest.raises(TypeError, match="one dtype"):
        module.stream()
    module = make()
    stream = module.stream()
    module.bias_ih_l0.data = torch.zeros(4 * H + 4)
    with pytest.raises(ValueError, match="b_ih must have shape"):
        stream.refresh()
    module.bias_ih_l0.data = torch.zeros(4 * H)
    stream.refresh()
    module.double()
    with pytest.raises(ValueError, match=r"module of torch\.float32, got torch\.float64"):
        stream.refresh()
    stream.step(torch.zeros(1, D))


def test_tensors_without_memory_are_refused() -> None:
    """They read as any other: torch's zero tensors, and those whose storage was freed."""
    stream = make().stream(2)
    freed, x = torch.zeros(2, D), torch.randn(2, D)
    freed.untyped_storage().resize_(0)
    before = stream.state
    h, c = before
    for call in (
        lambda: stream.step(freed),
        lambda: stream.step(torch._efficientzerotensor((2, D))),
        lambda: stream.step(x, torch._efficientzerotensor((2, H))),
        lambda: stream.run(torch._efficientzerotensor((3, 2, D))),
        lambda: setattr(stream, "state", (h, torch._efficientzerotensor(c.shape))),
    ):
        with pytest.raises(RuntimeError, match="tensors that have memory"):
            call()
        for ours, wanted in zip(stream.state, before, strict=True):
            assert_bitwise_equal(ours, wanted)
    assert stream.run(torch.zeros(0, 2, D)).shape == (0, 2, H)


def test_results_are_on_the_cpu_whatever_the_default_device() -> None:
    stream, twin = make().stream(2), make().stream(2)
    x = torch.randn(3, 2, D)
    with torch.device("meta"):
        y, last, state = stream.run(x), stream.step(x[0]), stream.state
    assert_bitwise_equal(y, twin.run(x))
    assert_bitwise_equal(last, twin.step(x[0]))
    assert_bitwise_equal(state[1], twin.state[1])


def test_a_learned_state_is_where_a_stream_begins() -> None:
    module = make(learned_state=True)
    x = torch.randn(4, 2, D)
    with torch.no_grad():
        module.initial_h.normal_()
        module.initial_c.normal_()
        wanted = module(x)[0]
    torch.testing.assert_close(module.stream(2).run(x), wanted)


def test_a_stream_in_use_is_refused_to_other_threads() -> None:
    stream = FusedLSTM(64, 256).stream()
    x = torch.randn(4000, 64)
    started, errors = threading.Event(), []

    def work() -> None:
        started.set()
        stream.run(x)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    while thread.is_alive():
        try:
            stream.step(x[:1])
        except RuntimeError as error:
            errors.append(str(error))
            break
    thread.join()
    assert errors and "one thread at a time" in errors[0]
    stream.step(x[:1])


def test_clones_run_at_once() -> None:
    module = FusedLSTM(8, 64)
    x = torch.randn(2000, 1, 8)
    stream = module.stream()
    wanted = stream.clone().run(x)
    results: dict[int, Tensor] = {}

    def work(i: int, own: Stream) -> None:
        results[i] = own.run(x)

    threads = [threading.Thread(target=work, args=(i, stream.clone())) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results.values():
        assert_bitwise_equal(result, wanted)
    assert len(results) == 4


def test_compiled_code_calls_a_stream_as_it_is() -> None:
    stream, twin = make().stream(2), make().stream(2)

    def policy(x: Tensor) -> Tensor:
        return torch.tanh(stream.step(x * 2)) + 1

    x = torch.randn(2, D)
    with torch.no_grad():
        compiled = torch.compile(policy, backend="eager")
        torch.testing.assert_close(compiled(x), torch.tanh(twin.step(x * 2)) + 1)
        torch.testing.assert_close(compiled(x), torch.tanh(twin.step(x * 2)) + 1)


def test_repr_names_the_sizes() -> None:
    assert repr(make(num_layers=2).stream(3)) == (
        "Stream(batch_size=3, input_size=5, output_size=19, layers=2, dtype=torch.float32)"
    )


def test_a_patch_of_nn_lstm_is_no_matter() -> None:
    assert isinstance(lstm_fused.convert(nn.LSTM(D, H)).stream(), Stream)
