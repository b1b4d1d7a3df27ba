"""A rack of devices: what is measured on different ones is measured at once, with a thread for each device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

import torch

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.errors import DeployPruneError
from deploy_prune.system import guard
from deploy_prune.types import Progress, Target

T = TypeVar("T")
END_S: Final = 3.0
"""Threads that are told to stop are waited for so long."""


class StoppedError(BaseException):
    """A thread of the rack was told to stop; of a kind that nothing catches on the way."""


Work = tuple[Target, Callable[[CandidateCosts], T]]
"""A target, and what is to be done for it."""


def at_once(costs: CandidateCosts, works: Sequence[Work[T]], jobs: int) -> Generator[T | DeployPruneError, None, None]:
    """What comes of each work in turn, or its error; on different devices at once, at most ``jobs``.

    A target with several devices has as many works at once. With one job or one device, a work begins when it is asked
    for. Close the iterator to end the others.
    """
    places = _places([target for target, _ in works])
    num_threads = min(jobs, sum(places.values()), len(works))
    if num_threads <= 1:
        for _, work in works:
            try:
                yield work(costs)
            except DeployPruneError as error:
                yield error
        return
    rack = _Rack(costs=costs, left=[(*work, Future()) for work in works], free=places)
    outcomes = [outcome for _, _, outcome in rack.left]
    threads = [threading.Thread(target=rack.run, daemon=True) for _ in range(num_threads)]
    try:
        with torch.random.fork_rng(devices=[]):  # threads share torch's generator
            for thread in threads:
                thread.start()
            for outcome in outcomes:
                yield outcome.result()
    except BaseException:  # an interrupt, a fault in a thread, or nobody asks any more
        rack.end(threads)
        raise


def num_devices(targets: Sequence[Target]) -> int:
    """On how many devices these targets can be measured at once; those without one count as one."""
    return sum(_places(targets).values())


def _places(targets: Sequence[Target]) -> dict[str | None, int]:
    """By runner, how many may be at work there at once."""
    places: dict[str | None, int] = {}
    for target in targets:
        places[target.runner] = max(1, len(target.devices), places.get(target.runner, 0))
    return places


@dataclass(frozen=True, kw_only=True)
class _Rack(Generic[T]):
    """What the threads share: works that nobody is at yet, devices that are free, and whether all is to stop."""

    costs: CandidateCosts
    left: list[tuple[Target, Callable[[CandidateCosts], T], Future[T | DeployPruneError]]]
    free: dict[str | None, int]
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def run(self) -> None:
        """A thread: one work after the other, as long as there is one with a free device."""
        costs = replace(self.costs, progress=self._told(self.costs.progress))
        while not self.stop.is_set() and (taken := self._take()) is not None:
            target, work, outcome = taken
            try:
                outcome.set_result(work(costs))
            except DeployPruneError as error:
                outcome.set_result(error)
            except BaseException as error:  # noqa: BLE001  (raised where the outcome is asked for)
                outcome.set_exception(error)
            finally:
                with self.lock:
                    self.free[target.runner] += 1

    def _take(self) -> tuple[Target, Callable[[CandidateCosts], T], Future[T | DeployPruneError]] | None:
        """The first work with a free device. None: whoever has the device goes on with what is left for it."""
        with self.lock:
            for place, (target, _, _) in enumerate(self.left):
                if self.free[target.runner]:
                    self.free[target.runner] -= 1
                    return self.left.pop(place)
        return None

    def _told(self, progress: Progress) -> Progress:
        def tell(work: str, done: int, total: int, **figures: float) -> None:
            if self.stop.is_set():
                raise StoppedError
            with self.lock:
                progress(work, done, total, **figures)

        return tell

    def end(self, threads: Sequence[threading.Thread]) -> None:
        """Nothing is left running: threads stop at their next step, and what they wait for is ended."""
        self.stop.set()
        until = time.monotonic() + END_S
        while any(thread.is_alive() for thread in threads) and time.monotonic() < until:
            guard.end_all()
            threads[0].join(0.1)
