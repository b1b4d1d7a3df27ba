"""A rack of devices: what is measured on different ones is measured at once, with one thread for each device."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

import torch

from deploy_prune.budget.candidates import CandidateCosts
from deploy_prune.errors import DeployPruneError
from deploy_prune.run import stages
from deploy_prune.run.context import RunContext
from deploy_prune.system import guard
from deploy_prune.types import Progress, SearchResult, Target

T = TypeVar("T")
END_S: Final = 3.0
"""Threads that are told to stop are waited for so long."""


class StoppedError(BaseException):
    """A thread of the rack was told to stop; of a kind that nothing catches on the way."""


def at_once(
    costs: CandidateCosts, targets: Sequence[Target], jobs: int, work: Callable[[CandidateCosts, Target], T]
) -> Generator[T | DeployPruneError, None, None]:
    """What ``work`` gives for each target in turn, or its error; different devices at once, at most ``jobs``.

    With one job or one device, a target's work begins when it is asked for. Close the iterator to end the others.
    """
    devices: dict[str | None, list[Target]] = {}
    for target in targets:
        devices.setdefault(target.runner, []).append(target)
    if min(jobs, len(devices)) <= 1:
        for target in targets:
            try:
                yield work(costs, target)
            except DeployPruneError as error:
                yield error
        return
    rack = _Rack(costs=costs, work=work)
    for each in devices.values():
        rack.devices.put(each)
    threads = [threading.Thread(target=rack.run, daemon=True) for _ in range(min(jobs, len(devices)))]
    try:
        with torch.random.fork_rng(devices=[]):  # threads share torch's generator
            for thread in threads:
                thread.start()
            for target in targets:
                yield rack.outcome(target).result()
    except BaseException:  # an interrupt, a fault in a thread, or nobody asks any more
        rack.end(threads)
        raise


@dataclass(frozen=True, kw_only=True)
class _Rack(Generic[T]):
    """What the threads share: devices that nobody is at yet, outcomes, and whether all is to stop."""

    costs: CandidateCosts
    work: Callable[[CandidateCosts, Target], T]
    devices: queue.Queue[list[Target]] = field(default_factory=queue.Queue)
    stop: threading.Event = field(default_factory=threading.Event)
    outcomes: dict[str, Future[T | DeployPruneError]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def outcome(self, target: Target) -> Future[T | DeployPruneError]:
        """What comes of a target."""
        with self.lock:
            return self.outcomes.setdefault(target.name, Future())

    def run(self) -> None:
        """A thread: one device after the other, as long as there are any."""
        costs = replace(self.costs, progress=self._told(self.costs.progress))
        while not self.devices.empty() and not self.stop.is_set():
            try:
                targets = self.devices.get_nowait()
            except queue.Empty:
                return
            for target in targets:
                try:
                    self.outcome(target).set_result(self.work(costs, target))
                except DeployPruneError as error:
                    self.outcome(target).set_result(error)
                except BaseException as error:  # noqa: BLE001  (raised where the outcome is asked for)
                    self.outcome(target).set_exception(error)

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


def look_ahead(context: RunContext, costs: CandidateCosts, found: tuple[str, SearchResult]) -> None:
    """Plan every target and budget that is not planned yet, different devices at once; what was measured is kept.

    The plans themselves are made one after the other later, and find all that they measure in the cache. So do errors:
    who meets one again tells of it.
    """

    def plan(costs: CandidateCosts, target: Target) -> None:
        for budget in context.recipe.parsed_budgets:
            if not stages.is_planned(context, costs, found, target, budget):
                stages.choose_channels(context, costs, found, target, budget)

    if context.jobs > 1:
        with closing(at_once(costs, context.targets, context.jobs, plan)) as outcomes:
            for _ in outcomes:
                pass
