"""A full disk, a read-only place, no home, an ASCII terminal, a name that is no UTF-8: one sentence, or it works."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from deploy_prune.cli import main
from deploy_prune.commands.frame import of_the_system
from deploy_prune.errors import CommandError, DeployPruneError, RunFolderError
from deploy_prune.run.folder import save_tensors
from deploy_prune.system import cache
from deploy_prune.system.shell import Most, atomic, run_command, run_to_end, tail, write_text

ROOT = Path(__file__).parents[2]


def command(*arguments, **changes):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    env = {key: value for key, value in env.items() if value is not None}
    args = [sys.executable, "-m", "deploy_prune.cli", *arguments]
    return subprocess.run(args, capture_output=True, env=env, timeout=60, check=False)


def writes(kind, path):
    if kind == "text":
        write_text(path, "text")
    else:
        save_tensors(path, {"x": torch.zeros(100_000)})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("when", ["mkdir", "fsync"])
def test_a_place_that_can_not_be_written_is_one_sentence(tmp_path, monkeypatch, number, when):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("deploy_prune.system.shell.mkdtemp" if when == "mkdir" else "os.fsync", fail)
    with pytest.raises(RunFolderError, match=os.strerror(number)) as raised:
        write_text(tmp_path / "a.txt", "text")
    assert str(tmp_path / "a.txt") in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_is_not_told_as_the_places(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        (tmp_path / "not there").read_text()
    with pytest.raises(PermissionError), atomic(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")


@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_a_full_disk_is_one_sentence(tmp_path, kind):
    """A limit of the size of files stands for it: the same error, from the same calls."""
    code = f"""
import resource, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
from test_file_system import writes
from deploy_prune.errors import RunFolderError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if {kind!r} == "tensors" else 0,) * 2)
try:
    writes({kind!r}, Path({str(tmp_path)!r}) / "a")
except RunFolderError as error:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/a"),
        PermissionError(errno.EACCES, "Permission denied", b"/data/a"),
        IsADirectoryError(errno.EISDIR, "Is a directory", "/data/a"),
        OSError("1000 requested and 10 written"),
        RuntimeError("Could not determine home directory."),
        UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"),
    ],
)
def test_what_the_system_does_to_a_command_has_an_exit_code(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("deploy_prune.recipe.tasks.schema", fail)
    result = CliRunner().invoke(main, ["schema"])
    assert result.exit_code == RunFolderError.exit_code
    assert "unexpected" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert "data/a" in result.stderr or "data/a" not in str(error)
    assert of_the_system(ValueError("ours")) is None


def test_no_place_to_write_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    done = command("schema", "--out", str(tmp_path / "file" / "s.json"))
    assert done.returncode == RunFolderError.exit_code
    assert b"can't be written (a file is in the way)" in done.stderr


def test_a_full_standard_output_is_one_sentence():
    with Path("/dev/full").open("wb") as full:
        args = [sys.executable, "-m", "deploy_prune.cli", "schema"]
        done = subprocess.run(args, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False, timeout=60)
    assert done.returncode == RunFolderError.exit_code
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["targets"], ["schema"], ["--help"], ["check", "gr\u00f6\u00dfe\u2192.yaml"]])
def test_an_ascii_terminal_gets_ascii(arguments):
    done = command(*arguments, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode in {0, 10}, done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert b"Traceback" not in done.stderr


def test_names_that_are_no_utf8_work_or_are_told(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    done = command("schema", "--out", os.fsdecode(folder + b"/s.json"))
    assert done.returncode == 0, done.stderr
    assert Path(os.fsdecode(folder + b"/s.json")).stat().st_size > 1000
    for arguments in (["report", os.fsdecode(folder)], ["check", os.fsdecode(folder + b"/r.yaml")]):
        done = command(*arguments)
        assert done.returncode in {10, 24}, done.stderr
        assert b"unexpected" not in done.stderr
        assert done.stderr.decode()


def test_without_a_home_it_is_said_what_to_set(monkeypatch):
    def homeless():
        message = "Could not determine home directory."
        raise RuntimeError(message)

    monkeypatch.delenv("DEPLOY_PRUNE_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(RunFolderError, match="set DEPLOY_PRUNE_CACHE"):
        cache.cached_json("groups", {"a": 1}, lambda: 1)


def test_a_cache_that_can_not_be_written_costs_time_only_and_is_told_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert [cache.cached_json("groups", {"a": i}, lambda: 5) for i in range(3)] == [5, 5, 5]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(tmp_path / "file" / "cache") in told


def test_what_two_want_at_once_is_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path))
    computed, found = [], []

    def compute():
        computed.append(1)
        time.sleep(0.1)
        return 3

    def ask():
        found.append(cache.cached_json("groups", {"a": 1}, compute))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 4
    assert computed == [1]


ENDLESS = "import os\nwhile True: os.write({}, b'x' * 65536)"


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_command_that_prints_without_end_is_stopped(monkeypatch, descriptor):
    monkeypatch.setattr("deploy_prune.system.shell.MOST_PRINTED_BYTES", 2**20)
    started = time.monotonic()
    with pytest.raises(CommandError, match="wrote more than the 1048576 bytes that it may"):
        run_command([sys.executable, "-c", ENDLESS.format(descriptor)], 60)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("opened", [True, False])
def test_a_file_that_a_command_writes_has_a_limit(tmp_path, opened):
    target = tmp_path / "x.npy"
    code = f"import os\nf = os.open({str(target)!r}, os.O_WRONLY | os.O_CREAT)\n" + ENDLESS.format("f")
    with target.open("wb") as file, pytest.raises(CommandError, match="more than the 1000000 bytes"):
        run_to_end(
            [sys.executable, "-c", ENDLESS.format(1) if opened else code], 60,
            stdout=file if opened else None, most=Most(path=target, size_bytes=1_000_000),
        )  # fmt: skip


def test_a_message_has_both_ends_of_a_long_line_only():
    told = tail("first" + "x" * 10**7 + "last")
    assert len(told) <= 1010
    assert (told[:5], told[-4:]) == ("first", "last")
    assert issubclass(RunFolderError, DeployPruneError)
