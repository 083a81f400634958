# SPDX-License-Identifier: BSD-3-Clause
import sys

from benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
