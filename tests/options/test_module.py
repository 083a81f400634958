# SPDX-License-Identifier: BSD-3-Clause
"""FusedLSTM with options of its cell: parameters, layouts, transforms, and what refuses them."""

import copy
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal, assert_within_budget
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstm_fused
from lstm_fused import FusedLSTM
from lstm_fused.info import cuda_plan_text
from tools.cuda_report.facts import DEVICES

T, N, D, H = 6, 4, 5, 8
ALL: dict[str, Any] = {
    "recurrent_dropout": 0.2,
    "zoneout": (0.1, 0.05),
    "layer_norm": True,
    "peephole": True,
    "cell_clip": 2.5,
    "coupled_gates": True,
}
OPTIONS: dict[str, dict[str, Any]] = {name: {name: value} for name, value in ALL.items()}
OPTIONS["all"] = ALL
each = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def make(options: dict[str, Any], *args: Any, **kwargs: Any) -> FusedLSTM:
    torch.manual_seed(0)
    module = FusedLSTM(D, H, *args, **options, **kwargs)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith(("gamma", "beta", "peephole")):
                parameter.add_(torch.randn_like(parameter).mul(0.3))
    return module


def draw(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(1))


class Loop(nn.Module):
    """One direction of one layer in evaluation, as a loop over a cell that a user would write."""

    def __init__(self, module: FusedLSTM) -> None:
        super().__init__()
        self.module = module
        self.norms = [nn.LayerNorm(4 * H, elementwise_affine=False) for _ in range(2)]
        self.cell_norm = nn.LayerNorm(H)
        if module.layer_norm:
            self.cell_norm.weight, self.cell_norm.bias = module.gamma_c_l0, module.beta_c_l0

    def forward(self, x: Tensor) -> Tensor:
        m, h, c, outputs = self.module, x.new_zeros(x.shape[1], H), x.new_zeros(x.shape[1], H), []
        for x_t in x:
            from_x, from_h = x_t @ m.weight_ih_l0.T, h @ m.weight_hh_l0.T
            if m.layer_norm:
                from_x = m.gamma_l0[0] * self.norms[0](from_x)
                from_h = m.gamma_l0[1] * self.norms[1](from_h)
            i, f, g, o = (from_x + from_h + m.bias_ih_l0 + m.bias_hh_l0).chunk(4, dim=-1)
            if m.peephole:
                w_ci, w_cf, w_co = m.peephole_l0
                i, f = i + w_ci * c, f + w_cf * c
            f = torch.sigmoid(f)
            i = 1 - f if m.coupled_gates else torch.sigmoid(i)
            c_new = f * c + i * torch.tanh(g)
            if m.cell_clip is not None:
                c_new = c_new.clamp(-m.cell_clip, m.cell_clip)
            o = torch.sigmoid(o + w_co * c_new if m.peephole else o)
            h_new = o * torch.tanh(self.cell_norm(c_new) if m.layer_norm else c_new)
            keep_c, keep_h = m.zoneout
            h, c = keep_h * h + (1 - keep_h) * h_new, keep_c * c + (1 - keep_c) * c_new
            outputs.append(h)
        return torch.stack(outputs)


@each
def test_evaluation_is_what_a_loop_computes(options: dict[str, Any]) -> None:
    module, x = make(options).double().eval(), draw(T, N, D).double()
    loop = Loop(module)
    parameters = list(module.parameters())
    found, expected = module(x)[0], loop(x)
    assert_within_budget("y", found, None, expected, torch.float64)
    weight = draw(T, N, H).double()
    pairs = (torch.autograd.grad((y * weight).sum(), parameters) for y in (found, expected))
    for (name, _), a, b in zip(module.named_parameters(), *pairs, strict=True):
        assert_within_budget(name, a, None, b, torch.float64)


