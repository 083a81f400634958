# SPDX-License-Identifier: BSD-3-Clause
def available_isas() -> list[str]: ...
def best_isa() -> str: ...
def compiler() -> str: ...
def plan_text(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    directions: int,
    dtype: str,
    threads: int,
    backward: bool,
) -> str: ...
