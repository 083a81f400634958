# SPDX-License-Identifier: BSD-3-Clause
"""PTX, the assembly text that nvcc emits, to C++ for the runtime beside this package."""

from .emitter import Translation, translate
from .mutate import Mutation, find_mutations, mutations
from .syntax import PtxError

__all__ = ["Mutation", "PtxError", "Translation", "find_mutations", "mutations", "translate"]
