# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark runner: `python -m benchmarks`. README.md gives the method.

This package never asserts and the tests never time. Nothing but the workers (`worker`, `verifier`,
`peers`) imports torch, so that the runner's process stays small and idle while they compute.
"""
