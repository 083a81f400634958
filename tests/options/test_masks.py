# SPDX-License-Identifier: BSD-3-Clause
"""The random masks of recurrent dropout and zoneout: how often, over what, and from which seed."""

from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.settings import use_threads
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lstm_fused import FusedLSTM, _cell_options
from lstm_fused.autograd.arguments import LayerArguments
from lstm_fused.reference_options import LayerOptions

T, N, D, H = 40, 30, 4, 50


def masks_of(monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[LayerOptions]:
    """What the layers of a call are given."""
    seen: list[LayerOptions] = []
    run = _cell_options.options_layer

    def record(arguments: LayerArguments, options: LayerOptions, weights: Any) -> Any:
        seen.append(options)
        return run(arguments, options, weights)

    monkeypatch.setattr(_cell_options, "options_layer", record)
    torch.manual_seed(0)
    FusedLSTM(D, H, 2, bidirectional=True, **options)(torch.randn(T, N, D))
    return seen


def assert_independent(flags: Tensor, probability: float) -> None:
    """Samples (…, n) of the same probability: their mean, and that neighbours say nothing of each
    other; within 5 standard deviations."""
    flags = flags.double().flatten(0, -2)
    deviation = (probability * (1 - probability)) ** 0.5
    assert abs(flags.mean().item() - probability) < 5 * deviation / flags.numel() ** 0.5
    centred = (flags - probability) / deviation
    for product in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert abs(product.mean().item()) < 5 / product.numel() ** 0.5


def test_recurrent_dropout_draws_a_mask_for_each_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = masks_of(monkeypatch, recurrent_dropout=0.3)
    masks = [options.h_mask for options in layers]
    assert len(masks) == 2 and all(m is not None and m.shape == (2, N, H) for m in masks)
    for mask in masks:
        assert mask is not None and set(mask.unique().tolist()) == {
            0.0,
            torch.tensor(1 / 0.7).item(),
        }
        assert_independent(mask == 0, 0.3)
    assert not torch.equal(masks[0], masks[1])  # type: ignore[arg-type]
    assert not torch.equal(masks[0][0], masks[0][1])  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_recurrent_dropout_has_the_bits_of_torchs_dropout(dtype: torch.dtype) -> None:
    ones = torch.ones(2, N, H, dtype=dtype)
    for probability in (0.3, 0.9):
        torch.manual_seed(0)
        expected = torch.nn.functional.dropout(ones, probability)
        torch.manual_seed(0)
        assert_bitwise_equal(_cell_options._dropout_mask(ones, probability), expected)


def test_recurrent_dropout_in_vmap_draws_for_each_sample() -> None:
    module, x = FusedLSTM(D, H, recurrent_dropout=0.5), torch.randn(6, 3, D)
    for randomness in ("same", "different"):
        y = torch.vmap(lambda x: module(x)[0], randomness=randomness)(torch.stack([x, x]))
        assert torch.allclose(y[0], y[1]) == (randomness == "same")


def test_masks_are_on_the_inputs_device() -> None:
    module, x = FusedLSTM(D, H, recurrent_dropout=0.5, zoneout=0.1), torch.randn(6, 3, D)
    torch.manual_seed(0)
    expected, _ = module(x)
    torch.manual_seed(0)
    with torch.device("meta"):
        found, _ = module(x)
    assert_bitwise_equal(found, expected)


@pytest.mark.parametrize("units", [6, 7])
@pytest.mark.parametrize("probabilities", [(0.2, 0.2), (0.2, 0.4), (0.0, 0.3)], ids=str)
def test_zoneouts_flags_are_halves_of_random_numbers(
    units: int, probabilities: tuple[float, float]
) -> None:
    sizes = (2, 5, units)
    torch.manual_seed(0)
    found = _cell_options._random_flags(sizes, probabilities, torch.device("cpu"))
    torch.manual_seed(0)
    count = 10 * units * sum(p > 0 for p in probabilities)
    halves = torch.empty((count + 1) // 2, dtype=torch.int64).random_().view(torch.int32)
    uniform = iter((halves[:count] & (2**31 - 1)).double().div(2**31).view(-1, *sizes))
    for flags, probability in zip(found, probabilities, strict=True):
        assert (flags is None) == (probability == 0)
        if flags is not None:
            assert torch.equal(flags, next(uniform) < probability)


def test_zoneout_draws_masks_for_each_unit_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = masks_of(monkeypatch, zoneout=(0.2, 0.05))
    for options in layers:
        for keep, probability in ((options.keep_c, 0.2), (options.keep_h, 0.05)):
            assert keep is not None and keep.shape == (2, T * N, H) and keep.dtype == torch.bool
            assert_independent(keep, probability)
            steps = keep.view(2, T, N, H).transpose(1, 3)
            assert_independent(steps, probability)  # over time, too
    assert not torch.equal(layers[0].keep_c, layers[1].keep_c)  # type: ignore[arg-type]
    assert not torch.equal(layers[0].keep_c, layers[0].keep_h)  # type: ignore[arg-type]
    only_c = masks_of(monkeypatch, zoneout=(0.2, 0.0))
    assert all(options.keep_h is None for options in only_c)


OPTIONS = ({"recurrent_dropout": 0.4}, {"zoneout": 0.3}, {"recurrent_dropout": 0.1, "zoneout": 0.2})
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


@options
def test_a_seed_gives_the_same_results_on_any_threads(options: dict[str, Any], isa: str) -> None:
    module, x = FusedLSTM(D, H, **options), torch.randn(6, 40, D)
    found = []
    for threads in (1, 1, 2):
        torch.manual_seed(3)
        with use_threads(threads):
            found.append(module(x)[0])
    assert_bitwise_equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    torch.manual_seed(4)
    assert not torch.allclose(module(x)[0], found[0], atol=1e-3)


@options
def test_evaluation_draws_nothing(options: dict[str, Any]) -> None:
    module, x = FusedLSTM(D, H, **options).eval(), torch.randn(6, 3, D)
    before = torch.get_rng_state()
    assert_bitwise_equal(module(x)[0], module(x)[0])
    assert_bitwise_equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("recompute", [False, True])
@options
def test_checkpoints_and_recompute_see_the_same_masks(
    options: dict[str, Any], recompute: bool
) -> None:
    module, x = FusedLSTM(D, H, 2, **options), torch.randn(6, 3, D)

    def gradients(through: bool) -> list[Tensor]:
        module.zero_grad()
        module.recompute = recompute and through
        torch.manual_seed(5)
        if through and not recompute:
            y = checkpoint(lambda x: module(x)[0], x.requires_grad_(), use_reentrant=False)
        else:
            y, _ = module(x)
        y.square().sum().backward()
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize(
    "options", [{"recurrent_dropout": 0.0}, {"zoneout": 0.0}, {"zoneout": (0.0, 0.0)}], ids=str
)
def test_probability_zero_is_the_plain_layer(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = FusedLSTM(D, H)
    torch.manual_seed(0)
    module = FusedLSTM(D, H, **options)
    assert module.cell_options is None and repr(module) == repr(plain)
    x = torch.randn(5, 3, D)
    assert_bitwise_equal(module(x)[0], plain(x)[0])


def test_expectations_are_the_mean_of_the_masks() -> None:
    """One step: h and c in evaluation are the means over many masks in training."""
    torch.manual_seed(0)
    module = FusedLSTM(D, H, zoneout=(0.3, 0.2)).double()
    x, state = torch.randn(1, 1, D).double(), torch.randn(2, 1, 1, H).double()
    rows = 20000
    many = (x.expand(1, rows, D), (state[0].expand(1, rows, H), state[1].expand(1, rows, H)))
    y, (_, c) = module(*many)
    expected_y, (_, expected_c) = module.eval()(x, (state[0], state[1]))
    for found, expected, kept in ((y, expected_y, state[0]), (c, expected_c, state[1])):
        bound = 5 * (found.std(dim=1, keepdim=True) + 1e-9) / rows**0.5
        assert ((found.mean(dim=1, keepdim=True) - expected).abs() < bound).all()
        share = (found == kept).double().mean().item()
        assert abs(share - (0.2 if found is y else 0.3)) < 5 * 0.5 / (rows * H) ** 0.5
