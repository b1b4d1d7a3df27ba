"""How many threads training runs on beside other programs.

Torch's threads wait for each other many times in a step, and spin while they wait. Where another program runs on one of
their cores, all of them wait for the thread that it keeps from running. So training leaves busy cores to others: with
one busy process per core, a step takes a fraction of the time (benchmarks/busy_training.py). Letting the threads
sleep instead of spin was tried and is worse: GOMP_SPINCOUNT=1000 costs 15% on a quiet machine, and with 20000 a step
takes twice as long as with the default beside one busy process on two cores.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import joblib
import psutil
import torch

from deploy_prune.types import Progress

LOOK_EVERY_S: Final = 5.0
"""The cores in use are averaged over this long; a look takes milliseconds."""
FIRST_LOOK_S: Final = 0.5
"""The first average is over what came before training, at least this long: processor times come in steps of 10 ms."""
BUSY: Final = 0.4
"""A core is left to others if they use more of it than this: beside a thread of ours, a busy process gets half."""
IDLE: Final = 0.3
"""A core is taken back if others use less of it than this."""
OWN_SETTINGS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Who has set one of these has decided already."""
Tell = Callable[[str], None]
_BUSY_TIMES: Final = ("user", "nice", "system", "irq", "softirq", "steal")


@dataclass(frozen=True, kw_only=True)
class ProcessorTime:
    """Seconds that the cores we may run on have worked until now, and how many of them for us and our children."""

    at_s: float
    all_s: float
    own_s: float


def processor_time() -> ProcessorTime:
    """As the system counts it. On a virtual machine what its host takes away counts as work for others."""
    each = psutil.cpu_times(percpu=True)
    mine = [each[core] for core in _cores() if core < len(each)]
    return ProcessorTime(
        at_s=time.monotonic(),
        all_s=sum(getattr(core, kind, 0.0) for core in mine for kind in _BUSY_TIMES),
        own_s=_own_s(),
    )


def _cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _own_s() -> float:
    """Of this process, and of its children and theirs, those that have ended too."""
    seconds = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            seconds += sum(child.cpu_times()[:4])
        except psutil.Error:  # it has just ended
            continue
    return seconds


def threads_for(most: int, now: int, free: float) -> int:
    """How many threads to go on with.

    Args:
        most: threads on a quiet machine.
        now: threads at present, which stay where a core is neither busy nor idle.
        free: cores that nobody else uses. Never fewer than half of ``most``: beside as many busy processes as there are
            cores, that is our fair share, and whoever takes what others leave gives them ever more.
    """
    fewest, highest = (min(most, max(math.floor(free + part), most // 2, 1)) for part in (IDLE, BUSY))
    return min(max(now, fewest), highest)


class SharedCores:
    """A progress that is told on, and that gives training as many threads as others leave cores."""

    def __init__(
        self,
        progress: Progress,
        tell: Tell,
        look: Callable[[], ProcessorTime] = processor_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._tell, self._look, self._clock = progress, tell, look, clock
        self._cores = len(_cores())
        self._most = min(torch.get_num_threads(), int(joblib.cpu_count()))  # a container may have less than all cores
        self._before, self._wait_s = look(), FIRST_LOOK_S

    def __call__(self, work: str, done: int, total: int, **figures: float) -> None:
        """Tell the progress; now and then, see whether another number of threads is better."""
        self._progress(work, done, total, **figures)
        if self._clock() - self._before.at_s >= self._wait_s:
            self._consider()

    def _consider(self) -> None:
        before, now = self._before, self._look()
        elapsed_s = now.at_s - before.at_s
        others = max(0.0, (now.all_s - before.all_s) - (now.own_s - before.own_s)) / elapsed_s
        is_first, self._before, self._wait_s = self._wait_s == FIRST_LOOK_S, now, LOOK_EVERY_S
        threads = threads_for(self._most, torch.get_num_threads(), self._cores - others)
        is_other = threads != torch.get_num_threads()
        if is_other:
            torch.set_num_threads(threads)
        if is_other or is_first:
            cores, noun = f"{self._cores} core{'s' * (self._cores != 1)}", f"thread{'s' * (threads != 1)}"
            self._tell(f"{cores}, {others:.1f} in use by others: training with {threads} {noun}")


def share_cores(progress: Progress, threads: int | None, device: torch.device, tell: Tell | None) -> Progress:
    """The progress of a training, with the number of threads set or, on a CPU and where nobody has set it, adapted.

    Args:
        progress: told of every step.
        threads: as the recipe has it.
        device: where training runs.
        tell: gets a sentence when the number of threads changes; None: it doesn't, unless the recipe has it.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    is_set = threads is not None or any(os.environ.get(name) for name in OWN_SETTINGS)
    if is_set or tell is None or device.type != "cpu":
        return progress
    return SharedCores(progress, tell)
