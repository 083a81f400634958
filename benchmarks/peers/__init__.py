# SPDX-License-Identifier: BSD-3-Clause
"""The peers: who is compared. One module each, with one function::

    def prepare(case: Case, data: Data, setting: Setting) -> Call

that builds whatever one call needs (a module, a session, a compiled function), or raises `Refusal`.
A worker imports the module; the runner's process reads only the table below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

from benchmarks.case import Case

# The rival that every speed-up refers to.
REFERENCE = "nn"


@dataclass(frozen=True)
class Peer:
    """What is known of a peer without importing it."""

    name: str
    label: str
    module: str  # in this package
    requires: tuple[str, ...] = ("torch",)  # modules that must be importable
    devices: tuple[str, ...] = ("cpu", "cuda")
    hint: str = "pip install '.[bench]'"
    # Whether it knows no number of threads: the worker is then kept to that many CPUs.
    pinned: bool = False
    # Bytes of a weight in a call, where the peer rounds weights: it runs cases of that kind and no
    # others.
    weight_bytes: int = 0
    # Whether it does cases of the suite `variants`.
    has_variants: bool = False
    # Whether it runs those as the plain layer, and no other cases: what an option's cost refers to.
    runs_plain: bool = False

    def own_case(self, case: Case) -> Case:
        """What this peer computes of a case."""
        return replace(case, variant="plain") if self.runs_plain and case.variant else case

    def missing(self) -> str:
        """Why this peer cannot run here; empty if it can."""
        absent = [name for name in self.requires if find_spec(name) is None]
        return f"not installed: {', '.join(absent)} ({self.hint})" if absent else ""


_ALL = (
    Peer(
        "fused",
        "FusedLSTM",
        "fused",
        ("torch", "lstm_fused"),
        hint="pip install .",
        has_variants=True,
    ),
    Peer("nn", "nn.LSTM", "nn_lstm", has_variants=True),
    Peer("nn-plain", "nn.LSTM, no oneDNN/cuDNN", "nn_plain"),
    Peer("cell-loop", "LSTMCell loop", "cell_loop"),
    Peer("compiled-loop", "torch.compile of the loop", "compiled_loop", has_variants=True),
    Peer("onnxruntime", "ONNX Runtime", "onnx_runtime", ("onnx", "onnxruntime"), ("cpu",)),
    Peer("openvino", "OpenVINO", "open_vino", ("onnx", "openvino"), ("cpu",)),
    Peer("jax", "JAX scan", "jax_scan", ("jax",), ("cpu",), pinned=True),
    Peer("fused-int8", "QuantizedLSTM int8", "fused_int8", ("torch", "lstm_fused"), weight_bytes=1),
    Peer(
        "fused-bfloat16",
        "QuantizedLSTM bfloat16",
        "fused_bfloat16",
        ("torch", "lstm_fused"),
        weight_bytes=2,
    ),
    Peer(
        "fused-float16",
        "QuantizedLSTM float16",
        "fused_float16",
        ("torch", "lstm_fused"),
        weight_bytes=2,
    ),
    Peer("torch-int8", "torch dynamic int8", "torch_int8", ("torch",), ("cpu",), weight_bytes=1),
    Peer(
        "onnxruntime-int8",
        "ONNX Runtime int8",
        "onnx_runtime_int8",
        ("onnx", "onnxruntime"),
        ("cpu",),
        weight_bytes=1,
    ),
    Peer(
        "openvino-int8", "OpenVINO int8", "open_vino_int8", ("openvino",), ("cpu",), weight_bytes=1
    ),
    Peer("ncnn-int8", "ncnn int8", "ncnn_int8", ("ncnn",), ("cpu",), weight_bytes=1),
    # NOTE: 4: what MNN reads in a call; the 8 bits are its file's.
    Peer("mnn-int8", "MNN int8", "mnn_int8", ("onnx", "MNN"), ("cpu",), weight_bytes=4),
    Peer(
        "haste",
        "haste",
        "haste_lstm",
        ("torch", "haste_pytorch"),
        ("cuda",),
        "build it from github.com/lmnt-com/haste",
    ),
    Peer(
        "flashrnn",
        "FlashRNN",
        "flash_rnn",
        ("torch", "flashrnn"),
        ("cuda",),
        "pip install flashrnn",
    ),
    Peer(
        "fused-plain",
        "FusedLSTM, plain",
        "fused",
        ("torch", "lstm_fused"),
        hint="pip install .",
        has_variants=True,
        runs_plain=True,
    ),
)

PEERS = {peer.name: peer for peer in _ALL}
