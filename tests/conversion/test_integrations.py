# SPDX-License-Identifier: BSD-3-Clause
"""Parts of torch and other packages that hold, move, share or wrap modules."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.twins import D, H, assert_same, make_twins
from torch import Tensor, nn
from torch.nn.utils import stateless
from torch.nn.utils.parametrizations import spectral_norm

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell


def some_input(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(6, 4, D, dtype=dtype)


# torch.


def test_spectral_norm_is_nn_lstms() -> None:
    """In training each look at the weight is a power iteration, and nn.LSTM looks more often."""
    ours, theirs = make_twins(num_layers=2)
    for module in (ours, theirs):
        for name in ("weight_hh_l0", "weight_ih_l1"):
            spectral_norm(module, name)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    x = some_input()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(ours(x)[0].square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours.eval()(x), theirs.eval()(x))


def test_tied_weights_get_the_sum_of_gradients() -> None:
    grads = []
    x = torch.randn(6, 4, H, dtype=torch.float64)
    for kind in (FusedLSTM, nn.LSTM):
        torch.manual_seed(1)
        module: Any = kind(H, H, num_layers=2, dtype=torch.float64)
        for name in ("weight_ih_l1", "weight_hh_l1"):  # nn.LSTM reads them through its list
            setattr(module, name, module.weight_hh_l0)
        assert len(list(module.parameters())) == 6
        module(x)[0].square().sum().backward()
        grads.append(tuple(p.grad for p in module.parameters()))
    assert_same(*grads)


@pytest.fixture
def swapping() -> Iterator[None]:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.usefixtures("swapping")
def test_parameters_are_swapped_on_conversion() -> None:
    """nn.LSTM refuses to load: its list of weights holds weak references."""
    ours, theirs = make_twins(torch.float32, num_layers=2)
    ours(some_input(torch.float32))[0].sum().backward()
    ours.zero_grad()
    before = list(ours.parameters())
    expected = {name: 2 * w.double() for name, w in theirs.state_dict().items()}
    ours.double()
    ours.load_state_dict({name: w * 2 for name, w in ours.state_dict().items()})
    assert all(mine is old for mine, old in zip(ours.parameters(), before, strict=True))
    for name, weight in ours.named_parameters():
        assert_bitwise_equal(weight, expected[name])
    with pytest.raises(RuntimeError, match="weakref"):
        theirs.load_state_dict(theirs.state_dict())


def test_swapped_tensors_are_computed_with() -> None:
    ours, theirs = make_twins()
    weight = nn.Parameter(ours.weight_hh_l0.detach() * 2)
    torch.utils.swap_tensors(ours.weight_hh_l0, weight)
    theirs.weight_hh_l0.data.mul_(2)
    x = some_input()
    assert_same(ours(x), theirs(x))


def test_deferred_initialisation_is_that_of_the_seed() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = FusedLSTM(D, H, num_layers=2)
            self.cell = FusedLSTMCell(D, H)

    torch.manual_seed(4)
    expected = Model()
    with torch.device("meta"):
        deferred = Model()
    assert all(p.is_meta for p in deferred.parameters())
    deferred.to_empty(device="cpu")
    torch.manual_seed(4)
    for part in deferred.children():
        part.reset_parameters()  # type: ignore[operator]
    for mine, theirs in zip(deferred.parameters(), expected.parameters(), strict=True):
        assert_bitwise_equal(mine, theirs)
    with torch.device("meta"):
        loaded = Model()
    loaded.load_state_dict(expected.state_dict(), assign=True)
    x = some_input(torch.float32)
    assert_bitwise_equal(loaded.lstm(x)[0], expected.lstm(x)[0])


@pytest.mark.filterwarnings("ignore:.*stateless.functional_call.* is deprecated:FutureWarning")
def test_stateless_call_leaves_the_module() -> None:
    ours, theirs = make_twins(num_layers=2)
    weights = {name: 2 * p.detach() for name, p in ours.named_parameters()}
    x = some_input()
    before = ours(x)[0]
    assert_same(
        stateless.functional_call(ours, weights, (x,)),
        stateless.functional_call(theirs, weights, (x,)),
    )
    assert_bitwise_equal(ours(x)[0], before)


def halve_and_run(module: FusedLSTM, x: Tensor, queue: Any) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    queue.put(module(x)[0].detach().numpy())


def test_shared_weights_change_in_both_processes() -> None:
    """Hogwild: the module is pickled to a spawned process, whose changes of weights are seen."""
    module, _ = make_twins(torch.float32, num_layers=2)
    module.share_memory()
    assert all(p.is_shared() for p in module.parameters())
    x = some_input(torch.float32)
    before = [p.detach().clone() for p in module.parameters()]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=halve_and_run, args=(module, x, queue))
    process.start()
    theirs = torch.from_numpy(queue.get(timeout=120))
    process.join()
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert_bitwise_equal(parameter, old / 2)
    torch.testing.assert_close(theirs, module(x)[0].detach())


def test_grad_scaler_trains_float16_under_autocast() -> None:
    """Gradients in float32, unscaled to those without a scale; a step with inf is left out."""
    torch.manual_seed(0)
    module = FusedLSTM(D, H, num_layers=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = some_input(torch.float32)

    def loss_of() -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            y = module(x)[0]
            assert y.dtype == torch.float16
        return y.float().square().mean()

    expected = torch.autograd.grad(loss_of(), list(module.parameters()))
    scaler.scale(loss_of()).backward()
    scaler.unscale_(optimizer)
    for parameter, grad in zip(module.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-2, atol=1e-5)
    scaler.step(optimizer)
    scaler.update()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(loss_of())
        scaler.scale(losses[-1]).backward()
        scaler.step(optimizer)
        scaler.update()
    assert losses[-1] < losses[0]

    before = [p.detach().clone() for p in module.parameters()]
    optimizer.zero_grad()
    scaler.scale(loss_of() * 1e30).backward()
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == scale / 2
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert_bitwise_equal(parameter, old)


# Other packages.


def test_safetensors_go_both_ways(tmp_path: Path) -> None:
    safetensors: Any = pytest.importorskip(
        "safetensors.torch", reason="safetensors is not installed"
    )
    ours, theirs = make_twins(num_layers=2, bidirectional=True)
    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(0.25)
        safetensors.save_model(source, str(tmp_path / "model.safetensors"))
        assert safetensors.load_model(target, str(tmp_path / "model.safetensors")) == (set(), [])
        x = some_input()
        assert_same(ours(x), theirs(x))


def test_lightning_trains_it_unchanged() -> None:
    """Losses and weights are those of nn.LSTM in an equal LightningModule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning: Any = pytest.importorskip("lightning", reason="lightning is not installed")

    class Classifier(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, lstm: nn.Module) -> None:
            super().__init__()
            self.lstm, self.losses = lstm, []

        def training_step(self, batch: Any, index: int) -> Tensor:
            y, (h_n, _) = self.lstm(batch[0])
            loss: Tensor = (y.mean() - h_n.square().sum()).square()
            self.losses.append(loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(12, 5, D, dtype=torch.float64))
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in make_twins(num_layers=2, batch_first=True):
            model = Classifier(module)
            trainer = lightning.Trainer(
                max_epochs=3,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=4))
            losses.append(torch.stack(model.losses))
    assert len(losses[0]) == 9
    torch.testing.assert_close(*losses)