@each
def test_parameters_have_names_and_initial_values(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = FusedLSTM(D, H, 2, bidirectional=True, **options)
    torch.manual_seed(0)
    plain = FusedLSTM(D, H, 2, bidirectional=True)
    own = {n: p for n, p in module.named_parameters() if n not in dict(plain.named_parameters())}
    suffixes = ("l0", "l0_reverse", "l1", "l1_reverse")
    expected: dict[str, tuple[int, ...]] = {}
    if options.get("peephole"):
        expected.update({f"peephole_{s}": (3, H) for s in suffixes})
    if options.get("layer_norm"):
        expected.update({f"gamma_{s}": (2, 4 * H) for s in suffixes})
        expected.update({f"{n}_{s}": (H,) for s in suffixes for n in ("gamma_c", "beta_c")})
    assert {name: tuple(p.shape) for name, p in own.items()} == expected
    for name, parameter in own.items():
        if name.startswith("gamma"):
            assert (parameter == 1).all()
        elif name.startswith("beta"):
            assert (parameter == 0).all()
        else:
            assert 0 < parameter.abs().max() <= 1 / math.sqrt(H)
    for name, parameter in plain.named_parameters():
        assert_bitwise_equal(module.get_parameter(name), parameter)
    with torch.no_grad():
        for parameter in own.values():
            parameter.fill_(7)
    module.reset_parameters()
    assert all((p.abs() <= 1).all() for p in own.values())


@each
def test_it_is_saved_copied_and_shown(options: dict[str, Any]) -> None:
    module, x = make(options, 2).eval(), draw(T, N, D)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (torch.load(buffer, weights_only=False), copy.deepcopy(module)):
        assert_bitwise_equal(other(x)[0], module(x)[0])
        assert repr(other) == repr(module)
    fresh = FusedLSTM(D, H, 2, **options).eval()
    fresh.load_state_dict(module.state_dict())
    assert_bitwise_equal(fresh(x)[0], module(x)[0])
    for name, value in options.items():
        assert getattr(module, name) == value and f"{name}={value!r}" in repr(module)


@pytest.mark.parametrize("proj_size", [0, 3])
@each
def test_lengths_packed_and_unbatched_agree(options: dict[str, Any], proj_size: int) -> None:
    if proj_size and "zoneout" in options:
        options = {**options, "zoneout": (0.1, 0.0)}
    module = make(options, 2, bidirectional=True, proj_size=proj_size).double().eval()
    x, lengths = draw(T, N, D).double(), torch.tensor([4, 6, 1, 3])
    y, (h_n, c_n), cells = module(x, lengths=lengths, return_cell_states=True)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    packed_y, packed_state, packed_cells = module(packed, return_cell_states=True)
    for found, expected in (
        (pad_packed_sequence(packed_y)[0], y),
        (packed_state[0], h_n),
        (packed_state[1], c_n),
        (pad_packed_sequence(packed_cells)[0], cells),
    ):
        assert_within_budget("packed", found, None, expected, torch.float64)
    for n, length in enumerate(lengths):
        alone, (h, _) = module(x[:length, n])
        assert_within_budget("alone", alone, None, y[:length, n], torch.float64)
        assert_within_budget("h_n", h, None, h_n[:, n], torch.float64)


def test_reset_states_enter_where_the_mask_is_set() -> None:
    module = FusedLSTM(D, H, 2, bidirectional=True).double()
    x, mask = draw(T, 1, D).double(), torch.zeros(T, 1, dtype=torch.bool)
    mask[3] = True
    h, c = draw(4, H).double().requires_grad_(), draw(4, H).double().requires_grad_()
    y, _ = module(x, reset_mask=mask, reset_state=(h, c))
    # The first layer's forward direction from step 3 on begins with the given states.
    one = FusedLSTM(D, H).double()
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(one, f"{name}_l0").copy_(getattr(module, f"{name}_l0"))
    expected, _ = one(x[3:], (h[:1, None], c[:1, None]))
    layer = FusedLSTM(D, H, bidirectional=True).double()
    layer.load_state_dict({n: p for n, p in module.state_dict().items() if "l0" in n})
    found, _ = layer(x, reset_mask=mask, reset_state=(h[:2], c[:2]))
    assert_within_budget("y", found[3:, :, :H], None, expected, torch.float64)
    gradients = torch.autograd.grad(y.sum(), (h, c))
    assert all((g != 0).all() for g in gradients)
    rows = (h[:, None].expand(-1, 3, -1), c[:, None])
    many, _ = module(x.expand(-1, 3, -1), reset_mask=mask.expand(-1, 3), reset_state=rows)
    assert_within_budget("rows", many[:, 2], None, y[:, 0], torch.float64)
    zeros = (torch.zeros(4, H).double(), torch.zeros(4, H).double())
    same, _ = module(x, reset_mask=mask, reset_state=zeros)
    assert_within_budget("zeros", same, None, module(x, reset_mask=mask)[0], torch.float64)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@each
def test_compiled_it_gives_the_same(options: dict[str, Any], backend: str) -> None:
    module, x = make(options, 2, bidirectional=True), draw(T, N, D)
    torch.compiler.reset()  # its limit of graphs counts those of all modules
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    results = []
    for call in (module, compiled):
        torch.manual_seed(1)
        y, _ = call(x.requires_grad_())
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_gradients_notice_what_changes_in_place() -> None:
    """As of the plain layer: right gradients, or an error."""
    module = make({"peephole": True})
    x, h, c = draw(T, N, D), torch.full((1, N, H), 0.5), torch.full((1, N, H), 0.3)

    def step(x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        y, (h_n, c_n) = module(x, (h, c))
        h.copy_(h_n.detach())
        c.copy_(c_n.detach())
        return y.pow(2).sum()

    (expected,) = torch.autograd.grad(
        module(x.requires_grad_(), (h.clone(), c.clone()))[0].pow(2).sum(), x
    )
    loss = torch.compile(step, backend="aot_eager")(x, h.clone(), c.clone())
    try:
        (found,) = torch.autograd.grad(loss, x)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(found, expected)


@each
def test_exported_it_takes_any_sizes(options: dict[str, Any]) -> None:
    module = make(options, bidirectional=True).eval()
    dims = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("N", min=2)}
    program = torch.export.export(module, (draw(T, N, D),), dynamic_shapes={"input": dims})
    x = draw(T + 3, N + 2, D)
    torch.testing.assert_close(program.module()(x)[0], module(x)[0])


def test_ahead_of_time_it_gives_the_same(tmp_path: Path) -> None:
    module = make(ALL, 2, bidirectional=True).eval()
    dims = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("N", min=2)}
    program = torch.export.export(module, (draw(T, N, D),), dynamic_shapes={"input": dims})
    path = str(tmp_path / "lstm.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    loaded, x = torch._inductor.aoti_load_package(path), draw(T + 3, N + 2, D)
    for found, expected in zip(loaded(x)[1], module(x)[1], strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(loaded(x)[0], module(x)[0])


@each
def test_transforms_of_torch_func(options: dict[str, Any]) -> None:
    module = make(options).double().eval()
    x = draw(3, T, N, D).double()
    torch.testing.assert_close(
        vmap(lambda x: module(x)[0])(x), torch.stack([module(a)[0] for a in x])
    )
    parameters = dict(module.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(module, parameters, (x[0],))[0].square().sum()

    found = grad(loss)(parameters)
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for name, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], value)
    direction = draw(T, N, D).double()
    _, tangent = jvp(lambda x: module(x)[0], (x[0],), (direction,))
    step = 1e-6
    central = (module(x[0] + step * direction)[0] - module(x[0] - step * direction)[0]) / (2 * step)
    torch.testing.assert_close(tangent, central, rtol=1e-5, atol=1e-7)


@each
def test_autocast_and_16_bit_types(options: dict[str, Any]) -> None:
    module, x = make(options).eval(), draw(T, N, D)
    expected = module(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = module(x)
        y.float().sum().backward()
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    half = copy.deepcopy(module).to(torch.bfloat16)
    y, _ = half(x.to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


def test_y_may_be_overwritten() -> None:
    module, x = make(ALL), draw(T, N, D).requires_grad_()
    torch.manual_seed(0)
    y, _ = module(x)
    (expected,) = torch.autograd.grad(y.relu().sum(), x)
    torch.manual_seed(0)
    y, _ = module(x)
    (found,) = torch.autograd.grad(y.relu_().sum(), x)
    assert_bitwise_equal(found, expected)


def test_options_that_draw_may_be_changed() -> None:
    module, x = FusedLSTM(D, H), draw(T, N, D)
    plain = module(x)[0]
    module.recurrent_dropout = 0.5
    assert not torch.allclose(module(x)[0], plain)
    module.recurrent_dropout = 0.0
    assert module.cell_options is None
    assert_bitwise_equal(module(x)[0], plain)
    with pytest.raises(ValueError, match=r"recurrent_dropout must be a number in \[0, 1\), got 2"):
        module.recurrent_dropout = 2
    with pytest.raises(AttributeError, match="peephole is settled when the module is made"):
        module.peephole = True


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dropout": (
        {"recurrent_dropout": 1.0},
        ValueError,
        r"recurrent_dropout must be a number in \[",
    ),
    "dropout text": ({"recurrent_dropout": "a"}, ValueError, "got 'a'"),
    "zoneout": ({"zoneout": (0.1, -1)}, ValueError, r"zoneout of h must be a number in \[0, 1\)"),
    "zoneout three": ({"zoneout": (0.1, 0.1, 0.1)}, TypeError, "zoneout must be a number or two"),
    "zoneout of h": (
        {"zoneout": 0.1, "proj_size": 3},
        ValueError,
        "not defined with proj_size > 0",
    ),
    "clip": ({"cell_clip": 0}, ValueError, "cell_clip must be a finite number > 0 or None, got 0"),
    "clip nan": ({"cell_clip": math.nan}, ValueError, "cell_clip must be a finite number"),
    "norm": ({"layer_norm": 1}, TypeError, "layer_norm must be a bool, got int"),
    "cudnn": ({"peephole": True, "backend": "cudnn"}, ValueError, 'needs backend="auto"'),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_bad_options(case: str) -> None:
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        FusedLSTM(D, H, **options)


def test_refuses_bad_reset_states() -> None:
    module, x = FusedLSTM(D, H), draw(T, N, D)
    mask, state = torch.zeros(T, N, dtype=torch.bool), torch.zeros(1, H)
    with pytest.raises(ValueError, match="reset_state needs reset_mask, got None"):
        module(x, reset_state=(state, state))
    with pytest.raises(TypeError, match="reset_state must be a tuple of two tensors"):
        module(x, reset_mask=mask, reset_state=state)
    with pytest.raises(
        ValueError, match=r"reset_state's c must have shape \(1, 8\) or \(1, 4, 8\)"
    ):
        module(x, reset_mask=mask, reset_state=(state, torch.zeros(1, 3, H)))


def test_what_has_nn_lstms_cell_refuses_options() -> None:
    module = FusedLSTM(D, H, peephole=True)
    with pytest.raises(ValueError, match=r"nn\.LSTM has no peephole=True"):
        module.to_torch()
    with pytest.raises(ValueError, match=r"a stream has nn\.LSTM's cell, got peephole=True"):
        module.stream()
    with pytest.warns(UserWarning, match="peephole=True, which packed modules do not have"):
        left = lstm_fused.quantize(nn.Sequential(module))
    assert left[0] is module


def test_traces_and_plans_know_options() -> None:
    module, x = make({"peephole": True, "coupled_gates": True}).eval(), draw(T, N, D)
    trace = lstm_fused.trace(module, x)["l0"]
    torch.testing.assert_close(trace.i, 1 - trace.f)
    torch.testing.assert_close(trace.h, module(x)[0])
    assert "peephole=True, coupled_gates=True" in lstm_fused.explain(module, x)
    assert "normalised" in lstm_fused.explain(FusedLSTM(D, H, layer_norm=True), x)


def cuda_plan(hidden: int, cell: int, dtype: str = "float16", proj_size: int = 0) -> list[str]:
    shape, facts = (4, 3, 5, hidden, proj_size, 2, dtype), DEVICES["H100"].facts
    return [cuda_plan_text(*shape, backward, facts, cell=cell) for backward in (False, True)]


def test_plans_on_cuda_know_options() -> None:
    for text in cuda_plan(8, cell=1):
        assert text.startswith("persistent, float16, a block of ")
        assert "with options of the cell" in text
    for text in cuda_plan(256, cell=1):
        assert re.match(r"persistent, float16, \d+ group\(s\) x .*, with options of the cell", text)
    for text in cuda_plan(256, cell=1, dtype="float32"):
        assert text.startswith("stepwise, 1 GEMM and 1 kernel a step for both directions, float32")
        assert "leave groups of blocks no registers for options of the cell" in text
    for text in cuda_plan(8, cell=1, proj_size=2):
        assert text.startswith("stepwise, 2 GEMMs and 2 kernels a step for both directions")
        assert text.endswith("(persistent kernels have no projection)")
    for proj_size, launches in ((0, "1 GEMM and 1 kernel"), (2, "2 GEMMs and 2 kernels")):
        for text in cuda_plan(8, cell=2, proj_size=proj_size):
            assert text.startswith(f"stepwise, {launches} a step for both directions, float16")
            assert "layer normalisation" in text
    assert not any("with options" in text for text in cuda_plan(8, cell=0))
