"""Every way to a device that is not this machine: the same outputs as here, and each fault one sentence."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from boards import is_running
from small_models import convolution as make

from deploy_prune import device
from deploy_prune.device import ABOUT, TRANSPORTS, reach
from deploy_prune.device.address import parse
from deploy_prune.device.remote import push_path, workspace
from deploy_prune.errors import CommandError, MeasurementError
from deploy_prune.export.artifact import describe

HOSTILE = ["a b.onnx", "-n.onnx", "a;touch canary.onnx", "$(touch canary).onnx", "`touch canary`.onnx"]
HOSTILE += ["it's.onnx", '"quoted".onnx', "two\nlines.onnx", "back\\slash.onnx", "*.onnx", "~.onnx", "ünï.onnx"]


def again(board):
    """Whether a device that was unplugged can be reached, which may take adb a moment."""

    def works():
        try:
            return bool(reach(board.name)(ABOUT, {}, 30))
        except CommandError:
            return False

    until(works, 30)
    return True


@pytest.fixture(scope="module")
def convolution(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "c.onnx")


def transport(board):
    address = parse(board.name)
    return TRANSPORTS[address.scheme](address=address)


def payload(folder, code):
    """A payload that reads its spec, and what it does with it."""
    path = folder / "payload" / "device.py"
    path.parent.mkdir()
    path.write_text(f"import json, os, subprocess, sys, time\nspec = json.load(sys.stdin)\n{code}\n")
    return path


def one_sentence(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def test_outputs_are_those_of_this_machine(board, convolution):
    x = torch.randn(4, 3, 8, 6)
    for here, there in zip(
        device.run(convolution, x, "onnxruntime"),
        device.run(convolution, x, "onnxruntime", runner=board.name),
        strict=True,
    ):
        torch.testing.assert_close(here, there)


def test_nothing_of_a_run_is_left_but_what_is_kept(board, convolution):
    device.run(convolution, torch.randn(2, 3, 8, 6), "onnxruntime", runner=board.name)
    assert list(board.kept.iterdir())
    assert all(len(path.name) == 64 for path in board.kept.iterdir())


def test_what_is_there_is_not_sent_again_and_what_is_damaged_is(board, tmp_path, monkeypatch):
    path = tmp_path / "model"
    (path / "deep").mkdir(parents=True)
    for name, text in (("a.bin", "one" * 1000), ("deep/b.bin", "two")):
        (path / name).write_text(text)
    way = transport(board)
    sent = []
    monkeypatch.setattr(type(way), "send", counted(type(way).send, sent))

    def push():
        sent.clear()
        with workspace(way, 60) as there:
            return Path(push_path(there, path)), [Path(p).name for p in sent]

    there, names = push()
    assert names == ["a.bin", "b.bin"]
    assert {p.name: p.read_text() for p in there.rglob("*.bin")} == {"a.bin": "one" * 1000, "b.bin": "two"}
    assert push() == (there, [])
    (there / "a.bin").write_text("one" * 999)
    assert push() == (there, ["a.bin"])
    (there / "deep/b.bin").unlink()
    assert push() == (there, ["b.bin"])
    assert (there / "a.bin").read_text() == "one" * 1000
    (path / "a.bin").write_text("other")
    assert push()[0] != there


def counted(send, sent):
    def counting(self, source, path, timeout_s):
        sent.append(source)
        return send(self, source, path, timeout_s)

    return counting


def test_what_nobody_used_for_a_week_is_removed(board):
    old, new = board.kept / "old", board.kept / "new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    os.utime(old, (time.time() - 9 * 86400,) * 2)
    with workspace(transport(board), 60):
        assert new.exists()
        assert not old.exists()
    (new / "file").unlink()
    new.rmdir()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_names_do_no_harm(board, convolution, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(convolution.path.read_bytes())
    artifact = describe(path, format="onnx", precision="fp32", input_shape=(2, 3, 8, 6), versions={})
    device.run(artifact, torch.randn(2, 3, 8, 6), "onnxruntime", runner=board.name)
    for place in (tmp_path, board.kept, board.kept.parent, board.bin.parent, Path.home()):
        assert not (place / "canary").exists()
        assert not (place / "canary.onnx").exists()


def test_a_payload_that_hangs_is_stopped_with_all_that_it_started(board, tmp_path):
    pids = tmp_path / "pids"
    code = f"""
