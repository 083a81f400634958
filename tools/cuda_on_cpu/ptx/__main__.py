# SPDX-License-Identifier: BSD-3-Clause
"""Translate one file: ``python -m ptx kernels.ptx kernels.cpp``."""

import argparse
import sys
from pathlib import Path

from .emitter import translate
from .resources import parse_ptxas_log


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ptx", type=Path)
    parser.add_argument("cpp", type=Path)
    parser.add_argument("--name", default="", help="what messages call the module")
    parser.add_argument("--checked", action="store_true", help="call the race checker's hooks")
    parser.add_argument("--ptxas-log", type=Path, help="the output of ptxas -v for the kernels")
    options = parser.parse_args()
    log = options.ptxas_log.read_text() if options.ptxas_log else ""
    name = options.name or options.ptx.stem
    translation = translate(options.ptx.read_text(), name, options.checked, parse_ptxas_log(log))
    options.cpp.write_text(translation.cpp)
    for reason, count in translation.unsupported.items():
        print(f"{options.ptx}: unsupported, {count} times: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
