# SPDX-License-Identifier: BSD-3-Clause
"""The C interface: programs in C, as their authors build them."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lstm_fused
from lstm_fused import FusedLSTM, load_stream, save_stream

PACKAGE = Path(lstm_fused.__file__).parent
INCLUDE, LIBRARY = PACKAGE / "include", PACKAGE / "lib" / "liblstm_fused.so"
PROGRAMS = Path(__file__).parent / "c_programs"
LINK = (LIBRARY, f"-Wl,-rpath,{LIBRARY.parent}")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1")

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or not LIBRARY.exists(), reason="needs gcc and the C library"
)


def build(directory: Path) -> Path:
    program = directory / "all_calls"
    source = PROGRAMS / "all_calls.c"
    subprocess.run(["gcc", *STRICT, f"-I{INCLUDE}", source, "-o", program, *LINK], check=True)
    return program


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A program that calls everything, and the library that watches it."""
    directory = tmp_path_factory.mktemp("c")
    watch = directory / "watch_calls.so"
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", PROGRAMS / "watch_calls.c", "-o", watch, "-ldl"],
        check=True,
    )
    return build(directory), watch


def run(
    program: Path, file: Path, x: torch.Tensor, watch: Path | None = None, **environment: str
) -> torch.Tensor:
    if watch is not None:
        environment["LD_PRELOAD"] = str(watch)
    done = subprocess.run(
        [program, file, str(x.shape[1]), str(x.shape[0])],
        input=x.numpy().tobytes(),
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    return torch.from_numpy(np.frombuffer(done.stdout, np.float32).copy()).view(*x.shape[:2], -1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("weights", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2}, {"num_layers": 2, "proj_size": 6}], ids=str
)
def test_a_c_program_gives_the_bits_of_python_and_calls_nothing(
    options: dict[str, Any],
    weights: torch.dtype,
    batch: int,
    built: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    module = FusedLSTM(3, 20, **options)
    head = nn.Linear(options.get("proj_size", 20), 2) if options else None
    save_stream(module, tmp_path / "a", head=head, weights=weights)
    x = torch.randn(9, batch, 3)
    wanted = load_stream(tmp_path / "a", batch).run(x)
    assert torch.equal(run(built[0], tmp_path / "a", x, built[1]), wanted)


@pytest.mark.parametrize("hidden_size", [1, 64, 300])
@pytest.mark.parametrize(
    "weights", [torch.float32, torch.float16, torch.bfloat16, torch.int8], ids=str
)
def test_every_size_calls_nothing(
    weights: torch.dtype, hidden_size: int, built: tuple[Path, Path], tmp_path: Path
) -> None:
    x = torch.randn(5, 8, 1)
    for proj_size in (0, hidden_size // 4):
        module = FusedLSTM(1, hidden_size, proj_size=proj_size)
        save_stream(module, tmp_path / "a", weights=weights)
        wanted = load_stream(tmp_path / "a", 8).run(x)
        assert torch.equal(run(built[0], tmp_path / "a", x, built[1]), wanted)


def test_the_watch_sees_an_allocation(built: tuple[Path, Path], tmp_path: Path) -> None:
    source = tmp_path / "allocates.c"
    source.write_text(
        "#include <stdlib.h>\nextern int watch_calls __attribute__((weak));\n"
        "int main(void) { void* p; if (&watch_calls) watch_calls = 1; p = malloc(3); "
        "free(p); return p == 0; }\n"
    )
    subprocess.run(["gcc", "-O0", source, "-o", tmp_path / "allocates"], check=True)
    done = subprocess.run(
        [tmp_path / "allocates"],
        env={**os.environ, "LD_PRELOAD": str(built[1])},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (97, b"malloc was called\n")


def test_many_streams_run_in_many_threads(tmp_path: Path) -> None:
    """Through ctypes, which gives up Python's lock."""
    from concurrent.futures import ThreadPoolExecutor

    torch.manual_seed(0)
    save_stream(FusedLSTM(2, 32), tmp_path / "a")
    library = ctypes.CDLL(str(LIBRARY))
    x = torch.randn(500, 1, 2)
    wanted = load_stream(tmp_path / "a").run(x)
    first = ctypes.c_void_p()
    path = str(tmp_path / "a").encode()
    assert library.lstm_fused_open(path, ctypes.c_int64(1), ctypes.byref(first)) == 0

    def work(_: int) -> bool:
        own, y = ctypes.c_void_p(), torch.empty(500, 1, 32)
        assert library.lstm_fused_clone(first, ctypes.byref(own)) == 0
        addresses = [ctypes.c_void_p(t.data_ptr()) for t in (x, y)]
        assert library.lstm_fused_run(own, ctypes.c_int64(500), *addresses) == 0
        library.lstm_fused_destroy(own)
        return torch.equal(y, wanted)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))
    library.lstm_fused_destroy(first)


def test_a_status_says_whose_fault_it_is(tmp_path: Path) -> None:
    """The caller's, the file's or the memory's; the stream is null then."""
    save_stream(FusedLSTM(2, 32), tmp_path / "a")
    (tmp_path / "b").write_bytes(b"LSTM" * 20)
    library = ctypes.CDLL(str(LIBRARY))
    library.lstm_fused_last_error.restype = ctypes.c_char_p
    for name, batch, status, sentence in (
        ("a", 0, 1, "at least 1"),
        ("a", 2**63 - 1, 1, "too large"),
        ("a", 1 << 38, 4, "can't allocate memory"),
        ("b", 1, 3, "no file of a stream"),
        ("c", 1, 2, "cannot read"),
        (".", 1, 2, "cannot read"),
    ):
        stream = ctypes.c_void_p(1)
        path = str(tmp_path / name).encode()
        got = library.lstm_fused_open(path, ctypes.c_int64(batch), ctypes.byref(stream))
        assert (got, stream.value) == (status, None), name
        assert sentence in library.lstm_fused_last_error().decode()


def test_only_the_headers_names_are_exported() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", LIBRARY], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    declared = {
        word.split("(")[0]
        for word in (INCLUDE / "lstm_fused.h").read_text().replace("*", " ").split()
        if word.startswith("lstm_fused_") and "(" in word
    }
    assert names == declared
    needed = subprocess.run(
        ["readelf", "-d", LIBRARY], check=True, capture_output=True, text=True
    ).stdout
    assert "torch" not in needed and "python" not in needed and "libstdc++" not in needed