child = subprocess.Popen(["sleep", "300"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(300)"""
    with pytest.raises(CommandError, match="was stopped after 2 s") as caught:
        reach(board.name)(payload(tmp_path, code), {}, 2)
    one_sentence(caught)
    until(lambda: not any(is_running(int(pid)) for pid in pids.read_text().split()))


def test_a_device_stops_the_payload_itself_if_nobody_else_does(board, tmp_path, monkeypatch):
    """As when this machine has no power any more."""
    monkeypatch.setattr("deploy_prune.device.remote.GRACE_S", -2)
    with pytest.raises(CommandError, match="was stopped after 3 s"):
        reach(board.name)(payload(tmp_path, "time.sleep(300)"), {}, 3)


def test_a_connection_that_is_lost_is_an_error_and_ends_the_payload(board, tmp_path):
    pid = tmp_path / "pid"
    code = f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)"

    def unplug():
        until(lambda: pid.exists() and pid.read_text())
        board.unplug()

    thread = threading.Thread(target=unplug)
    thread.start()
    started = time.monotonic()
    with pytest.raises(CommandError, match="the connection was lost") as caught:
        reach(board.name)(payload(tmp_path, code), {}, 60)
    thread.join()
    assert board.name in one_sentence(caught)
    assert time.monotonic() - started < 20
    until(lambda: not is_running(int(pid.read_text())))
    assert again(board)


def test_unplugged_while_a_file_is_sent(board, tmp_path):
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)

    def unplug():
        until(lambda: any(part.stat().st_size for part in board.kept.glob("run.*/arriving*")), 30)
        board.unplug()

    with workspace(transport(board), 60) as there:
        thread = threading.Thread(target=unplug)
        thread.start()
        with pytest.raises(CommandError, match="the connection was lost"):
            push_path(there, path)
        thread.join()
    assert again(board)
    with workspace(transport(board), 60) as there:
        assert Path(push_path(there, path)).stat().st_size == path.stat().st_size


def test_a_python_that_is_not_there(board, convolution):
    with pytest.raises(
        MeasurementError, match="There is no /opt/none/python3 on .*; install Python, or name it"
    ) as caught:
        device.run(convolution, torch.zeros(2, 3, 8, 6), "onnxruntime", runner=f"{board.name}/opt/none/python3")
    one_sentence(caught)


def test_a_python_that_is_too_old(board, convolution):
    path = board.stub("old python", "exit 126")
    with pytest.raises(MeasurementError, match="old python on .* is older than 3.10"):
        device.run(convolution, torch.zeros(2, 3, 8, 6), "onnxruntime", runner=f"{board.name}{path}")


def test_a_package_that_is_not_there(board, convolution):
    path = board.stub("bare", f'exec {board.bin}/python3 -S "$@"')
    with pytest.raises(MeasurementError, match="run there: .*/bare -m pip install numpy$") as caught:
        device.run(convolution, torch.zeros(2, 3, 8, 6), "onnxruntime", runner=f"{board.name}{path}")
    one_sentence(caught)


def test_a_runtime_that_is_not_there(board, tmp_path):
    code = "sys.exit(\"ModuleNotFoundError: No module named 'ai_edge_litert'\")"
    with pytest.raises(CommandError, match="run there: python3 -m pip install ai-edge-litert$"):
        reach(board.name)(payload(tmp_path, code), {}, 60)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('nonsense')", "device.py answered 'nonsense': it is not JSON: "),
        ("print('[1]')", "not a JSON object"),
        ("pass", "device.py answered '': it is not JSON"),
        ("print('{\"a\": 1')", "not JSON"),
        ("sys.exit('it broke; so sorry')", "failed with exit code 1: it broke; so sorry"),
        ("sys.exit(255)", "failed with exit code 254"),
        ("os.kill(os.getpid(), 9)", "was killed from outside; is there too little memory"),
    ],
)
def test_a_payload_that_fails_or_talks_nonsense(board, tmp_path, code, words):
    with pytest.raises(CommandError, match=words) as caught:
        reach(board.name)(payload(tmp_path, code), {}, 60)
    one_sentence(caught)


@pytest.mark.parametrize(
    "answer",
    [{}, {"outputs": 1}, {"outputs": ["/etc/passwd"]}, {"outputs": [["/none.npy"]]}, {"outputs": [[__file__]]}],
)
def test_outputs_that_are_none(board, tmp_path, monkeypatch, convolution, answer):
    script = payload(tmp_path, f"print(json.dumps({answer!r}))")
    monkeypatch.setattr(device, "SCRIPT", script)
    with pytest.raises(MeasurementError) as caught:
        device.run(convolution, torch.zeros(2, 3, 8, 6), "onnxruntime", runner=board.name)
    one_sentence(caught)


def test_what_a_login_shell_says_is_not_the_answer(board, tmp_path):
    code = "print('Welcome!')\nprint(json.dumps({'spec': spec}))"
    assert reach(board.name)(payload(tmp_path, code), {"a": "'; \n\"$(x)"}, 60) == {"spec": {"a": "'; \n\"$(x)"}}


def test_a_full_disk(board, tmp_path):
    board.stub("mktemp", "exec echo x >/dev/full")
    with pytest.raises(CommandError, match="The disk of .* is full; free some space") as caught:
        reach(board.name)(ABOUT, {}, 60)
    one_sentence(caught)


def test_a_disk_that_is_full_when_a_file_comes(board, tmp_path):
    (tmp_path / "a").write_text("x" * 2**20)
    with workspace(transport(board), 60) as there:
        board.stub("cat", "exec /bin/cat >/dev/full")  # for ssh
        (board.kept / "full").touch()  # for adb
        with pytest.raises(CommandError, match="The disk of .* is full; free some space"):
            push_path(there, tmp_path / "a")
        (board.kept / "full").unlink()


def test_a_device_tells_what_it_is(board):
    told = reach(board.name)(ABOUT, {}, 60)
    assert told["about"]["cores"] == os.cpu_count()
    assert told["about"]["packages"]["onnxruntime"][0].isdigit()
    assert json.dumps(told)


def test_a_result_that_is_too_large_is_not_fetched(board, convolution, monkeypatch):
    monkeypatch.setattr("deploy_prune.device.remote.MOST_FETCHED_BYTES", 100)
    with pytest.raises(MeasurementError, match="up to 100 are fetched") as caught:
        device.run(convolution, torch.zeros(2, 3, 8, 6), "onnxruntime", runner=board.name)
    one_sentence(caught)


def test_what_goes_on_coming_is_cut_off(board, tmp_path):
    """A device that says one size and sends another fills no disk."""
    endless = tmp_path / "endless"
    endless.write_bytes(b"x" * 50_000_000)
    with pytest.raises(CommandError, match="more than the 1000 bytes"):
        transport(board).fetch(str(endless), tmp_path / "here", 60, 1000)


def test_an_answer_without_end_is_cut_off(board, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy_prune.system.shell.MOST_PRINTED_BYTES", 2**20)
    script = payload(tmp_path, "import sys\nwhile True: sys.stdout.write('x' * 65536)")
    with pytest.raises(CommandError, match="wrote more than the 1048576 bytes"):
        reach(board.name)(script, {}, 60)
