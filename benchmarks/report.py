# SPDX-License-Identifier: BSD-3-Clause
from pathlib import Path


def write_reports(results, path: Path):
    return []
