# SPDX-License-Identifier: BSD-3-Clause
"""Saturated gates: exact zeros, no denormal numbers in flight, and other programs' left alone."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from kit.cases import LayerCase, LayerInputs, make_inputs
from kit.numeric import assert_bitwise_equal, make_module, run_torch, run_truth
from kit.ours import Expected, assert_results, in_dtype, run_ours
from kit.settings import DTYPES, use_threads
from torch import Tensor

from lstm_fused import FusedLSTM

# Few steps and rows go through dot products, more of them through panels.
CASES = (
    LayerCase(3, 2, 5, 17),
    LayerCase(9, 20, 5, 33),
    LayerCase(7, 9, 6, 40, P=11, bidirectional=True, lengths=(7, 3, 1) * 3),
)
# Biases of the gates i, f, g and o; None: as drawn. All None: large inputs.
SATURATIONS: dict[str, tuple[float | None, ...]] = {
    "input-60": (-60, None, None, None),
    "input-88": (-88, None, None, None),
    "input-inf": (float("-inf"), None, None, None),
    "forget-95": (None, -95, None, None),
    "forget-inf": (None, float("-inf"), None, None),
    "cell+1e4": (None, None, 1e4, None),
    "output-86": (None, None, None, -86),
    "output-750": (None, None, None, -750),
    "closed": (-1e4, -1e4, -1e4, -1e4),
    "open": (1e4, 1e4, 1e4, float("inf")),
    "inputs": (None, None, None, None),
}

cases = pytest.mark.parametrize("case", CASES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
saturations = pytest.mark.parametrize("saturation", SATURATIONS)
# float16's own subnormal numbers are normal float32 ones: results have them.
wide_dtypes = pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float16], ids=str)


def saturate(inputs: LayerInputs, biases: tuple[float | None, ...]) -> LayerInputs:
    """Set the biases of the given gates, or enlarge the input."""
    if all(bias is None for bias in biases):
        return enlarge_input(inputs)
    weights = {}
    for name, weight in inputs.weights.items():
        weights[name] = weight.clone()
        if name.startswith("bias_ih"):
            for gate, bias in zip(weights[name].chunk(4), biases, strict=True):
                if bias is not None:
                    gate.fill_(bias)
    return replace(inputs, weights=weights)


def enlarge_input(inputs: LayerInputs) -> LayerInputs:
    """Scales the input to some thousands, with weights whose products with it are exact in any
    order: a gate that is open, at a sum of 0, is so for everyone."""
    weights = {}
    for name, weight in inputs.weights.items():
        if name.startswith("weight_ih"):
            weights[name] = (weight * 64).round() / 64
        else:
            weights[name] = weight if name.startswith("weight_hr") else torch.zeros_like(weight)
    return replace(inputs, input=(inputs.input * 2).round() * 2048, weights=weights)


@cache
def expected_of(case: LayerCase, saturation: str, c_0: float | None = None) -> Expected:
    inputs = saturate(make_inputs(case), SATURATIONS[saturation])
    if c_0 is not None:
        inputs = replace(inputs, c_0=torch.full_like(inputs.c_0, c_0))
    return Expected(inputs, run_torch(inputs), run_truth(inputs))


@cases
@dtypes
@saturations
def test_results_and_gradients(
    case: LayerCase, dtype: torch.dtype, saturation: str, isa: str
) -> None:
    case = in_dtype(case, dtype)
    expected = expected_of(case, saturation)
    assert_results(case, run_ours(expected.inputs), expected)


@cases
@wide_dtypes
@saturations
def test_nothing_is_denormal(
    case: LayerCase, dtype: torch.dtype, saturation: str, isa: str
) -> None:
    expected = expected_of(in_dtype(case, dtype), saturation)
    tiny = torch.finfo(dtype).tiny
    for name, result in run_ours(expected.inputs).items():
        denormal = (result != 0) & (result.abs() < tiny)
        assert not denormal.any(), f"{name}: {result[denormal][0].item()}"


@cases
@dtypes
@pytest.mark.parametrize("bias", [-800.0, -1e4, float("-inf")])
def test_closed_gates_are_exactly_zero(
    case: LayerCase, dtype: torch.dtype, bias: float, isa: str
) -> None:
    inputs = replace(saturate(make_inputs(in_dtype(case, dtype)), (bias,) * 4), h_0=None, c_0=None)
    for name, result in run_ours(inputs).items():
        assert not result.any(), name


@pytest.mark.parametrize("case", CASES[:2], ids=str)  # with a projection nn.LSTM gives NaN
@wide_dtypes
@pytest.mark.parametrize("saturation", ["forget-inf", "closed"])
def test_a_closed_forget_gate_forgets_a_huge_state(
    case: LayerCase, dtype: torch.dtype, saturation: str, isa: str
) -> None:
    case = in_dtype(case, dtype)
    # NOTE: so far from overflow that the truth has its gradients.
    expected = expected_of(case, saturation, c_0=1e307 if dtype == torch.float64 else 3e38)
    assert_results(case, run_ours(expected.inputs), expected)


@cases
@dtypes
def test_infinite_states_give_nan_where_they_do_in_torch(
    case: LayerCase, dtype: torch.dtype, isa: str
) -> None:
    """0 times infinity, that is: a closed forget gate, or a gradient that has died."""
    case = in_dtype(case, dtype)
    for saturation in ("input-inf", "forget-inf", "output-750"):
        expected = expected_of(case, saturation, c_0=float("inf"))
        assert_results(case, run_ours(expected.inputs), expected)


@pytest.mark.parametrize("steps", [2, 40])
def test_subnormal_numbers_of_float16_count(steps: int, isa: str) -> None:
    """float16 has numbers below 6e-5 that are normal ones in float32: as input and as state."""
    case = LayerCase(steps, 3, 2, 19, dtype=torch.float16)
    inputs = make_inputs(case)
    small = torch.full_like(inputs.input, 4e-5)
    weights = {name: w * 6e4 for name, w in inputs.weights.items() if w.dim() == 2}
    weights |= {name: w for name, w in inputs.weights.items() if w.dim() == 1}
    inputs = replace(inputs, input=small, h_0=torch.full_like(inputs.h_0, 4e-5), weights=weights)
    expected = Expected(inputs, run_torch(inputs), run_truth(inputs))
    assert_results(case, run_ours(inputs), expected)


@saturations
def test_bits_are_the_same_with_any_threads_and_with_rebuilt_gates(
    saturation: str, isa: str
) -> None:
    inputs = expected_of(LayerCase(20, 32, 40, 96), saturation).inputs
    first = run_ours(inputs)
    rebuilt = run_ours(inputs, recompute=True)
    with use_threads(2):
        second = run_ours(inputs)
    for name, result in first.items():
        assert_bitwise_equal(result, rebuilt[name])
        # Biases' gradients are sums whose order is the plan's.
        if name in ("y", "h_n", "c_n", "grad_input", "grad_weight_ih_l0", "grad_weight_hh_l0"):
            assert_bitwise_equal(result, second[name])


# ------------------------------------------------------------------- other programs' denormals


def denormal_bits() -> Tensor:
    """2**-140 as torch computes it, on this thread and on those of its pool."""
    return (torch.full((1 << 20,), 2.0**-120) * 2.0**-20).view(torch.int32).unique()


KEPT = [1 << 9]


@contextmanager
def flushing(on: bool) -> Iterator[None]:
    assert torch.set_flush_denormal(on)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_processor_is_left_as_it_was(threads: int) -> None:
    inputs = expected_of(CASES[1], "closed").inputs
    module = make_module(inputs, FusedLSTM)
    with use_threads(threads):
        assert denormal_bits().tolist() == KEPT
        run_ours(inputs)
        assert denormal_bits().tolist() == KEPT
        with pytest.raises(RuntimeError, match="input"):
            module(inputs.input[..., 1:], inputs.hx)
        assert denormal_bits().tolist() == KEPT
    with use_threads(1):
        for on in (True, False):
            with flushing(on):
                run_ours(inputs)
                assert denormal_bits().tolist() == ([0] if on else KEPT)


@pytest.mark.parametrize("on", [True, False])
def test_bits_do_not_depend_on_what_the_caller_does_with_denormals(on: bool, isa: str) -> None:
    inputs = expected_of(CASES[1], "input-88").inputs
    expected = run_ours(inputs)
    with flushing(on):
        results = run_ours(inputs)
    for name, result in results.items():
        assert_bitwise_equal(result, expected[name])


FIRST_CALLS = {
    "forward": "with torch.no_grad(): module(x)",
    "training": "module(x)[0].sum().backward()",
    "sample_gradients": """
def loss(parameters, x):
    return torch.func.functional_call(module, parameters, (x,))[0].sum()
parameters = {name: p.detach() for name, p in module.named_parameters()}
torch.func.vmap(torch.func.grad(loss), in_dims=(None, 2))(parameters, x.view(30, 8, 2, 64))
""",
}


@pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS)
def test_threads_that_the_first_call_starts_keep_denormals(call: str) -> None:
    """A new thread inherits the control register of the one that starts it."""
    script = f"""
import torch
from lstm_fused import FusedLSTM
torch.set_num_threads(3)
module, x = FusedLSTM(64, 128), torch.randn(30, 16, 64)
{call}
bits = (torch.full((1 << 20,), 2.0**-120) * 2.0**-20).view(torch.int32).unique()
assert bits.tolist() == {KEPT}, bits
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
