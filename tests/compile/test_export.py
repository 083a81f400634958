# SPDX-License-Identifier: BSD-3-Clause
"""torch.export, saved and loaded elsewhere; AOTInductor, from Python and from C++."""

import importlib.util
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.twins import D, H, make_twins
from torch import Tensor, nn

from lstm_fused import FusedLSTM, FusedLSTMCell, functional

EXAMPLE = Path(__file__).parents[2] / "examples" / "aoti_cpp"
T, N = torch.export.Dim("T", min=1, max=99), torch.export.Dim("N", min=1, max=99)


def lstm_nodes(program: Any) -> list[Any]:
    return [node for node in program.graph.nodes if "lstm_fused" in str(node.target)]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("no_grad", [False, True])
def test_one_node_for_each_layer_and_nothing_saved(strict: bool, no_grad: bool) -> None:
    module, _ = make_twins(num_layers=3, bidirectional=True, proj_size=2)
    x = torch.randn(5, 4, D, dtype=torch.float64)
    shapes = ({0: T, 1: N},)
    with torch.set_grad_enabled(not no_grad):
        program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=strict)
    for form in (program, program.run_decompositions()):
        nodes = lstm_nodes(form)
        assert [str(node.target) for node in nodes] == ["lstm_fused.lstm_forward.default"] * 3
        assert not any(node.args[7] for node in nodes), "an exported program has no backward"
    for sizes in ((5, 4), (1, 1), (17, 3)):
        x = torch.randn(*sizes, D, dtype=torch.float64)
        assert_bitwise_equal(program.module()(x)[0], module(x)[0])


@pytest.mark.parametrize("strict", [False, True])
def test_options_of_the_cell_are_one_node_and_nothing_saved(strict: bool) -> None:
    options = {"peephole": True, "coupled_gates": True, "cell_clip": 1.0, "layer_norm": True}
    module = FusedLSTM(D, H, 2, zoneout=0.2, recurrent_dropout=0.2, **options).double().eval()
    x = torch.randn(5, 4, D, dtype=torch.float64)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: T, 1: N},), strict=strict)
    op = torch.ops.lstm_fused.lstm_options_forward.default
    saves = [argument.name for argument in op._schema.arguments].index("save_for_backward")
    for form in (program, program.run_decompositions()):
        nodes = lstm_nodes(form)
        assert [node.target for node in nodes] == [op] * 2
        assert not any(node.args[saves] for node in nodes), "an exported program has no backward"
    for sizes in ((5, 4), (1, 1), (17, 3)):
        x = torch.randn(*sizes, D, dtype=torch.float64)
        assert_bitwise_equal(program.module()(x)[0], module(x)[0])


@pytest.mark.parametrize("strict", [False, True])
def test_cell_exports_for_any_batch(strict: bool) -> None:
    cell = FusedLSTMCell(D, H)
    x = torch.randn(4, D)
    program = torch.export.export(cell, (x,), dynamic_shapes=({0: N},), strict=strict)
    assert len(lstm_nodes(program)) == 1
    x = torch.randn(7, D)
    assert_bitwise_equal(program.module()(x)[0], cell(x)[0])


def test_saved_program_loads_where_only_lstm_fused_is_imported(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = FusedLSTM(D, H, num_layers=2)

        def forward(self, x: Tensor, lengths: Tensor, reset_mask: Tensor) -> Any:
            return self.lstm(x, lengths=lengths, reset_mask=reset_mask, return_cell_states=True)

    model = Model().eval()

    def inputs(steps: int, rows: int) -> tuple[Tensor, ...]:
        mask = torch.rand(steps, rows) < 0.3
        return torch.randn(steps, rows, D), torch.arange(rows) % (steps + 1), mask

    shapes = ({0: T, 1: N}, {0: N}, {0: T, 1: N})
    program = torch.export.export(model, inputs(5, 4), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    given = inputs(9, 6)
    y, (h_n, c_n), cells = model(*given)
    torch.save((given, (y, h_n, c_n, cells)), tmp_path / "data.pt")
    script = """
import sys
import torch
import lstm_fused
program = torch.export.load(sys.argv[1] + "/model.pt2")
given, expected = torch.load(sys.argv[1] + "/data.pt")
y, (h_n, c_n), cells = program.module()(*given)
assert all(torch.equal(*pair) for pair in zip((y, h_n, c_n, cells), expected, strict=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_program_in_memory_keeps_its_weights() -> None:
    module, _ = make_twins()
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (torch.randn(3, 2, D).double(),)), file)
    file.seek(0)
    loaded = torch.export.load(file)
    for name, weight in module.state_dict().items():
        assert_bitwise_equal(loaded.state_dict[name], weight)


def sine(*sizes: int) -> Tensor:
    return torch.arange(torch.Size(sizes).numel(), dtype=torch.float32).sin().view(sizes)


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_aot_inductor_from_python_and_from_cpp(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_package", EXAMPLE / "make_package.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    path = str(tmp_path / "lstm.pt2")
    model = example.make_package(path)
    loaded = torch._inductor.aoti_load_package(path)
    for sizes in ((20, 4), (7, 9), (1, 1)):
        x = sine(*sizes, example.INPUT_SIZE)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), model(x))

    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("the C++ part needs cmake")
    build = tmp_path / "build"
    for command in (
        [cmake, "-S", EXAMPLE, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"],
        [cmake, "--build", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if "PyTorch: CUDA cannot be found" in done.stderr:
            pytest.skip("the CMake package of a CUDA build of torch needs the CUDA toolkit")
        assert done.returncode == 0, done.stdout + done.stderr
    for sizes in ((20, 4), (7, 9)):
        command = [str(build / "run_lstm"), path, *map(str, (*sizes, example.INPUT_SIZE))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *shape, total, squares = done.stdout.split()
        with torch.no_grad():
            y = model(sine(*sizes, example.INPUT_SIZE)).double()
        assert tuple(map(int, shape)) == tuple(y.shape)
        expected = torch.stack([y.sum(), y.square().sum()])
        torch.testing.assert_close(
            torch.tensor([float(total), float(squares)]).double(), expected, rtol=1e-5, atol=1e-4
        )


class PacksItself(nn.Module):
    """Packs inside of the program, so that only the data tell how many steps there are."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = FusedLSTM(D, H)

    def forward(self, data: Tensor, lengths: Tensor) -> Tensor:
        sizes = (lengths[None, :] > torch.arange(9)[:, None]).sum(1)
        h_0 = data.new_zeros(1, lengths.shape[0], H)
        weights = list(self.lstm.parameters())
        return functional.lstm(data, (h_0, h_0), weights, batch_sizes=sizes[sizes > 0])[0]


def test_steps_that_only_the_data_tell() -> None:
    model, lengths = PacksItself(), torch.tensor([4, 3, 2])
    data = torch.randn(9, D)
    packed = torch.nn.utils.rnn.PackedSequence(data, torch.tensor([3, 3, 2, 1]))
    expected = model.lstm(packed)[0].data
    program = torch.export.export(model.eval(), (data, lengths))
    with torch.no_grad():
        assert_bitwise_equal(program.module()(data, lengths), expected)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        y = compiled(data, lengths)
        assert_bitwise_equal(y, expected)
        given = torch.randn_like(y)
        found = torch.autograd.grad(y, list(model.parameters()), given)
    wanted = torch.autograd.grad(expected, list(model.parameters()), given)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_bitwise_equal(mine, theirs)
