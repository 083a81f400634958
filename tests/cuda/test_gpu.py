# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels on a real GPU: the cases of test_parity.py, graphs, and no host sync.

Skipped without a GPU; `make gpu` runs them, and there their absence is a failure.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kit.cases import CORE, WIDE, LayerCase, LayerInputs, make_inputs
from kit.gpu_cases import LARGE
from kit.numeric import assert_bitwise_equal, assert_within_budget, make_module
from kit.options import (
    CASES,
    OPTION_SETS,
    Case,
    OptionInputs,
    make_option_inputs,
    reference_layer,
    run_by_hand,
    run_options,
)
from kit.ours import assert_results, expected_of, in_dtype, run_ours
from kit.process import run_python
from kit.settings import DTYPES
from torch import Tensor

from lstm_fused import FusedLSTM, explain
from lstm_fused._ops import native

if os.environ.get("LSTM_FUSED_NEED_GPU") != "1":
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU", allow_module_level=True)
    if native.compiled_cuda is None:
        pytest.skip(f"needs the CUDA kernels: {native.cuda_problem}", allow_module_level=True)

RAGGED = [case for case in CORE if case.lengths and min(case.lengths) > 0 and case.reset == 0]
TWO_LAYERS = LayerCase(9, 5, 7, 40, num_layers=2, bidirectional=True)
WIDE_LAYER = LayerCase(9, 17, 16, 250, bidirectional=True)
# Cases of cells with options: one block, and groups of blocks with both units of their backward.
PERSISTENT_OPTIONS = (
    Case(5, 9, 8, 100, directions=2, lengths=(5, 0, 2, 5, 1, 5, 5, 3, 4), reset="state"),
    Case(
        6, 19, 8, 250, directions=2, lengths=(6, 0, 2, 6, 1, 6, 6, 3, 5, *[4] * 10), reset="state"
    ),
    Case(4, 7, 8, 700, reset="zero"),
)
OPTION_CASES = (*(case for case in CASES if case.batch_sizes is None), *PERSISTENT_OPTIONS)

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
core_cases = pytest.mark.parametrize("case", CORE, ids=str)
graph_cases = pytest.mark.parametrize("case", [TWO_LAYERS, WIDE_LAYER], ids=str)


