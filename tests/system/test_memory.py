"""Memory: what is freed goes back to the system, though small blocks lie between."""

from __future__ import annotations

import subprocess
import sys

import pytest

FILL = """
import sys
from contextlib import nullcontext
from deploy_prune.system.memory import large_blocks_given_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def fill():
    kept = []
    for _ in range(40):
        wide = [bytearray(8 << 20) for _ in range(8)]
        kept.append([bytearray(60_000) for _ in range(8)])
    return kept

bytearray(30 << 20)  # the threshold moves up
before = resident()
with large_blocks_given_back() if sys.argv[1] == "back" else nullcontext():
    kept = fill()
print(resident() - before)
"""


def grown(how: str) -> float:
    """Megabytes that are resident after the work, of which 19 are kept."""
    done = subprocess.run([sys.executable, "-c", FILL, how], capture_output=True, text=True, check=True, timeout=60)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="made for glibc")
def test_large_blocks_go_back_to_the_system() -> None:
    assert grown("back") < 30 < grown("kept")
