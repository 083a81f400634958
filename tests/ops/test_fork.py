# SPDX-License-Identifier: BSD-3-Clause
"""Forked children compute, with the threads they had; and processes without a pool are left alone.

Each case is a process of its own, since a pool, once started, is there.
"""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

PREAMBLE = """
import os, sys, threading, time, traceback
import torch

def tasks():
    return len(os.listdir("/proc/self/task"))

def use_pool():
    before = tasks()
    torch.relu(torch.randn(3_000_000))
    assert tasks() > before, "torch has started no pool"

def sleep_in_a_thread():
    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()

def compute():
    import lstm_fused
    torch.manual_seed(0)
    module = lstm_fused.FusedLSTM(64, 192)
    x = torch.randn(60, 16, 64)
    y = module(x)[0]
    y.sum().backward()
    torch.relu(torch.randn(3_000_000))
    return y.detach()

def fork(child):
    \"\"\"Runs child() in a forked process; fails if it raises or does not end.\"\"\"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            return
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the forked child hangs")

# NOTE: torch.set_num_threads starts threads that are no pool.
COUNT = torch.get_num_threads()
if COUNT == 1:
    sys.exit(0)
"""


def run(program: str, **environment: str) -> None:
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's own, which come and go with forks
    }
    found = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | settings | environment,
    )
    assert found.returncode == 0, found.stderr


def test_sleeping_threads_are_no_pool() -> None:
    run("""
        import lstm_fused
        sleep_in_a_thread()

        def child():
            assert torch.get_num_threads() == COUNT
            compute()

        fork(child)
    """)


@pytest.mark.parametrize("first", ["use_pool()", "import lstm_fused; sleep_in_a_thread()"])
def test_children_of_a_process_with_a_pool_compute_with_all_threads(first: str) -> None:
    run(f"""
        {first}
        expected = compute()

        def child():
            assert torch.get_num_threads() == COUNT
            assert torch.equal(compute(), expected)
            fork(grandchild)

        def grandchild():
            assert torch.equal(compute(), expected)

        for _ in range(3):
            fork(child)
            assert torch.get_num_threads() == COUNT
            assert torch.equal(compute(), expected)
    """)


def test_fork_from_a_thread_that_has_a_pool_of_its_own() -> None:
    run("""
        use_pool()
        failed = []

        def work():
            try:
                expected = compute()
                fork(lambda: compute().sub_(expected).any() and sys.exit(1))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
            thread.join()
        assert not failed, failed
        compute()
    """)


def test_pool_that_a_fork_has_left_without_threads() -> None:
    """Forked before lstm_fused was there: its own forks must not wait for what is gone."""
    run("""
        use_pool()

        def child():
            import lstm_fused
            sleep_in_a_thread()
            fork(lambda: None)

        fork(child)
    """)


def test_without_a_call_to_end_pools_children_have_one_thread() -> None:
    run("""
        import lstm_fused
        lstm_fused._torch.fork._pause = None
        sleep_in_a_thread()

        def alone():
            assert torch.get_num_threads() == COUNT

        def child():
            assert torch.get_num_threads() == 1
            compute()

        fork(alone)
        use_pool()
        fork(child)
        torch.set_num_threads(1)
        fork(lambda: compute())
    """)


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_environment_turns_it_off(value: str) -> None:
    run(
        f"""
        import lstm_fused
        use_pool()
        before = tasks()
        fork(lambda: None)
        assert (tasks() == before) == ({value!r} == "0"), (before, tasks())
        """,
        LSTM_FUSED_FORK_GUARD=value,
    )
