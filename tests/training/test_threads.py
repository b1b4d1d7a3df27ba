"""Training takes the cores that other programs leave, and nobody else's settings are touched."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from click.testing import CliRunner
from tiny_run import tiny_recipe

from deploy_prune.cli import main
from deploy_prune.errors import DeployPruneError
from deploy_prune.run import pipeline
from deploy_prune.run.context import prepare
from deploy_prune.run.folder import RunFolder
from deploy_prune.training import threads
from deploy_prune.training.threads import (
    FIRST_LOOK_S,
    LOOK_EVERY_S,
    ProcessorTime,
    SharedCores,
    share_cores,
    threads_for,
)
from deploy_prune.types import silent

BUSY = "while True: pass"


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    """Two cores and two threads, which nobody has set; afterwards as many threads as before."""
    for name in threads.OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_cores", lambda: [0, 1])
    monkeypatch.setattr(threads.joblib, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("most", "now", "others", "then"),
    [
        (2, 2, 0.1, 2),
        (2, 2, 0.5, 1),  # a busy process beside a spinning thread
        (2, 2, 2.0, 1),
        (2, 1, 1.3, 1),  # beside one thread of ours
        (2, 1, 0.1, 2),  # it has gone
        (2, 1, 0.35, 1),  # neither busy nor idle: as before
        (2, 2, 0.35, 2),
        (1, 1, 1.0, 1),
        (4, 2, 0.1, 2),  # on two cores
    ],
)
def test_on_two_cores(most, now, others, then):
    assert threads_for(most, now, 2 - others) == min(most, then)


@pytest.mark.parametrize(("others", "then"), [(0.2, 16), (1, 15), (4, 12), (8, 8), (12, 8), (16, 8)])
def test_at_least_half_where_all_cores_are_busy(others, then):
    assert threads_for(16, 16, 16 - others) == then
    assert threads_for(16, then, 16 - others) == then


class Machine:
    """Two cores on which we and others work so much; its clock is moved by hand."""

    def __init__(self):
        self.at_s = self.all_s = self.own_s = 0.0

    def pass_by(self, seconds, others, own=1.0):
        self.at_s += seconds
        self.own_s += own * seconds
        self.all_s += (others + own) * seconds

    def look(self):
        return ProcessorTime(at_s=self.at_s, all_s=self.all_s, own_s=self.own_s)


def adapted(machine, told):
    return SharedCores(silent, told.append, machine.look, lambda: machine.at_s)


def test_a_load_that_comes_and_goes():
    machine, told, taken = Machine(), [], []
    progress = adapted(machine, told)
    for others in (0.1, 0.1, 1.0, 1.4, 0.1, 0.1):
        machine.pass_by(LOOK_EVERY_S, others)
        progress("train", 1, 9, loss=1.0)
        taken.append(torch.get_num_threads())
    assert taken == [2, 2, 1, 1, 2, 2]
    assert told == [
        "2 cores, 0.1 in use by others: training with 2 threads",
        "2 cores, 1.0 in use by others: training with 1 thread",
        "2 cores, 0.1 in use by others: training with 2 threads",
    ]


def test_what_our_children_did_before_is_no_other_load():
    machine, told = Machine(), []
    progress = adapted(machine, told)
    machine.pass_by(LOOK_EVERY_S, others=0.0, own=2.0)
    progress("train", 1, 9, loss=1.0)
    assert told == ["2 cores, 0.0 in use by others: training with 2 threads"]


def test_training_begins_with_what_was_seen_before_it_and_looks_are_few():
    machine, told, looks = Machine(), [], []
    progress = SharedCores(silent, told.append, lambda: looks.append(1) or machine.look(), lambda: machine.at_s)
    machine.pass_by(60, others=2.0)
    progress("find the channel groups", 0, 1)
    assert torch.get_num_threads() == 1
    for _ in range(10):
        machine.pass_by(LOOK_EVERY_S / 11, others=0.0)
        progress("train", 2, 9, loss=1.0)
    assert len(looks) == 2


def test_no_decision_from_a_moment():
    machine, told = Machine(), []
    progress = adapted(machine, told)
    machine.pass_by(FIRST_LOOK_S / 2, others=2.0)
    progress("train", 1, 9, loss=1.0)
    assert not told
    machine.pass_by(FIRST_LOOK_S, others=2.0)
    progress("train", 2, 9, loss=1.0)
    assert len(told) == 1


def test_the_progress_is_told_on():
    seen = []
    SharedCores(lambda *args, **figures: seen.append((args, figures)), seen.append)("train", 1, 9, loss=1.0)
    assert seen == [(("train", 1, 9), {"loss": 1.0})]


def test_a_container_with_less_than_all_cores(monkeypatch):
    monkeypatch.setattr(threads.joblib, "cpu_count", lambda: 1)
    machine, told = Machine(), []
    progress = adapted(machine, told)
    machine.pass_by(LOOK_EVERY_S, others=0.0)
    progress("train", 1, 9, loss=1.0)
    assert torch.get_num_threads() == 1


CPU = torch.device("cpu")


@pytest.mark.parametrize("name", threads.OWN_SETTINGS)
def test_the_environment_decides(name, monkeypatch):
    monkeypatch.setenv(name, "2")
    assert share_cores(silent, None, CPU, print) is silent


def test_the_recipe_decides():
    assert share_cores(silent, 1, CPU, print) is silent
    assert torch.get_num_threads() == 1


def test_from_python_and_on_a_gpu_nothing_changes():
    assert share_cores(silent, None, CPU, None) is silent
    assert share_cores(silent, None, torch.device("cuda"), print) is silent
    assert torch.get_num_threads() == 2
    assert isinstance(share_cores(silent, None, CPU, print), SharedCores)


def test_a_run_says_what_was_decided(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threads, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(pipeline, "_run_stages", lambda opened: opened[0][0].session.progress("train", 0, 1))
    pipeline.run(tiny_recipe(threads=None), tmp_path, tell_threads=told.append)
    assert len(told) == 1
    assert re.fullmatch(r"2 cores, \d\.\d in use by others: training with [12] threads?", told[0])


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_the_command_line_adapts_also_where_it_says_nothing(quiet, monkeypatch):
    def run(*args, tell_threads, **others):
        tell_threads("2 cores")
        raise DeployPruneError

    monkeypatch.setattr(pipeline, "run", run)
    done = CliRunner().invoke(main, ["recipe", "quickstart", *quiet])
    assert ("2 cores" in done.stderr) == (not quiet)


@pytest.mark.parametrize(("asked", "tell"), [(1, print), (None, None)])
def test_a_run_leaves_threads_alone(asked, tell, tmp_path):
    context = prepare(tiny_recipe(threads=asked), RunFolder(path=tmp_path), silent, tell_threads=tell)
    assert context.session.progress is silent
    assert torch.get_num_threads() == (asked or 2)


def test_work_of_children_is_our_own_while_they_live_and_afterwards():
    before = threads.processor_time()
    with subprocess.Popen([sys.executable, "-c", BUSY]) as child:
        while sum(psutil.Process(child.pid).cpu_times()[:2]) < 0.5:
            pass
        alive = threads.processor_time()
        child.kill()
    after = threads.processor_time()
    assert alive.own_s - before.own_s >= 0.5
    assert after.own_s >= alive.own_s


def test_a_busy_process_a_core_is_seen(monkeypatch):
    monkeypatch.undo()
    cores = threads._cores()
    started = f"{sys.executable} -c '{BUSY}' >/dev/null 2>&1 & echo $!"  # by a shell that ends, so that it isn't ours
    others = [subprocess.check_output(["sh", "-c", started], text=True) for _ in cores]
    try:
        before = threads.processor_time()
        time.sleep(1)
        after = threads.processor_time()
    finally:
        for pid in others:
            os.kill(int(pid), signal.SIGKILL)
    used = (after.all_s - before.all_s) - (after.own_s - before.own_s)
    assert 0.8 * len(cores) < used / (after.at_s - before.at_s) <= 1.1 * len(cores)