def test_convert_of_a_recurrent_policy() -> None:
    """sb3-contrib's RecurrentPPO: same actions and values, same training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sb3: Any = pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")
    weights = []
    for converts in (False, True):
        agent = sb3.RecurrentPPO(
            "MlpLstmPolicy",
            "CartPole-v1",
            n_steps=32,
            batch_size=16,
            n_epochs=2,
            seed=0,
            device="cpu",
            policy_kwargs={"lstm_hidden_size": 16},
        )
        if converts:
            lstm_fused.convert(agent.policy)
            assert isinstance(agent.policy.lstm_actor, FusedLSTM)
            assert isinstance(agent.policy.lstm_critic, FusedLSTM)
        agent.learn(128)
        weights.append([p.detach().clone() for p in agent.policy.parameters()])
    for theirs, ours in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_convert_of_a_forecasting_model() -> None:
    """GluonTS's DeepAR: same likelihoods, same training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deepar: Any = pytest.importorskip(
            "gluonts.torch.model.deepar.module", reason="gluonts is not installed"
        )
    curves = []
    for converts in (False, True):
        torch.manual_seed(0)
        model = deepar.DeepARModel(
            freq="D", context_length=8, prediction_length=4, num_layers=2, hidden_size=16
        )
        if converts:
            lstm_fused.convert(model)
            assert isinstance(model.rnn, FusedLSTM)
        shapes = model.describe_inputs(batch_size=3).shapes
        batch = {
            name: torch.zeros(sizes, dtype=torch.long) if "cat" in name else torch.rand(sizes)
            for name, sizes in shapes.items()
        }
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            torch.manual_seed(1)  # dropout between layers
            future = torch.rand(3, 4)
            loss = model.loss(
                **batch, future_target=future, future_observed_values=torch.ones(3, 4)
            ).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    torch.testing.assert_close(*curves, rtol=1e-4, atol=1e-5)
    assert curves[1][-1] < curves[1][0]
