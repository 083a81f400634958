# SPDX-License-Identifier: BSD-3-Clause
"""Libraries that build nn.LSTM themselves, or look for it by its type when they load a model."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.numeric import assert_bitwise_equal
from kit.twins import D, H, assert_same
from torch import Tensor, nn

import lstm_fused
from lstm_fused import FusedLSTM, FusedLSTMCell

SOURCE = """
import torch
from torch import nn

class Own(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)

class Net(nn.Module):
    def __init__(self, D, H):
        super().__init__()
        self.lstm, self.own, self.cell = nn.LSTM(D, H), Own(D, H), torch.nn.LSTMCell(D, H)
        for module in self.modules():
            if isinstance(module, (nn.LSTM, nn.LSTMCell)):
                for parameter in module.parameters():
                    nn.init.constant_(parameter, 0.1)

    def forward(self, x):
        return self.lstm(x)[0] + self.own(x)[0] + self.cell(x[0])[0]
"""


def import_library(path: Path) -> Any:
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("library", path)
    assert spec is not None
    assert spec.loader is not None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    return library


def test_torch_patched_before_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library builds ours, derives from ours, and finds ours by its type."""
    theirs = import_library(tmp_path / "theirs.py").Net(D, H)
    original = nn.LSTM(D, H)
    monkeypatch.setattr(torch.nn, "LSTM", FusedLSTM)
    monkeypatch.setattr(torch.nn, "LSTMCell", FusedLSTMCell)
    ours = import_library(tmp_path / "ours.py").Net(D, H)
    kinds = [type(ours.lstm), type(ours.own).__base__, type(ours.cell)]
    assert kinds == [FusedLSTM, FusedLSTM, FusedLSTMCell]
    x = torch.randn(6, 4, D)
    assert_same(ours(x), theirs(x))
    # The ways from and to torch's own classes go on meanwhile.
    assert type(FusedLSTM.from_torch(original)) is FusedLSTM
    assert type(lstm_fused.convert(original)) is FusedLSTM
    assert type(ours.lstm.to_torch()) is type(original)
    assert type(lstm_fused.revert(FusedLSTM(D, H))) is type(original)


def tiny_model(kind: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers: Any = pytest.importorskip("transformers", reason="it is not installed")

    class Config(transformers.PretrainedConfig):  # type: ignore[misc]
        model_type = "tiny"

    class Tiny(transformers.PreTrainedModel):  # type: ignore[misc]
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.lstm, self.head = kind(D, H), nn.Linear(H, 2)
            self.post_init()

        def forward(self, x: Tensor) -> Any:
            return self.head(self.lstm(x)[0])

    return Tiny, Config


def test_convert_after_from_pretrained(tmp_path: Path) -> None:
    """transformers initialises missing weights by type, so nn.LSTM comes first, then convert."""
    tiny, config = tiny_model(nn.LSTM)
    saved = tiny(config())
    saved.save_pretrained(tmp_path / "whole")
    loaded = lstm_fused.convert(tiny.from_pretrained(tmp_path / "whole"))
    assert type(loaded.lstm) is FusedLSTM
    x = torch.randn(6, 4, D)
    assert_same(loaded(x), saved(x))

    head_alone = {k: v for k, v in saved.state_dict().items() if k.startswith("head")}
    saved.save_pretrained(tmp_path / "head", state_dict=head_alone)
    loaded = lstm_fused.convert(tiny.from_pretrained(tmp_path / "head"))
    assert_bitwise_equal(loaded.head.weight, saved.head.weight)
    for name, parameter in loaded.lstm.named_parameters():
        assert 0 < parameter.abs().max() < 1 or "bias" in name
