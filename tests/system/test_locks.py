"""One command at a time writes in a folder; the second is told who is there, or waits."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy_prune.cli import main
from deploy_prune.errors import RunFolderError
from deploy_prune.run.folder import RunFolder
from deploy_prune.system import locks
from deploy_prune.system.locks import hold, one_at_a_time
from deploy_prune.system.shell import atomic

HOLDER = """
import sys, time
from pathlib import Path
from deploy_prune.system.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def held_by_another(folder, seconds=60.0):
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout.readline() == b"held\n"
    return process


def take(folder):
    with hold(folder):
        pass


def test_a_second_process_is_told_who_is_there(tmp_path):
    with held_by_another(tmp_path / "run") as process:
        with pytest.raises(RunFolderError, match=rf"process {process.pid} on '.+', since 20\d\d-") as raised:
            take(tmp_path / "run")
        assert str(tmp_path / "run") in str(raised.value)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        take(tmp_path / "run")


def test_a_second_thread_of_this_process_too(tmp_path):
    failures = []

    def second():
        try:
            take(tmp_path / "run")
        except RunFolderError as error:
            failures.append(error)

    with hold(tmp_path / "run"):
        take(tmp_path / "run")  # the same thread may
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert len(failures) == 1
    second()
    assert len(failures) == 1


def test_waiting_is_told_once_and_ends_when_the_other_does(tmp_path):
    told = []
    with held_by_another(tmp_path / "run", seconds=1), hold(tmp_path / "run", told.append):
        pass
    assert len(told) == 1
    assert "waiting for process" in told[0]


@pytest.mark.parametrize("command", ["recipe", "report"])
def test_a_command_ends_at_once_with_the_exit_code_of_run_folders(tmp_path, command):
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: quickstart\n")
    arguments = ["recipe", "quickstart", "--out", str(tmp_path)] if command == "recipe" else ["report", str(folder)]
    with held_by_another(folder) as process:
        started = time.monotonic()
        result = CliRunner().invoke(main, arguments)
        assert time.monotonic() - started < 5
        process.kill()
    assert result.exit_code == RunFolderError.exit_code
    assert f"process {process.pid}" in result.stderr


def test_it_is_free_again_after_an_error_and_an_empty_folder_is_gone(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "deep" / "run"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "run"):
        (tmp_path / "run" / "file").write_text("x")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"file", locks.LOCK}
    take(tmp_path / "run")


def test_a_place_that_can_not_be_locked_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(RunFolderError, match="can't be written or locked .Not a directory.; choose another with --out"):
        take(tmp_path / "file" / "run")


def test_opening_again_leaves_what_is_being_written(tmp_path):
    """And sweeps out what nobody is writing."""
    run = RunFolder(path=tmp_path / "run")
    run.open(fresh=False)
    left = run.path / "host" / ".writing-killed"
    left.mkdir(parents=True)
    with atomic(run.path / "host" / "50%" / "model.onnx") as temporary:
        temporary.write_bytes(b"x" * 10)
        RunFolder(path=run.path).open(fresh=False)
        assert not left.exists()
        temporary.write_bytes(b"x" * 20)
    assert (run.path / "host" / "50%" / "model.onnx").stat().st_size == 20


def test_work_of_one_key_is_done_by_one_after_the_other():
    inside, most = [0], [0]

    def work():
        with one_at_a_time("device", "a test's own"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_who_has_to_wait_is_told_once_and_nobody_else():
    told, entered, go_on = [], threading.Event(), threading.Event()

    def first():
        with one_at_a_time("device", "a test's own", wait=lambda: told.append("first")):
            entered.set()
            go_on.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    with one_at_a_time("device", "a test's own", wait=lambda: told.append("second") or go_on.set()):
        thread.join()
    assert told == ["second"]


def test_of_several_the_first_that_is_free_is_taken_and_none_twice():
    most, taken, inside, lock = [0], set(), set(), threading.Lock()

    def work():
        with one_at_a_time("device", "test/a", "test/b", "test/c") as key:
            with lock:
                assert key not in inside
                inside.add(key)
                taken.add(key)
                most[0] = max(most[0], len(inside))
            time.sleep(0.1)
            with lock:
                inside.remove(key)

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work) for _ in range(9)]:
            done.result()
    assert taken == {"test/a", "test/b", "test/c"}
    assert most == [3]
