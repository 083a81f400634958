# SPDX-License-Identifier: BSD-3-Clause
"""Files of streams: what they hold, and that no damaged one is taken."""

import copy
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.numeric import assert_within_budget
from torch import Tensor, nn

from lstm_fused import FusedLSTM, FusedLSTMCell, load_stream, quantize, save_stream

T, N, D, H = 6, 2, 5, 19
OPTIONS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "layers": {"num_layers": 2},
    "projection": {"num_layers": 2, "proj_size": 6},
    "no bias": {"bias": False},
}


NO_OUTPUTS = nn.Linear(H, 1)
NO_OUTPUTS.out_features, NO_OUTPUTS.weight = 0, nn.Parameter(torch.zeros(0, H))
BEYOND_FLOAT32 = FusedLSTM(D, H, dtype=torch.float64)
BEYOND_FLOAT32.weight_hh_l0.data.fill_(1e300)


def make(**options: Any) -> FusedLSTM:
    torch.manual_seed(0)
    return FusedLSTM(D, H, **options)


def rounded(weight: Tensor, kind: torch.dtype) -> Tensor:
    """The weight as a file of this kind holds it, by the format's own words."""
    if kind != torch.int8:
        return weight.to(kind).to(weight.dtype)
    rows = []
    for row in weight.double():
        scale = (row.abs().max() / 127).float()
        values = (row.float() / scale).round() if scale > 0 else torch.zeros_like(row).float()
        rows.append(values.double() * scale.double())
    return torch.stack(rows).to(weight.dtype)


@pytest.mark.parametrize(
    "kind", [torch.float32, torch.float16, torch.bfloat16, torch.int8], ids=str
)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_file_holds_the_rounded_module(
    name: str, head: bool, kind: torch.dtype, tmp_path: Path
) -> None:
    module = make(**OPTIONS[name])
    linear = nn.Linear(OPTIONS[name].get("proj_size", H), 3) if head else None
    with torch.no_grad():
        module.weight_hh_l0[3] = 0  # a row that has no scale
    save_stream(module, tmp_path / "a.stream", head=linear, weights=kind)
    stream = load_stream(tmp_path / "a.stream", batch_size=N)

    theirs = module.to_torch()
    theirs = copy.deepcopy(theirs)
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.dim() == 2:
                weight.copy_(rounded(weight, kind))
        x = torch.randn(T, N, D)
        rival = theirs(x)[0]
        truth = copy.deepcopy(theirs).double()(x.double())[0]
        if linear is not None:
            rival, truth = linear(rival), copy.deepcopy(linear).double()(truth)
        assert_within_budget("y", stream.run(x), rival, truth, torch.float32)
    assert (stream.input_size, stream.output_size) == (D, rival.shape[-1])


def test_a_float32_file_has_the_bits_of_the_module(tmp_path: Path) -> None:
    module = make(num_layers=2)
    save_stream(module, tmp_path / "a")
    x = torch.randn(T, N, D)
    assert torch.equal(load_stream(tmp_path / "a", N).run(x), module.stream(N).run(x))


def test_a_cell_and_a_head_without_bias_are_saved(tmp_path: Path) -> None:
    cell, head = FusedLSTMCell(D, H), nn.Linear(H, 2, bias=False)
    save_stream(cell, tmp_path / "a", head=head)
    x = torch.randn(T, 1, D)
    with torch.no_grad():
        wanted = head(cell.stream().run(x))
    torch.testing.assert_close(load_stream(tmp_path / "a").run(x), wanted)


