"""A converter's faults end the worker, never this process; the next write works again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import planted_format
import psutil
import pytest
import torch
from torch import nn

from deploy_prune.errors import BudgetError, ExportError, MissingDependencyError, ModelError
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.artifact import Extra
from deploy_prune.export.parity import check_parity
from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.plugins import import_callable

EXAMPLE = torch.ones(1, 3, 8, 8)
PART = ExportPart(timeout_s=20, max_memory_gb=4)


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    monkeypatch.setitem(FORMATS, "planted", planted_format)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5))


def write(path, precision="fp32", part=PART, calibration=None):
    return isolated.write("planted", network().eval(), EXAMPLE, path, precision, part, calibration)


def worker_of(path):
    return int(path.read_text().split()[2])


def test_one_worker_writes_all(tmp_path):
    one, two = write(tmp_path / "a.txt"), write(tmp_path / "b.txt")
    total, opset, pid = one.path.read_text().split()
    with torch.no_grad():
        assert float(total) == pytest.approx(float(network().eval()(EXAMPLE).sum()), abs=1e-4)
    assert opset == "18"
    assert int(pid) != os.getpid()
    assert worker_of(two.path) == int(pid)
    assert one.path == tmp_path / "a.txt"
    assert (one.input_shape, one.versions, one.precision) == ((1, 3, 8, 8), {"planted": "1"}, "fp32")
    assert one.sha256 == two.sha256


def test_calibration_gets_there(tmp_path):
    x = torch.randn(4, 3, 8, 8)
    artifact = write(tmp_path / "a.txt", calibration=x[:1])
    with torch.no_grad():
        assert float(artifact.path.read_text().split()[0]) == pytest.approx(
            float(network().eval()(x[:1]).sum()), abs=1e-4
        )


class Suppressing(nn.Module):
    """Boxes [B, 4], and how many are left when those that overlap are gone."""

    def forward(self, x):
        kept = torch.ops.torchvision.nms(x, x.sum(1), 0.5)
        return x.sum() + kept.shape[0]


def test_torchvision_is_imported_for_its_operators_alone(tmp_path):
    isolated.stop()
    import_torchvision()
    assert write(tmp_path / "a.txt", "libraries").path.read_text() == "torchvision False"
    boxes = isolated.write("planted", Suppressing(), torch.rand(6, 4), tmp_path / "b.txt", "libraries", PART)
    assert boxes.path.read_text() == "torchvision True"


def test_what_a_converter_prints_is_not_seen(tmp_path, capfd):
    write(tmp_path / "a.txt", "chatter")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("precision", "part", "words"),
    [
        ("crash", PART, "was ended by SIGSEGV. It told: about to fall"),
        ("half", PART, "was ended by SIGSEGV. It told nothing."),
        ("hang", PART.model_copy(update={"timeout_s": 0.7}), r"longer than 0.7 s \(export.timeout_s\).*still going"),
        ("eat", PART.model_copy(update={"max_memory_gb": 1.5}), r"GB of memory, over 1.5 GB \(export.max_memory_gb\)"),
        ("exit", PART, "ended with exit code 3. It told: one | two | three"),
    ],
)
def test_a_fault_is_one_error_and_the_next_write_works(tmp_path, precision, part, words):
    before = worker_of(write(tmp_path / "before.txt").path)
    with pytest.raises(ExportError, match=words) as caught:
        write(tmp_path / "fault.txt", precision, part)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["before.txt"], "nothing half-written is left"
    assert not psutil.pid_exists(before)
    assert worker_of(write(tmp_path / "after.txt").path) != before


def test_errors_come_back_as_they_are_and_the_worker_stays(tmp_path):
    before = worker_of(write(tmp_path / "before.txt").path)
    with pytest.raises(BudgetError, match="^The limit is missed.$"):
        write(tmp_path / "a.txt", "named")
    with pytest.raises(ExportError, match="planted_format file can't be written: KeyError: .*no such thing"):
        write(tmp_path / "a.txt", "raise")
    assert worker_of(write(tmp_path / "after.txt").path) == before


def test_a_worker_that_was_killed_is_replaced(tmp_path):
    os.kill(worker_of(write(tmp_path / "a.txt").path), signal.SIGKILL)
    time.sleep(0.2)
    write(tmp_path / "b.txt")


def test_a_worker_that_keeps_half_of_the_memory_is_replaced(tmp_path):
    part = PART.model_copy(update={"max_memory_gb": 3.0})
    first, second, third = (
        worker_of(write(tmp_path / f"{i}.txt", precision, part).path)
        for i, precision in enumerate(["fp32", "keep", "fp32"])
    )
    assert first == second != third
    assert not psutil.pid_exists(first)


def test_what_can_not_be_traced_is_one_sentence(tmp_path):
    class Bad(nn.Module):
        def forward(self, x):
            return x.sum() if x.sum() > 0 else x

    with pytest.raises(ExportError, match="can't be traced by torch.export") as caught:
        isolated.write("onnx", Bad(), EXAMPLE, tmp_path / "a.onnx", "fp32", PART)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named_before_any_work(tmp_path, monkeypatch):
    extra = Extra(name="abacus", modules=("beads",))
    monkeypatch.setitem(FORMATS, "abacus", SimpleNamespace(precisions=("fp32",), extra=extra))
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploy-prune\[abacus\]'"):
        isolated.write("abacus", network(), EXAMPLE, tmp_path / "a", "fp32", PART)
    with pytest.raises(ExportError, match="can't be written in int8; it has fp32"):
        isolated.write("abacus", network(), EXAMPLE, tmp_path / "a", "int8", PART)


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_the_same_file_as_without_a_worker(tmp_path, dynamic_batch):
    net, part = network().train(), PART.model_copy(update={"dynamic_batch": dynamic_batch})
    alone = FORMATS["onnx"].write(net, EXAMPLE, tmp_path / "alone.onnx", "fp32", part)
    artifact = isolated.write("onnx", net, EXAMPLE, tmp_path / "a.onnx", "fp32", part)
    assert net.training
    assert artifact.sha256 == alone.sha256
    check_parity(net, artifact, torch.randn(4, 3, 8, 8))


def test_the_worker_ends_with_the_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; import test_isolated as t; from deploy_prune.export import FORMATS\n"
        "FORMATS['planted'] = t.planted_format; t.write(Path(sys.argv[1]))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=True, env=env, timeout=120)
    assert not psutil.pid_exists(worker_of(tmp_path / "a.txt"))


PARENT = """
import sys
from pathlib import Path
import test_isolated as t
from deploy_prune.export import FORMATS
FORMATS["planted"] = t.planted_format
t.write(Path(sys.argv[1]) / "first.txt")
print(t.worker_of(Path(sys.argv[1]) / "first.txt"), flush=True)
t.write(Path(sys.argv[1]) / "second.txt", "hang")
"""


def test_the_worker_ends_in_the_middle_of_its_work_if_the_process_is_killed(tmp_path):
    """With all that it had started, and nothing is left: no scratch folder, nothing half-written."""
    for name in ("out", "tmp"):
        (tmp_path / name).mkdir()
    places = [str(Path(__file__).parent), *filter(None, sys.path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", PARENT, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        worker = psutil.Process(int(process.stdout.readline()))
        until = time.monotonic() + 60
        while "still going" not in logged(tmp_path / "tmp") and time.monotonic() < until:
            time.sleep(0.02)
        started = [worker, *worker.children(recursive=True)]
        process.kill()
        process.wait()
    until = time.monotonic() + 20
    while (any(map(works, started)) or list((tmp_path / "tmp").iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(works, started))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["first.txt"]


def works(process):
    """It is there, and no zombie that nobody has asked about yet."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def logged(folder):
    return "".join(path.read_text() for path in folder.glob("*/stderr"))


NAMES = ("json", "importlib", "typing", "torch", "numpy", "onnx", "tensorrt", "openvino", "deploy_prune", "planted")


@pytest.mark.parametrize("where", ["the current folder", "the user's own code", "the script"])
def test_nothing_of_the_current_folder_is_run_in_the_worker(tmp_path, monkeypatch, where):
    """Not in the place of a library, nor as one that isn't installed: anything may lie there."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if where == "the current folder":
        sys.path[:0] = ["", str(tmp_path)]
    elif where == "the script":
        sys.path.insert(0, str(tmp_path))
        monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "script.py"), raising=False)
        monkeypatch.chdir("/")
    else:
        (tmp_path / "mine.py").write_text("def make(): pass\n")
        import_callable("mine:make", "model.source", ModelError)
        assert sys.path[-1] == str(tmp_path)
        monkeypatch.chdir("/")
    isolated.stop()
    try:
        write(tmp_path / "a.txt", "import")
    finally:
        isolated.stop()
    assert not (tmp_path / "RAN").exists()
