# SPDX-License-Identifier: BSD-3-Clause
"""torch's default device and default dtype are for what a caller makes, and not for what we do."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.twins import D, H, make_twins, random_hx
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

import lstm_fused
from lstm_fused import FusedLSTMCell, packing, reference
from lstm_fused._ops import native

T, N = 6, 4
LENGTHS = torch.tensor([2, 6, 0, 5])


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
}


@pytest.fixture(params=DEFAULTS)
def elsewhere(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[Any]]:
    return DEFAULTS[request.param]


def assert_unmoved(elsewhere: Any, compute: Callable[[], Any]) -> None:
    """Asserts that bits, dtypes and devices are the same whatever the default is."""
    torch.manual_seed(1)
    expected = tree_leaves(compute())
    torch.manual_seed(1)
    with elsewhere():
        found = tree_leaves(compute())
    assert len(found) == len(expected) > 0
    for mine, bits in zip(found, expected, strict=True):
        if not isinstance(bits, Tensor):
            assert mine == bits
            continue
        assert (mine.device, mine.dtype) == (bits.device, bits.dtype)
        assert_bitwise_equal(mine, bits)


@pytest.fixture(params=["kernels", "padded_rows", "plain"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that take packed rows, kernels that do not (as CUDA's), and no kernels."""
    if request.param == "padded_rows":
        monkeypatch.setattr(native, "takes_batch_sizes", lambda device: False)
        monkeypatch.setattr(native, "saves_packed_rows", lambda device: False)
    elif request.param == "plain":
        monkeypatch.setattr(native, "has_kernels", lambda device: False)
        monkeypatch.setattr(native, "lstm_inference_op", None)


