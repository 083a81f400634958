# SPDX-License-Identifier: BSD-3-Clause
"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "lstm_fused",
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "ncnn",
    "MNN",
    "jax",
    "jaxlib",
    "haste_pytorch",
    "flashrnn",
)
# Prefixes of environment variables that choose other kernels than a reader would expect.
PREFIXES = (
    "LSTM_FUSED_",
    "ONEDNN_",
    "DNNL_",
    "MKL_",
    "OMP_",
    "KMP_",
    "GOMP_",
    "XLA_",
    "TORCH_",
)


def machine_facts() -> dict[str, Any]:
    """Facts that need no torch; `device_facts` of a worker gives the rest."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": _caches(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": commit(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES)},
        "load": load_average(),
    }


def load_average() -> list[float]:
    """Running processes, the mean of 1, 5 and 15 minutes: above the cores, figures are noise."""
    return [round(value, 2) for value in os.getloadavg()]


def busy_seconds() -> float:
    """Seconds that all cores together have worked since the start of the machine.

    Time that a hypervisor gave to other machines counts as worked.
    """
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, fields)
    worked = user + nice + system + interrupts + soft + stolen
    return worked / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """Seconds that a process has worked, all its threads together."""
    try:
        # The name, in brackets, may hold blanks.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def commit() -> str:
    """The commit of this checkout, with a plus if files differ from it. Without git, or where that
    is of a folder around this tree, it is what LSTM_FUSED_COMMIT says, or "unknown"."""
    root = Path(__file__).resolve().parents[1]
    told = os.environ.get("LSTM_FUSED_COMMIT") or "unknown"
    if not (root / ".git").exists():
        return told

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        found = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except OSError:  # there is no git
        found = changed = ""
    if not found:
        return told
    return found + "+" * bool(changed)


def device_facts(device: str) -> dict[str, Any]:
    """What torch and lstm_fused say of themselves and of the device; runs in a worker."""
    import torch

    facts: dict[str, Any] = {"device": device, "torch_threads": torch.get_num_threads()}
    facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    try:
        import lstm_fused

        facts["lstm_fused"] = lstm_fused.build_info()
    except ImportError as error:
        facts["lstm_fused"] = str(error)
    if device != "cpu":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts["gpu"] = properties.name
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
        facts["multiprocessors"] = properties.multi_processor_count
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return facts


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def _caches() -> dict[str, str]:
    """Sizes as the system states them, of the first CPU: {"L1d": "32K", ...}."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}" + "d" * (level == "1")] = size
    return found
