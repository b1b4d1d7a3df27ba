"""Two processes are one with twice as many batches a step; of one that fails, the error comes back."""

import os
import signal
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from together import JOBS, STEPS, all_jobs, do, failing, going_on

from deploy_prune.errors import DataError, TrainingError
from deploy_prune.training import processes
from deploy_prune.training.processes import LEFT, run_together

CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes make of every job, and what they told meanwhile."""
    file, heard = tmp_path_factory.mktemp("together") / "found", []
    run_together(2, all_jobs, [str(file)], lambda *what: heard.append(what), "cpu")
    return torch.load(file, weights_only=False), heard


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_are_one_with_twice_the_batches(together, name):
    found, alone = together[0][name], do(name, accumulate=2)
    for kind in {"state", "running", "scores"} & alone.keys():
        assert found[kind].keys() == alone[kind].keys()
        for key, tensor in alone[kind].items():
            torch.testing.assert_close(found[kind][key], tensor, **CLOSE, msg=lambda told, key=key: f"{key}: {told}")
    for kind in {"score", "held", "chosen"} & alone.keys():
        assert found[kind] == alone[kind]
    assert len(found.get("trace", range(STEPS))) == STEPS
    for mine, other in zip(found.get("trace", ()), alone.get("trace", ()), strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    assert found.get("losses", ()) == pytest.approx(alone.get("losses", ()), abs=1e-5)


def test_the_first_process_alone_tells(together):
    assert together[1] == [("progress", name, number + 1, len(JOBS)) for number, name in enumerate(JOBS)]


@pytest.mark.slow
def test_killed_they_go_on_as_if_they_had_not_been(tmp_path):
    def train(name, stop=0):
        told.clear()
        given = [str(tmp_path / f"{name}.kept"), str(tmp_path / name), stop]
        run_together(2, going_on, given, lambda kind, what: told.append(what), "cpu")

    told = []
    train("whole")
    with pytest.raises(TrainingError, match="SIGKILL"):
        train("stopped", stop=STEPS - 1)
    assert not (tmp_path / "stopped").exists()
    train("stopped")
    assert told == [f"train goes on at step {STEPS - 1} of {STEPS}", STEPS - 1, STEPS]
    whole, stopped = (torch.load(tmp_path / name, weights_only=True) for name in ("whole", "stopped"))
    assert stopped["losses"] == whole["losses"]
    assert all(torch.equal(stopped["state"][name], x) for name, x in whole["state"].items())


@pytest.mark.parametrize(
    ("how", "rank", "error", "sentence"),
    [
        ("error", 1, DataError, r"^data\.root: picture 3 can't be read\.$"),
        ("killed", 0, TrainingError, r"^Process 1 of the 2 that train together was ended by SIGKILL; if memory ran"),
    ],
)
def test_a_process_that_fails_ends_all_with_its_error(how, rank, error, sentence):
    before, failed = set(psutil.pids()), []
    with pytest.raises(error, match=sentence):
        run_together(2, failing, [how, rank], lambda *_: failed.append(time.monotonic()), "cpu")
    assert time.monotonic() - failed[0] < 30
    assert not [pid for pid in ours() if pid not in before]


@pytest.mark.parametrize(
    ("codes", "number"), [((LEFT, -9), 2), ((1, LEFT), 1), ((None, LEFT, 3), 3), ((LEFT, LEFT), 1)]
)
def test_who_ended_because_another_had_is_not_the_cause(codes, number, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.0)
    assert str(processes._cause(ended(codes, tmp_path))).startswith(f"Process {number} of the 3 that train together ")


def ended(codes, folder):
    """Processes that ended with these codes, or still run (None)."""
    (folder / "log").touch()
    return [
        processes._Rank(
            number=i, size=3, process=SimpleNamespace(poll=lambda code=code: code, returncode=code),
            error=folder / "none", log=folder / "log",
        )
        for i, code in enumerate(codes)
    ]  # fmt: skip


@pytest.mark.timeout(30)
def test_the_first_one_need_not_end_for_the_end_of_another_to_be_seen(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with pytest.raises(TrainingError, match="Process 2 of the 3 .* ended by SIGKILL"):
        processes._follow(reading, ended((None, -9, None), tmp_path), print)
    for end in (reading, writing):
        os.close(end)


def ours():
    """The processes that train together, on this machine."""
    found = []
    for process in psutil.process_iter():
        try:
            found += [process.pid] if processes.START in process.cmdline() else []
        except psutil.Error:  # it has just ended
            continue
    return found


def test_nothing_is_left_of_them_if_this_process_is_killed(tmp_path, monkeypatch):
    start = f"import os, time; open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w'); time.sleep(600)"
    monkeypatch.setattr(processes, "START", start)
    child = os.fork()
    if child == 0:
        try:
            run_together(2, print, [], print, "cpu")
        finally:
            os._exit(1)
    wait(lambda: len(list(tmp_path.iterdir())) == 2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait(lambda: not ours())


def wait(until):
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)
