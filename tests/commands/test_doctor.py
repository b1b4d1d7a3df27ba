"""What is missing or wrong on this machine: each kind of fault is planted, and seen with its remedy."""

import os
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from deploy_prune.commands import doctor
from deploy_prune.errors import CommandError, ExportError
from deploy_prune.report.doctor import Finding, doctor_tables
from deploy_prune.system.shell import Finished


def found(name: str, area: str = "", **how) -> Finding:
    """What is told of one thing."""
    return next(one for one in doctor.findings(**how) if one.name == name and area in one.area)


@pytest.fixture
def versions(monkeypatch):
    """Versions by package; None: it isn't installed."""
    planted, real = {}, doctor.version

    def version(package):
        told = planted.get(package, "") if package in planted else real(package)
        if told is None:
            raise PackageNotFoundError(package)
        return told

    monkeypatch.setattr(doctor, "version", version)
    return planted


def test_this_machine_has_what_everything_needs():
    here = list(doctor.findings())
    assert [one.name for one in here if one.area == "Packages" and one.state == "wrong"] == []
    assert {"torch", "onnxruntime", "torch-pruning"} <= {one.name for one in here}
    assert {one.name for one in here if one.area == "Formats"} == set(doctor.FORMATS)
    assert found("onnx").state == "ok"


def test_a_package_that_is_needed_is_missing_or_of_another_version(versions):
    versions |= {"safetensors": None, "torch-pruning": "1.5"}
    missing, old = found("safetensors"), found("torch-pruning")
    assert (missing.state, missing.told) == ("wrong", "isn't installed")
    assert missing.remedy.startswith("pip install 'safetensors>=")
    assert (old.state, old.told) == ("wrong", "1.5, and torch-pruning<1.7,>=1.6.1 is needed")


def test_a_formats_extra_is_absent_whole_or_in_part(versions):
    versions |= {"ncnn": None, "pnnx": None, "openvino": "2025.4"}
    assert (found("ncnn").state, found("ncnn").remedy) == ("absent", "pip install 'deploy-prune[ncnn]'")
    assert (found("openvino").state, found("openvino").told) == ("ok", "openvino 2025.4")
    versions |= {"ncnn": "1.0.20260101"}
    assert found("ncnn").state == "wrong"
    assert "pnnx is missing" in found("ncnn").told
    versions |= {"pnnx": "20250101"}
    assert "pnnx 20250101 (>=20250924 is needed)" in found("ncnn").told


def test_a_format_is_tried(monkeypatch):
    monkeypatch.setattr(doctor, "FORMATS", {"onnx": doctor.FORMATS["onnx"]})
    steps = []
    tried = found("onnx", "Formats", attempt=True, progress=lambda *step: steps.append(step))
    assert tried.state == "ok"
    assert tried.told.startswith("writes and runs a small network")
    assert steps == []
    assert [one.state for one in doctor.findings(lambda *step: steps.append(step[1:]), attempt=True)]
    assert steps == [(1, 1)]

    def broken(*args):
        message = "the converter crashed"
        raise ExportError(message)

    monkeypatch.setattr(doctor.isolated, "write", broken)
    assert (found("onnx", "Formats", attempt=True).state, found("onnx", "Formats", attempt=True).told) == (
        "wrong",
        "the converter crashed",
    )


@pytest.fixture
def programs(monkeypatch):
    """What programs of the system print; an error: they fail; those that aren't named aren't there."""
    printed = {}

    def run(args, timeout_s):
        told = printed[Path(args[0]).name]
        if isinstance(told, Exception):
            raise told
        return told

    monkeypatch.setattr(doctor.shutil, "which", lambda name: name if name in printed else None)

    def ended(args, timeout_s):
        """These programs tell their version on standard error, as ssh does."""
        return Finished(code=0, output="", errors=run(args, timeout_s))

    monkeypatch.setattr(doctor, "run_command", run)
    monkeypatch.setattr(doctor, "run_to_end", ended)
    return printed


def test_ways_to_devices(programs):
    assert (found("ssh").state, found("adb").state) == ("absent", "absent")
    programs |= {
        "ssh": "OpenSSH_9.2p1, OpenSSL 3.0.15\n",
        "adb": "List of devices attached\nA1\tdevice\nB2\tunauthorized\nC3\toffline\n\n",
    }
    assert (found("ssh").state, found("ssh").told) == ("ok", "OpenSSH_9.2p1, OpenSSL 3.0.15")
    assert (found("adb").state, found("adb").told) == ("ok", "sees 1 devices: A1")
    assert (found("B2").state, found("B2").remedy) == ("wrong", "look at its screen, and allow this computer")
    assert (found("C3").state, found("C3").told) == ("wrong", "is offline")
    programs["adb"] = CommandError("no server")
    assert (found("adb").state, found("adb").told) == ("wrong", "no server")


def test_a_card_that_torch_can_not_use(programs, monkeypatch):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.torch.version, "cuda", None)
    assert found("GPU").state == "absent"
    programs["nvidia-smi"] = "NVIDIA T4\n"
    assert (found("GPU").state, found("GPU").told) == ("wrong", "NVIDIA T4, and torch is a CPU build")
    monkeypatch.setattr(doctor.torch.version, "cuda", "12.8")
    assert found("GPU").remedy == "update NVIDIA's driver"


def test_what_disturbs_measurements(monkeypatch):
    monkeypatch.setattr(doctor.about, "about", lambda: {"governors": ["performance", "powersave"]})
    monkeypatch.setattr(doctor.psutil, "cpu_percent", lambda interval: 90.0)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(doctor.joblib, "cpu_count", lambda: 4)
    assert (found("governor").state, found("governor").told.partition(":")[0]) == ("note", "powersave")
    monkeypatch.setattr(doctor.about, "about", lambda: {"governors": ["performance", "schedutil"]})
    assert (found("governor").state, found("governor").told) == ("ok", "performance, schedutil")
    monkeypatch.setattr(doctor.about, "about", dict)
    assert (found("governor").state, found("governor").told.partition(":")[0]) == ("ok", "this system tells none")
    assert found("load").told == "90% of the cores are in use: timings will be disturbed"
    assert "quota" not in {one.name for one in doctor.findings()}
    monkeypatch.setattr(doctor.joblib, "cpu_count", lambda: 2)
    assert found("quota").told.startswith("this container gets 2 of 4 cores")


def test_folders_that_are_full_or_closed(monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOY_PRUNE_CACHE", str(tmp_path / "cache" / "here"))
    assert found("cache").state == "ok"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(1, 1, 10**9))
    assert (found("cache").state, found("cache").remedy) == ("note", "set DEPLOY_PRUNE_CACHE to another folder")
    monkeypatch.setattr(doctor.os, "access", lambda folder, mode: mode != os.W_OK)
    assert (found("cache").state, found("temporary files").remedy) == ("wrong", "set TMPDIR to another folder")


def test_the_tables_fit_into_80_columns():
    long = "a sentence that is longer than a line of a terminal, so that it has to be broken somewhere"
    console = Console(width=80, record=True, file=StringIO())
    one = Finding(area="Formats", name="ncnn", state="wrong", told=long, remedy="pip install 'x'")
    console.print(*doctor_tables([one]))
    text = console.export_text()
    assert long in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