CALLS = ("plain", "states", "unbatched", "packed", "lengths", "resets", "recompute", "cell")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_results_and_gradients(elsewhere: Any, route: None, call: str, dtype: torch.dtype) -> None:
    is_deep = call not in ("plain", "cell")
    options: dict[str, Any] = {"bidirectional": True} if is_deep else {}
    module, _ = make_twins(dtype, num_layers=2 if is_deep else 1, dropout=0.5 * is_deep, **options)
    if call == "cell":
        module = FusedLSTMCell(D, H, dtype=dtype)  # type: ignore[assignment]
    module.recompute = call == "recompute"
    x: Any = torch.randn(T, N, D, dtype=dtype)
    hx = random_hx(module, N, dtype) if call in ("states", "packed") else None
    keywords: dict[str, Any] = {}
    if call == "unbatched":
        x = x[:, 0]
    elif call == "cell":
        x = x[0]
    elif call == "packed":
        x = pack_padded_sequence(x, torch.tensor([2, 6, 1, 5]), enforce_sorted=False)
    elif call == "lengths":
        keywords = {"lengths": LENGTHS, "return_cell_states": True}
    elif call == "resets":
        keywords = {"lengths": LENGTHS, "reset_mask": torch.rand(T, N) < 0.3}

    def compute() -> Any:
        with torch.no_grad():
            inferred = module(x, hx, **keywords)
        outputs = module(x, hx, **keywords)
        used = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
        loss = sum(t.float().square().sum() for t in used)
        return inferred, outputs, torch.autograd.grad(loss, list(module.parameters()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # dropout of one layer
        assert_unmoved(elsewhere, compute)


@pytest.mark.parametrize("route", ["kernels", "plain"], indirect=True)
@pytest.mark.parametrize("packed", [False, True])
def test_second_derivatives(elsewhere: Any, route: None, packed: bool) -> None:
    module, _ = make_twins(torch.float32, bidirectional=True)
    x = torch.randn(T, N, D, requires_grad=True)
    rows = pack_padded_sequence(x, torch.tensor([2, 6, 1, 5]), enforce_sorted=False)
    keywords: dict[str, Any] = {} if packed else {"lengths": LENGTHS}

    def compute() -> Any:
        y = module(rows if packed else x, **keywords)[0]
        (grad,) = torch.autograd.grad((y.data if packed else y).sum(), x, create_graph=True)
        weights = list(module.parameters())
        second = torch.autograd.grad(grad.square().sum(), weights, create_graph=True)
        return second, torch.autograd.grad(second[1].square().sum(), weights, allow_unused=True)

    assert_unmoved(elsewhere, lambda: [t for t in tree_leaves(compute()) if t is not None])


def test_transforms(elsewhere: Any) -> None:
    module, _ = make_twins(torch.float32)
    x = torch.randn(T, N, D)
    weights = {name: value.detach() for name, value in module.named_parameters()}

    def loss(weights: Any, row: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(module, weights, (row.unsqueeze(1),))[0]
        return y.square().sum()

    def compute() -> Any:
        samples = torch.func.vmap(torch.func.grad(loss), (None, 1))(weights, x)
        along = torch.func.jvp(lambda x: module(x)[0], (x,), (x,))
        return samples, along, torch.func.hessian(lambda row: loss(weights, row))(x[:2, 0])

    assert_unmoved(elsewhere, compute)


def test_compiled(elsewhere: Any) -> None:
    module, _ = make_twins(torch.float32, num_layers=2)
    x = torch.randn(T, N, D)

    def compute() -> Any:
        torch._dynamo.reset()
        y, states = torch.compile(module, backend="aot_eager", fullgraph=True)(x, lengths=LENGTHS)
        return y, states, torch.autograd.grad(y.sum(), list(module.parameters()))

    assert_unmoved(elsewhere, compute)


def test_reference(elsewhere: Any) -> None:
    module, _ = make_twins(torch.float32, num_layers=2, bidirectional=True)
    x, weights = torch.randn(T, N, D), [p.detach() for p in module.parameters()]
    per_layer = weights[:8]
    hx = (torch.randn(2, N, H), torch.randn(2, N, H))
    masks: dict[str, Any] = {"lengths": LENGTHS, "reset_mask": torch.rand(T, N) < 0.3}

    def compute() -> Any:
        stack = reference.lstm(x, None, weights, num_layers=2, bidirectional=True, **masks)
        grads = (torch.ones(T, N, 2 * H, device="cpu", dtype=x.dtype), None, None, None)
        return stack, reference.lstm_layer_backward(*grads, x, *hx, per_layer, **masks)

    assert_unmoved(elsewhere, compute)


def test_positions(elsewhere: Any) -> None:
    sizes = torch.tensor([4, 3, 1])
    assert_unmoved(elsewhere, lambda: packing.packed_positions(sizes, N))
    assert_unmoved(elsewhere, lambda: packing.packed_lengths(sizes, N))
    assert_unmoved(elsewhere, lambda: packing.saved_positions(LENGTHS, T))


def test_explain_and_convert(elsewhere: Any) -> None:
    module, theirs = make_twins(torch.float32, num_layers=2, proj_size=2)
    x = torch.randn(T, N, D)
    assert_unmoved(elsewhere, lambda: lstm_fused.explain(module, x))
    assert_unmoved(elsewhere, lambda: lstm_fused.convert(theirs)(x))
    assert_unmoved(elsewhere, lambda: module.to_torch()(x))


def test_from_onnx_keeps_the_device_of_the_weights(elsewhere: Any) -> None:
    onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
    numpy_helper: Any = onnx.numpy_helper
    shapes = {"W": (1, 4 * H, D), "R": (1, 4 * H, H), "B": (1, 8 * H)}
    given = {name: torch.randn(sizes) for name, sizes in shapes.items()}
    protos = [numpy_helper.from_array(value.numpy(), name) for name, value in given.items()]
    x = torch.randn(T, N, D)
    for direction in ("forward", "reverse"):
        node = onnx.helper.make_node(
            "LSTM", ["X", *shapes], ["Y"], hidden_size=H, direction=direction
        )
        for weights in (given, protos):

            def compute(node: Any = node, weights: Any = weights) -> Any:
                module = lstm_fused.from_onnx(node, weights)
                return list(module.parameters()), module(x), module(x, lengths=LENGTHS)

            assert_unmoved(elsewhere, compute)


def test_private_copy_keeps_the_device_of_the_weights(elsewhere: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("opacus", reason="opacus is not installed")
        from lstm_fused.opacus import DPFusedLSTM
    module, _ = make_twins(torch.float32, num_layers=2)
    x = torch.randn(T, N, D)
    rows = pack_padded_sequence(x, torch.tensor([2, 6, 1, 5]), enforce_sorted=False)

    def compute() -> Any:
        own = DPFusedLSTM.from_fused(module)
        return own(x, lengths=LENGTHS), own(rows)

    assert_unmoved(elsewhere, compute)
