"""Several devices at once: outcomes in their order, and nothing left running at Ctrl-C."""

import os
import signal
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from deploy_prune.device.targets import load_target
from deploy_prune.errors import BudgetError
from deploy_prune.run import rack
from deploy_prune.system.shell import run_command
from deploy_prune.types import Progress, silent

TARGETS = tuple(
    replace(load_target("host"), name=f"board-{n}", runner=f"ssh://board-{n}", granularity=None) for n in range(4)
)


@dataclass(frozen=True)
class Costs:
    """All that the rack itself needs of a network's costs."""

    progress: Progress = silent


def each(targets, work):
    """The same work for each target."""
    return [(target, partial(work, target)) for target in targets]


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_outcomes_come_in_the_order_of_the_targets(jobs):
    most, inside, lock = [0], Counter(), threading.Lock()

    def work(target, costs):
        with lock:
            inside[target.runner] += 1
            assert inside[target.runner] == 1, "two at once on a device"
            most[0] = max(most[0], inside.total())
        if jobs > 1:
            torch.rand(1)
        time.sleep(0.3 if target is TARGETS[0] else 0.1)
        with lock:
            inside[target.runner] -= 1
        if target is TARGETS[1]:
            raise BudgetError(target.name)
        return target.name

    targets = [*TARGETS, replace(TARGETS[0], name="same-device")]
    state = torch.get_rng_state()
    with closing(rack.at_once(Costs(), each(targets, work), jobs)) as outcomes:
        found = [str(outcome) for outcome in outcomes]
    assert found == [target.name for target in targets]
    assert most[0] == min(jobs, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fault_of_the_program_is_raised_where_its_outcome_is_asked_for():
    def work(target, costs):
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        list(rack.at_once(Costs(), each(TARGETS, work), 4))


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_every_thread_and_what_they_wait_for():
    begun, threads, went_on = threading.Barrier(5), [], []

    def work(target, costs):
        threads.append(threading.current_thread())
        begun.wait(10)
        if target is TARGETS[0]:
            while True:  # at its next step it stops
                costs.progress("measure", 0, 1)
                time.sleep(0.01)
        run_command(["sleep", "60"], 60)
        went_on.append(target)

    def interrupt():
        begun.wait(10)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(rack.at_once(Costs(), each(TARGETS, work), 4))
    assert time.monotonic() - started < 8
    assert len(threads) == 4
    assert not any(thread.is_alive() for thread in threads)
    assert went_on == []
