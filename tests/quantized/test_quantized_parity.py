# SPDX-License-Identifier: BSD-3-Clause
"""QuantizedLSTM against the float64 reference of the weights that it holds; equal bits."""

from dataclasses import replace

import pytest
import torch
from kit.cases import CORE, WIDE, LayerCase, make_inputs
from kit.numeric import assert_bitwise_equal, make_module
from kit.quantized import WEIGHTS, assert_close, make_quantized, run_quantized
from kit.settings import ISAS, use_isa, use_threads

from lstm_fused import quantize

# More features than a block of exact sums holds, more rows than a register block, many steps.
LARGE = (
    LayerCase(60, 1, 5, 20),
    LayerCase(4, 40, 1200, 70, bidirectional=True),
    LayerCase(3, 20, 64, 520, lengths=(3, 1) * 10, poison=True),
    LayerCase(20, 9, 70, 96, P=48, num_layers=2, lengths=(20, 7, 0) * 3, reset=0.1, poison=True),
)
RAGGED = [case for case in CORE if case.lengths and min(case.lengths) > 0 and case.reset == 0]

weight_types = pytest.mark.parametrize("weights", WEIGHTS, ids=str)


@pytest.mark.parametrize("case", CORE + LARGE, ids=str)
@weight_types
def test_results(case: LayerCase, weights: torch.dtype, isa: str) -> None:
    inputs = make_inputs(case)
    module = make_quantized(inputs, weights)
    assert_close(module, inputs, run_quantized(module, inputs))


@pytest.mark.parametrize("case", [case for case in WIDE if case not in CORE], ids=str)
@weight_types
def test_results_of_every_pair_of_options(case: LayerCase, weights: torch.dtype) -> None:
    inputs = make_inputs(case)
    module = make_quantized(inputs, weights)
    assert_close(module, inputs, run_quantized(module, inputs))


@pytest.mark.parametrize("case", RAGGED, ids=str)
@weight_types
def test_packed_sequences(case: LayerCase, weights: torch.dtype) -> None:
    inputs = make_inputs(case)
    module = make_quantized(inputs, weights)
    assert_close(module, inputs, run_quantized(module, inputs, packed=True))


@pytest.mark.parametrize("case", CORE + LARGE, ids=str)
def test_int8_has_the_same_bits_with_every_instruction_set(case: LayerCase) -> None:
    inputs = make_inputs(case)
    module = make_quantized(inputs, torch.int8)
    with use_isa("baseline"):
        wanted = run_quantized(module, inputs)
    for isa in ISAS[1:]:
        with use_isa(isa):
            for name, result in run_quantized(module, inputs).items():
                assert_bitwise_equal(result, wanted[name])


@pytest.mark.parametrize("case", [*LARGE, LayerCase(100, 1, 128, 256)], ids=str)
@weight_types
def test_bits_do_not_depend_on_threads(case: LayerCase, weights: torch.dtype, isa: str) -> None:
    inputs = make_inputs(case)
    module = make_quantized(inputs, weights)
    wanted = run_quantized(module, inputs)
    for threads in (2, 3):
        with use_threads(threads):
            for name, result in run_quantized(module, inputs).items():
                assert_bitwise_equal(result, wanted[name])


@weight_types
def test_a_row_does_not_depend_on_the_others(weights: torch.dtype, isa: str) -> None:
    case = LayerCase(9, 14, 20, 50)
    inputs = make_inputs(case)
    module = make_quantized(inputs, weights)
    assert inputs.hx is not None
    y, (_, c_n) = module(inputs.input, inputs.hx)
    for first, last in ((0, 1), (3, 5), (7, 14)):
        rows = slice(first, last)
        states = (inputs.hx[0][:, rows], inputs.hx[1][:, rows])
        some_y, (_, some_c) = module(inputs.input[:, rows], states)
        assert_bitwise_equal(some_y, y[:, rows])
        assert_bitwise_equal(some_c, c_n[:, rows])


@weight_types
def test_small_and_large_activations(weights: torch.dtype, isa: str) -> None:
    """Rows are scaled one by one: those of 1e-20 or 1e20 leave the others as they are."""
    inputs = make_inputs(LayerCase(3, 4, 6, 20))
    module = make_quantized(inputs, weights)
    x = inputs.input.clone()
    wanted, _ = module(x[:, 3:])
    x[:, 0], x[:, 1], x[:, 2] = 1e-35, 1e30, 0.0
    y, (h_n, c_n) = module(x)
    assert_bitwise_equal(y[:, 3:], wanted)
    assert all(t.isfinite().all() for t in (y, h_n, c_n))
    zero, _ = module(torch.zeros(3, 1, 6))
    assert_bitwise_equal(y[:, 2:3], zero)


@weight_types
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(weights: torch.dtype, bad: float, isa: str) -> None:
    inputs = make_inputs(LayerCase(4, 3, 6, 20))
    module = make_quantized(inputs, weights)
    wanted, _ = module(inputs.input, inputs.hx)
    x = inputs.input.clone()
    x[1, 1, 2] = bad
    y, _ = module(x, inputs.hx)
    assert_bitwise_equal(y[:, [0, 2]], wanted[:, [0, 2]])
    assert_bitwise_equal(y[0], wanted[0])
    if bad != bad or weights == torch.int8:
        assert y[1:, 1].isnan().all()


@weight_types
def test_rows_of_zeros_and_of_one_large_weight(weights: torch.dtype, isa: str) -> None:
    case = LayerCase(5, 2, 9, 18)
    inputs = make_inputs(case)
    changed = {name: weight.clone() for name, weight in inputs.weights.items()}
    changed["weight_hh_l0"][::3] = 0
    changed["weight_ih_l0"][5] = 0
    changed["weight_ih_l0"][5, 4] = 30
    changed["weight_hh_l0"][7] = 1e-38
    inputs = replace(inputs, weights=changed)
    module = make_quantized(inputs, weights)
    kept = module.dequantize()
    assert not kept.weight_hh_l0[::3].any()
    assert kept.weight_ih_l0[5, 4] == 30
    assert_close(module, inputs, run_quantized(module, inputs))


def test_errors_are_half_of_torchs_int8() -> None:
    """The outputs' errors, on the same weights and inputs."""
    for hidden in (16, 64, 256):
        inputs = make_inputs(LayerCase(50, 2, 32, hidden))
        exact = make_module(inputs)
        torchs = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(make_module(inputs)), {torch.nn.LSTM}, dtype=torch.qint8
        )
        ours = quantize(make_module(inputs))
        with torch.no_grad():
            y, _ = exact(inputs.input)
            error = (ours(inputs.input)[0] - y).abs()
            other = (torchs(inputs.input)[0] - y).abs()
        assert error.max() <= other.max() / 2
        assert error.mean() <= other.mean() / 2