def test_cmake_finds_it(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(user C)\n"
        "find_package(lstm_fused 0.1 REQUIRED)\n"
        f"add_executable(all_calls {PROGRAMS / 'all_calls.c'})\n"
        "target_link_libraries(all_calls PRIVATE lstm_fused::lstm_fused)\n"
    )
    prefix = f"-DCMAKE_PREFIX_PATH={lstm_fused.cmake_prefix_path}"
    subprocess.run(["cmake", "-S", tmp_path, "-B", tmp_path / "build", prefix], check=True)
    subprocess.run(["cmake", "--build", tmp_path / "build"], check=True)
    save_stream(FusedLSTM(3, 20), tmp_path / "a")
    x = torch.randn(4, 1, 3)
    result = run(tmp_path / "build" / "all_calls", tmp_path / "a", x)
    assert torch.equal(result, load_stream(tmp_path / "a").run(x))


def test_cpp_takes_the_header(tmp_path: Path) -> None:
    source = tmp_path / "user.cpp"
    source.write_text("#include <lstm_fused.h>\nint main() { return !lstm_fused_version(); }\n")
    program = tmp_path / "user"
    subprocess.run(["g++", f"-I{INCLUDE}", source, "-o", program, *LINK], check=True)
    subprocess.run([program], check=True)
