# SPDX-License-Identifier: BSD-3-Clause
"""Builds the extension modules of lstm_fused with CMake and ninja. Metadata is in pyproject.toml.

Environment:
  MAX_JOBS          how many compilers run at once (ninja's own choice if unset)
  LSTM_FUSED_DEBUG  1: a debug build, in a build directory of its own
  LSTM_FUSED_CUDA   auto (unset): build the CUDA kernels where nvcc >= 12.4 is found and torch is a
                    CUDA build; 1: build them or fail; 0: do not
  LSTM_FUSED_CUDA_ARCHS  their architectures, as CMake writes them: "80-real;90-real;90-virtual"
  CUDA_HOME         where nvcc is looked for first
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# An isolated build does not look for modules in the source tree.
sys.path.insert(0, str(ROOT))

from tools import extensions  # noqa: E402

# What CMake installs beside the extension modules: the ops for programs without Python, and the C
# library with what CMake's find_package looks for.
LIBRARIES = ("liblstm_fused_ops.so", "lib")


class CMakeBuild(build_ext):
    """Builds every extension in one CMake project."""

    def copy_extensions_to_source(self) -> None:  # of an editable install
        super().copy_extensions_to_source()
        for name in LIBRARIES:
            built, wanted = Path(self.build_lib, "lstm_fused", name), ROOT / "lstm_fused" / name
            copy = self.copy_tree if built.is_dir() else self.copy_file
            copy(str(built), str(wanted))

    def build_extensions(self) -> None:
        # CMake installs into <prefix>/lstm_fused, where setuptools expects the modules.
        extensions.build(Path(self.get_ext_fullpath("lstm_fused._C")).resolve().parent.parent)


def extension_names() -> list[str]:
    """What is to be built; without torch nothing is, but a source distribution can be made."""
    with_cuda = find_spec("torch") and extensions.with_cuda(extensions.find_torch())
    return ["lstm_fused._C", *(["lstm_fused._C_cuda"] if with_cuda else [])]


setup(
    ext_modules=[Extension(name, sources=[]) for name in extension_names()],
    cmdclass={"build_ext": CMakeBuild},
)