@pytest.mark.parametrize(
    ("module", "options", "error", "text"),
    [
        (nn.LSTM(D, H), {}, TypeError, "FusedLSTM or a FusedLSTMCell, got LSTM"),
        (FusedLSTM(D, H, bidirectional=True), {}, ValueError, "bidirectional"),
        (FusedLSTM(D, H), {"weights": torch.int32}, TypeError, "weights must be"),
        (FusedLSTM(D, H), {"weights": "int8"}, TypeError, "weights must be"),
        (FusedLSTM(D, H), {"head": nn.Linear(D, 2)}, ValueError, "the 19 features"),
        (FusedLSTM(D, H), {"head": nn.Identity()}, TypeError, "an nn.Linear, got Identity"),
        (FusedLSTM(D, H, device="meta"), {}, ValueError, "weights on meta"),
        (FusedLSTM(D, H, peephole=True), {}, ValueError, "nn.LSTM's cell, got peephole=True"),
        (FusedLSTM(D, H, learned_state=True), {}, ValueError, "begin with zeros"),
        (FusedLSTM(1, 1, 1025), {}, ValueError, "at most 1024 layers, got 1025"),
        (FusedLSTM((1 << 20) + 1, 1), {}, ValueError, "at most 1048576, got"),
        (FusedLSTM(D, H), {"head": NO_OUTPUTS}, ValueError, "1 to 1048576 outputs, got 0"),
        (BEYOND_FLOAT32, {}, ValueError, r"of torch\.float32 must be finite"),
    ],
)
def test_what_cannot_be_saved_is_refused(
    module: Any, options: dict[str, Any], error: type, text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        save_stream(module, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e6])
def test_weights_that_rounding_loses_are_refused(
    kind: torch.dtype, value: float, tmp_path: Path
) -> None:
    module = make()
    with torch.no_grad():
        module.weight_hh_l0[0, 0] = value
    if kind == torch.int8 and value == 1e6:  # has a scale
        save_stream(module, tmp_path / "a", weights=kind)
        return
    with pytest.raises(ValueError, match="finite"):
        save_stream(module, tmp_path / "a", weights=kind)


def sound(tmp_path: Path, kind: torch.dtype = torch.float32) -> bytes:
    save_stream(make(num_layers=2, proj_size=4), tmp_path / "sound", weights=kind)
    return (tmp_path / "sound").read_bytes()


def with_checksum(data: bytes) -> bytes:
    return data[:12] + struct.pack("<I", zlib.crc32(data[16:])) + data[16:]


def refusal(data: bytes, tmp_path: Path) -> str:
    (tmp_path / "broken").write_bytes(data)
    with pytest.raises(RuntimeError) as caught:
        load_stream(tmp_path / "broken")
    return str(caught.value)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    data = sound(tmp_path)
    assert "fewer than the 64" in refusal(b"", tmp_path)
    assert "fewer than the 64" in refusal(data[:63], tmp_path)
    assert 'begin with "LSTMFUSE"' in refusal(b"PK" + data[2:], tmp_path)
    assert "cut off or added to" in refusal(data[:-1], tmp_path)
    assert "cut off or added to" in refusal(data + b"\0", tmp_path)
    later = data[:8] + struct.pack("<I", 2) + data[12:]
    assert "format version 2, and this library reads version 1" in refusal(later, tmp_path)
    for at in (20, 40, 64, len(data) - 1):
        flipped = bytearray(data)
        flipped[at] ^= 1
        refusal(bytes(flipped), tmp_path)
    with pytest.raises(FileNotFoundError):
        load_stream(tmp_path / "absent")


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (24, 0, "1 to 1024 layers"),
        (24, 3, "ends early"),
        (24, 1, "more than its sizes need"),
        (28, 4, "unknown weight type, 4"),
        (32, 0, "1 to 1048576, got 0"),
        (36, 2**31, "got 2147483648"),
        (36, 1 << 20, "ends early"),
        (40, 19, "below hidden_size"),
        (44, 1 << 20, "ends early"),
        (48, 2, "does not know"),
        (60, 1, "does not know"),
    ],
)
def test_headers_that_contradict_their_files_are_refused(
    at: int, value: int, text: str, tmp_path: Path
) -> None:
    data = bytearray(sound(tmp_path))
    struct.pack_into("<I", data, at, value)
    assert text in refusal(with_checksum(bytes(data)), tmp_path)


