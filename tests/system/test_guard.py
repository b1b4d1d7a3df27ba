"""A process that is killed leaves no child at work and no scratch folder behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy_prune.system import guard
from deploy_prune.system.guard import scratch

PARENT = """
import sys
from pathlib import Path
from deploy_prune.system import guard
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import atomic, run_command
def add(entry, before=guard.add):
    before(entry)
    if isinstance(entry, int):
        (Path(sys.argv[1]).parent / "known").touch()
guard.add = add
with scratch() as folder, atomic(Path(sys.argv[1]) / "model.onnx") as temporary:
    (folder / "half").write_text("half")
    temporary.write_text("half")
    print(folder, flush=True)
    run_command(["sh", "-c", 'echo $$ > "$0/pids"; sleep 60 & echo $! >> "$0/pids"; wait', sys.argv[1]], 60)
"""


def soon(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def started(tmp_path, code=PARENT):
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=env, cwd=Path(__file__).parents[2])


def pids(tmp_path):
    path = tmp_path / "out" / "pids"
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def works(pid):
    """It is there, and no zombie that nobody has asked about yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_process_that_was_killed(tmp_path, how):
    with started(tmp_path) as process:
        assert soon(lambda: len(pids(tmp_path)) == 2 and (tmp_path / "known").exists())
        folder = Path(process.stdout.readline().decode().strip())
        assert (folder / "half").exists()
        os.kill(process.pid, how)
        process.wait()
    assert soon(lambda: not any(map(works, pids(tmp_path))))
    assert soon(lambda: not list((tmp_path / "tmp").iterdir()))
    assert soon(lambda: [p.name for p in (tmp_path / "out").iterdir()] == ["pids"]), "nor what it was writing"


def test_another_one_stands_by_if_it_is_killed_itself(tmp_path):
    code = PARENT.replace("with scratch()", "with scratch() as first, scratch()").replace(
        "    print(folder",
        "    import os\n"
        "    from deploy_prune.system import guard\n"
        "    os.kill(guard._process.pid, 9); guard._process.wait()\n"
        "    print(folder",
    )  # fmt: skip
    with started(tmp_path, code) as process:
        assert soon(lambda: len(pids(tmp_path)) == 2 and (tmp_path / "known").exists())
        process.kill()
        process.wait()
    assert soon(lambda: not any(map(works, pids(tmp_path))))
    assert soon(lambda: not list((tmp_path / "tmp").iterdir()))


def test_a_scratch_folder_is_ours_alone_and_gone_afterwards():
    with scratch() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "a").write_text("a")
        assert str(folder) in guard._list
    assert not folder.exists()
    assert str(folder) not in guard._list


def test_a_fork_takes_nothing_of_its_parent_along(tmp_path):
    """The parent's folders stay when a fork of it ends, and the parent's end is noticed though the fork goes on."""
    code = """
import json, os, sys, time
from deploy_prune.system import guard
with guard.scratch() as folder:
    child = os.fork()
    if child == 0:
        with guard.scratch() as own:
            pass
        time.sleep(1 if sys.argv[2] == "child" else 30)
        os._exit(0)
    if sys.argv[2] == "child":
        os.waitpid(child, 0)
        print(json.dumps([folder.exists(), child]), flush=True)
    else:
        print(json.dumps([str(folder), child]), flush=True)
        os.kill(os.getpid(), 9)
"""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    cwd = Path(__file__).parents[2]
    done = subprocess.run([*command, "child"], capture_output=True, env=env, cwd=cwd, check=True, timeout=60)
    assert json.loads(done.stdout)[0] is True
    with subprocess.Popen([*command, "parent"], stdout=subprocess.PIPE, env=env, cwd=cwd) as process:
        folder, child = json.loads(process.stdout.readline())
        try:
            assert soon(lambda: not Path(folder).exists())
        finally:
            os.kill(child, signal.SIGKILL)
