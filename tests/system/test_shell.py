import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy_prune.errors import CommandError
from deploy_prune.system.shell import atomic, run_command, size_bytes, write_text


def test_the_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "results.json"
    with atomic(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        assert not path.exists()
        assert temporary.suffix == ".json"
        assert temporary.parent.parent == path.parent, "another file system could not be renamed from"
    assert path.read_text(encoding="utf-8") == "half"
    assert [child.name for child in path.parent.iterdir()] == ["results.json"]


def write_half_and_fail(path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        message = "stop"
        raise ValueError(message)


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(ValueError, match="stop"):
        write_half_and_fail(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["results.json"]


def test_a_writer_that_writes_nothing_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "results.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_writer_with_files_beside_its_own_cleans_up(tmp_path):
    with atomic(tmp_path / "model.onnx") as temporary:
        temporary.write_bytes(b"model")
        temporary.with_suffix(".log").write_bytes(b"chatter")
    assert [child.name for child in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("before", [None, "file", "folder"])
def test_a_folder_takes_the_place_of_what_was_there(tmp_path, before):
    path = tmp_path / "model.mlpackage"
    if before == "file":
        path.write_text("old")
    elif before == "folder":
        path.mkdir()
        (path / "old").write_text("old")
    with atomic(path) as temporary:
        (temporary / "data").mkdir(parents=True)
        (temporary / "data" / "weights.bin").write_bytes(b"12345")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "model.mlpackage",
        "model.mlpackage/data",
        "model.mlpackage/data/weights.bin",
    ]
    assert size_bytes(path) == 5


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")
    code = f"""
import os, signal
from pathlib import Path
from deploy_prune.system.shell import atomic
with atomic(Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    assert path.read_text(encoding="utf-8") == "old"
    write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "new"


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "a.txt", "größer → 5 µs")
    assert (tmp_path / "a.txt").read_bytes() == "größer → 5 µs".encode()


def test_a_command_gives_its_standard_output():
    code = "import os, sys; print(sys.stdin.read().upper() + os.environ['WORD'])"
    assert run_command([sys.executable, "-c", code], 30, stdin="hello ", env={"WORD": "world"}) == "HELLO world\n"


def test_a_failing_command_names_its_exit_code_and_the_end_of_its_errors():
    code = "import sys; [print(f'line {i}', file=sys.stderr) for i in range(9)]; sys.exit(3)"
    with pytest.raises(CommandError, match="exit code 3: line 4 | line 5 | line 6 | line 7 | line 8$"):
        run_command([sys.executable, "-c", code], 30)


def test_a_failing_command_that_says_nothing():
    with pytest.raises(CommandError, match="exit code 1: no message"):
        run_command([sys.executable, "-c", "raise SystemExit(1)"], 30)


def test_a_command_that_is_not_there():
    with pytest.raises(CommandError, match="'no-such-command-anywhere'"):
        run_command(["no-such-command-anywhere"], 30)


def test_a_file_that_is_not_a_program(tmp_path):
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(CommandError, match=r"notes\.txt"):
        run_command([str(tmp_path / "notes.txt")], 30)


def test_output_that_is_not_text_is_no_traceback():
    code = "import sys; sys.stderr.buffer.write(bytes([255, 254])); sys.exit(1)"
    with pytest.raises(CommandError, match="exit code 1"):
        run_command([sys.executable, "-c", code], 30)


def test_a_command_that_hangs_is_stopped():
    start = time.monotonic()
    with pytest.raises(CommandError, match=r"stopped after 0\.3 s"):
        run_command([sys.executable, "-c", "import time; time.sleep(20)"], 0.3)
    assert time.monotonic() - start < 10


def test_what_a_hanging_command_started_is_stopped_too(tmp_path):
    witness = tmp_path / "still-there"
    with pytest.raises(CommandError, match=r"stopped after 0\.2 s"):
        run_command(["sh", "-c", f"(sleep 1; touch {witness}) & wait"], 0.2)
    time.sleep(1.2)
    assert not witness.exists()