@pytest.mark.parametrize("kind", [torch.float32, torch.int8], ids=str)
def test_no_header_crashes(kind: torch.dtype, tmp_path: Path) -> None:
    """Whatever the numbers in it: an error, or a stream that runs."""
    data, source = sound(tmp_path, kind), random.Random(0)
    path = tmp_path / "broken"
    for _ in range(300):
        broken = bytearray(data[: source.choice([len(data), 64, source.randrange(64, len(data))])])
        for _ in range(source.randrange(1, 4)):
            value = source.choice([0, 1, 2, 3, 19, 255, 1 << 16, 1 << 20, 0xFFFFFFFF])
            struct.pack_into("<I", broken, source.randrange(24, 61, 4), value)
        struct.pack_into("<Q", broken, 16, len(broken))
        path.write_bytes(with_checksum(bytes(broken)))
        try:
            stream = load_stream(path)
        except RuntimeError:
            continue
        stream.step(torch.zeros(1, stream.input_size))


@pytest.mark.parametrize("weights", [torch.int8, torch.bfloat16, torch.float16], ids=str)
def test_quantized_modules_have_streams_of_their_own_bits(
    weights: torch.dtype, tmp_path: Path
) -> None:
    lstm = quantize(nn.Sequential(make(num_layers=2)), weights=weights)[0]
    cell = quantize(nn.Sequential(FusedLSTMCell(D, H)), weights=weights)[0]
    x = torch.randn(T, N, D)
    hx = None
    for module in (lstm, cell):
        stream = module.stream(N)
        if module is lstm:
            assert torch.equal(stream.run(x), lstm(x)[0])
        else:
            for frame in x:
                hx = cell(frame, hx)
                assert torch.equal(stream.step(frame), hx[0])
        # A file with as few weights as this one's is read into float32.
        save_stream(module, tmp_path / "a")
        wanted = module.dequantize().stream(N).run(x)
        assert torch.equal(load_stream(tmp_path / "a", N).run(x), wanted)


def test_a_stream_of_a_quantized_module_is_a_snapshot_of_it() -> None:
    module = quantize(nn.Sequential(make(num_layers=2)), weights=torch.int8)[0]
    other = quantize(nn.Sequential(FusedLSTM(D, H, 2)), weights=torch.int8)[0]
    x = torch.randn(T, N, D)
    stream, before = module.stream(N), module(x)[0]
    module.load_state_dict(other.state_dict())
    assert torch.equal(stream.run(x), before)
    stream.refresh()
    stream.reset()
    assert torch.equal(stream.run(x), other(x)[0])
    with pytest.raises(ValueError, match="got a bidirectional QuantizedLSTM"):
        quantize(nn.Sequential(make(bidirectional=True)))[0].stream()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_file_keeps_the_integers_and_scales_of_a_quantized_module(
    options: dict[str, Any], tmp_path: Path
) -> None:
    module = quantize(nn.Sequential(make(**options)), weights=torch.int8)[0]
    x = torch.randn(T, N, D)
    wanted = module.dequantize().stream(N).run(x)
    save_stream(module, tmp_path / "a")
    assert torch.equal(load_stream(tmp_path / "a", N).run(x), wanted)
    save_stream(module, tmp_path / "b", weights=torch.float32)
    assert 2 * (tmp_path / "a").stat().st_size < (tmp_path / "b").stat().st_size


def test_scales_by_which_no_integer_is_127_are_kept(tmp_path: Path) -> None:
    torchs = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.LSTM(D, 91, 2)), {nn.LSTM}, torch.qint8
    )
    module = quantize(torchs, weights=torch.int8)[0]
    save_stream(module, tmp_path / "a")
    x = torch.randn(T, N, D)
    assert torch.equal(load_stream(tmp_path / "a", N).run(x), module(x)[0])


@pytest.mark.parametrize("weights", [torch.int8, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"proj_size": 37}], ids=str)
def test_many_weights_of_a_file_stay_as_they_are(
    options: dict[str, Any], weights: torch.dtype, tmp_path: Path
) -> None:
    """With the bits of the module that rounds its weights in the same way."""
    module = FusedLSTM(D, 131, 2, **options)
    own = quantize(nn.Sequential(module), weights=weights)[0]
    x = torch.randn(T, N, D)
    for source in (module, own):
        save_stream(source, tmp_path / "a", weights=weights)
        assert torch.equal(load_stream(tmp_path / "a", N).run(x), own(x)[0])
