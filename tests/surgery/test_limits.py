"""The time limit: in any thread, of any code, and gone afterwards."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from deploy_prune.errors import SurgeryError
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.surgery.groups import find_groups
from deploy_prune.surgery.limits import LimitError, time_limit


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(5)
        return x


def test_the_time_limit_ends_tracing_with_a_clear_error() -> None:
    started = time.perf_counter()
    with pytest.raises(SurgeryError, match=r"longer than 0\.5 s.*trace_timeout_s"):
        find_groups(Slow(), (torch.zeros(1),), PrunePart(trace_timeout_s=0.5))
    assert time.perf_counter() - started < 3


HANGS = """
import itertools
import torch
from deploy_prune.recipe.parts import PrunePart
from deploy_prune.surgery.groups import find_groups

class Hangs(torch.nn.Module):
    def forward(self, x):
        return x + sum(itertools.repeat(1, 10**12))

find_groups(Hangs(), (torch.zeros(1),), PrunePart(trace_timeout_s=0.5))
"""


def test_a_call_of_compiled_code_that_hangs_ends_the_process_and_says_where() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "Timeout (0:00:02" in done.stderr
    assert "in forward" in done.stderr


def test_the_time_limit_is_gone_afterwards() -> None:
    find_groups(nn.Linear(2, 2), (torch.zeros(1, 2),), PrunePart(trace_timeout_s=0.5))
    time.sleep(1.2)


class Busy(nn.Module):
    """Python code that goes on for long, and takes errors for nothing."""

    def forward(self, x: Tensor) -> Tensor:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                x = x + 1
                time.sleep(0.01)
            except Exception:
                break
        return x


def limited(seconds: float) -> float:
    """How long it took until the limit was told."""
    started = time.monotonic()
    with pytest.raises(SurgeryError, match=rf"longer than {seconds:g} s.*trace_timeout_s"):
        find_groups(Busy(), (torch.zeros(1),), PrunePart(trace_timeout_s=seconds))
    return time.monotonic() - started


def test_the_time_limit_holds_in_threads() -> None:
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(limited, 0.5).result() < 5


def test_threads_have_limits_of_their_own() -> None:
    def wait(limit: float, needs: float) -> bool:
        try:
            with time_limit(limit, "Waiting"):
                until = time.monotonic() + needs
                while time.monotonic() < until:
                    time.sleep(0.01)
        except LimitError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(wait, (0.3, 20, 0.3, 20), (3, 0.6, 0.1, 0.1)))
    assert done == [False, True, True, True]


def test_the_time_limit_of_a_thread_is_gone_afterwards() -> None:
    def work() -> int:
        for _ in range(200):  # it may end while the limit is told
            try:
                with time_limit(0.002, "Waiting"):
                    until = time.monotonic() + 0.002
                    while time.monotonic() < until:
                        pass
            except LimitError:
                pass
        steps, until = 0, time.monotonic() + 0.2
        while time.monotonic() < until:
            steps += 1
        return steps

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(work).result() > 0
    assert threading.active_count() < 10