@pytest.fixture(params=["stepwise", "persistent"], autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with and without persistent kernels."""
    modules = (native.compiled, native.compiled_cuda)  # of plans as text, and of the ops
    before = [module.set_cuda_variant(request.param) for module in modules if module]
    yield str(request.param)
    for module, name in zip(modules, before, strict=True):
        assert module is not None
        module.set_cuda_variant(name)


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def options_on_gpu(inputs: OptionInputs) -> OptionInputs:
    moved = torch.utils._pytree.tree_map_only(Tensor, Tensor.cuda, inputs)
    assert isinstance(moved, OptionInputs)
    return moved


def on_gpu(case: LayerCase) -> LayerInputs:
    return make_inputs(case, "cuda")


def assert_parity(case: LayerCase, *, packed: bool = False) -> None:
    """The rival is nn.LSTM on the CPU, whose sums are those of the dtype too."""
    expected = expected_of(case, cell_states=True)
    assert_results(case, run_ours(on_gpu(case), cell_states=True, packed=packed), expected)


@core_cases
@dtypes
def test_results_and_gradients(case: LayerCase, dtype: torch.dtype) -> None:
    assert_parity(in_dtype(case, dtype))


@pytest.mark.parametrize("case", [case for case in WIDE if case not in CORE], ids=str)
def test_results_and_gradients_of_every_pair_of_options(case: LayerCase) -> None:
    assert_parity(case)


@pytest.mark.parametrize("case", LARGE, ids=str)
@dtypes
def test_large_shapes(case: LayerCase, dtype: torch.dtype) -> None:
    assert_parity(in_dtype(case, dtype))


@pytest.mark.parametrize("case", RAGGED, ids=str)
@dtypes
def test_packed_sequences(case: LayerCase, dtype: torch.dtype) -> None:
    assert_parity(in_dtype(case, dtype), packed=True)


@pytest.mark.parametrize("case", OPTION_CASES, ids=str)
@pytest.mark.parametrize("names", OPTION_SETS)
@dtypes
def test_options_of_the_cell(case: Case, names: str, dtype: torch.dtype) -> None:
    inputs = make_option_inputs(case, OPTION_SETS[names], dtype)
    truth = run_by_hand(inputs.to(torch.float64))
    theirs = run_options(inputs, reference_layer)
    ours = run_options(options_on_gpu(inputs))
    # A value that a 16-bit type rounds to the other side of the clip has another gradient.
    rounds_clip = inputs.options.cell_clip > 0 and dtype.itemsize == 2
    for name, value in ours.items():
        if not (rounds_clip and name.startswith("grad_")):
            assert_within_budget(name, value, theirs[name], truth[name], dtype)


@pytest.mark.parametrize("case", [*CORE, *LARGE], ids=str)
def test_inference_gives_the_bits_of_training(case: LayerCase) -> None:
    inputs = on_gpu(case)
    module = make_module(inputs, FusedLSTM)
    arguments = {"lengths": inputs.lengths, "reset_mask": inputs.reset_mask}
    y, (h_n, c_n) = module(inputs.input, inputs.hx, **arguments)
    with torch.no_grad():
        y_2, (h_2, c_2) = module(inputs.input, inputs.hx, **arguments)
    for trained, inferred in ((y, y_2), (h_n, h_2), (c_n, c_2)):
        assert_bitwise_equal(inferred, trained)


@pytest.mark.parametrize("case", [*CORE[4:16], *LARGE], ids=str)
@dtypes
def test_runs_give_the_same_bits(case: LayerCase, dtype: torch.dtype) -> None:
    inputs = on_gpu(in_dtype(case, dtype))
    first = run_ours(inputs, cell_states=True)
    for _ in range(5):
        for name, result in run_ours(inputs, cell_states=True).items():
            assert_bitwise_equal(result, first[name])


@pytest.mark.parametrize("case", [TWO_LAYERS, WIDE_LAYER, *LARGE], ids=str)
def test_tf32_follows_torchs_setting(case: LayerCase) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    rounded = run_ours(on_gpu(case))
    for name, truth in expected_of(case).truth.items():
        error = (rounded[name].cpu().double() - truth).abs().max() / truth.abs().max()
        assert error < 1e-2, name


@pytest.mark.parametrize("case", PERSISTENT_OPTIONS, ids=str)
@dtypes
def test_runs_with_options_give_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    inputs = options_on_gpu(make_option_inputs(case, OPTION_SETS["masks"], dtype))
    first = run_options(inputs)
    for _ in range(5):
        for name, result in run_options(inputs).items():
            assert_bitwise_equal(result, first[name])


def make_step(case: LayerCase) -> tuple[Callable[[], list[Tensor]], LayerInputs]:
    """A training step on fixed leaves, and these."""
    inputs = on_gpu(case).requiring_grad()
    module = make_module(inputs, FusedLSTM)

    def step() -> list[Tensor]:
        y, (h_n, c_n) = module(
            inputs.input, inputs.hx, lengths=inputs.lengths, reset_mask=inputs.reset_mask
        )
        leaves = [inputs.input, *module.parameters()]
        grads = torch.autograd.grad(
            (y, h_n, c_n), leaves, [inputs.grads[name] for name in ("y", "h_n", "c_n")]
        )
        return [y, h_n, c_n, *grads]

    return step, inputs


@graph_cases
@dtypes
def test_captured_call_gives_the_bits_of_a_call(case: LayerCase, dtype: torch.dtype) -> None:
    step, inputs = make_step(in_dtype(case, dtype))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # allocate workspaces, as torch's documentation asks
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()

    # Replay on other numbers: what a capture kept of the first ones would show.
    for _ in range(2):
        with torch.no_grad():
            inputs.input.copy_(torch.randn_like(inputs.input))
        graph.replay()
        replayed = [tensor.clone() for tensor in captured]
        for ours, called in zip(replayed, step(), strict=True):
            assert_bitwise_equal(ours, called)


@pytest.mark.parametrize(
    "case", [TWO_LAYERS, WIDE_LAYER, LayerCase(6, 5, 3, 16, lengths=(3, 6, 1, 6, 2))], ids=str
)
@dtypes
def test_calls_do_not_wait_for_the_device(case: LayerCase, dtype: torch.dtype) -> None:
    step, _ = make_step(in_dtype(case, dtype))
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_calls_follow_the_current_stream() -> None:
    step, _ = make_step(WIDE_LAYER)
    expected = step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = step()
    stream.synchronize()
    for ours, called in zip(found, expected, strict=True):
        assert_bitwise_equal(ours, called)


FIRST_USE = """
import warnings
import torch
import lstm_fused

warnings.simplefilter("error", RuntimeWarning)
for name in ("float32", "bfloat16", "float16"):
    for hidden in (40, 90, 300):
        dtype = getattr(torch, name)
        module = lstm_fused.FusedLSTM(8, hidden, device="cuda", dtype=dtype)
        y, _ = module(torch.randn(5, 3, 8, device="cuda", dtype=dtype))
        y.sum().backward()
lstm_fused.check_cuda()
print("right")
"""


def test_kernels_pass_the_check_before_their_first_use() -> None:
    """In a new process, which warns of those that do not."""
    assert run_python(FIRST_USE, LSTM_FUSED_CUDA_VARIANT="persistent") == "right\n"


def test_the_check_command_finds_nothing() -> None:
    code = 'from lstm_fused.__main__ import main\nprint(main(["check", "--no-times"]))'
    assert "all is right\n0\n" in run_python(code, timeout=500)


def test_explain_names_the_variant(variant: str) -> None:
    module = FusedLSTM(8, 64, device="cuda", dtype=torch.bfloat16)
    text = explain(module, torch.zeros(3, 2, 8, device="cuda", dtype=torch.bfloat16))
    assert ("persistent" if variant == "persistent" else "stepwise, 1 GEMM") in text


def test_threads_do_not_disturb_each_other() -> None:
    """Group kernels of several sizes, each thread on a stream of its own."""
    steps = [make_step(LayerCase(20, 16, 8, hidden))[0] for hidden in (768, 256, 512)]
    expected = [step() for step in steps]
    torch.cuda.synchronize()

    def run(step: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [step() for _ in range(30)]
            torch.cuda.current_stream().synchronize()
        return results

    with ThreadPoolExecutor(len(steps)) as pool:
        for found, wanted in zip(pool.map(run, steps), expected, strict=True):
            for result in found:
                for ours, called in zip(result, wanted, strict=True):
                    assert_bitwise_equal(ours, called)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_calls_follow_the_tensors_device() -> None:
    module = FusedLSTM(5, 40)
    x = torch.randn(6, 3, 5)
    results = [module.to(device)(x.to(device))[0] for device in ("cuda:0", "cuda:1")]
    assert results[1].device == torch.device("cuda:1")
    torch.testing.assert_close(results[0].cpu(), results[1].cpu())
