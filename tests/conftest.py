"""What all tests share: one thread, and a cache of their own."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from boards import REQUIRED, Board, adb_board, need, ssh_board

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is imported, here and in what tests start: threads that wait for each other crawl on a busy machine."""
vars(logging.getLogger("torch.__trace"))["addHandler"] = lambda handler: None
"""torch writes down each step of tracing a network if that logger has a handler, and pytest gives it its own."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure is kept apart from the user's own figures (a folder named from outside is used as it is)."""
    if "DEPLOY_PRUNE_CACHE" in os.environ:
        yield
        return
    folder: Path = tmp_path_factory.mktemp("cache")
    os.environ["DEPLOY_PRUNE_CACHE"] = str(folder)
    yield
    del os.environ["DEPLOY_PRUNE_CACHE"]


@pytest.fixture(autouse=True)
def _own_denormals() -> None:
    """A session of ONNX Runtime in this process leaves its thread taking denormal numbers for 0."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """This process can be interrupted, also where a shell has started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that was skipped because something isn't installed has failed where one of its markers is required."""
    report = yield
    required = {mark.name for mark in item.iter_markers()} & set(os.environ.get(REQUIRED, "").split())
    why = str(report.longrepr)
    if report.skipped and required and ("not installed" in why or "could not import" in why):
        report.outcome = "failed"
        report.longrepr = f"{REQUIRED} has {', '.join(sorted(required))}, but this was skipped: {why}"
    return report


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A device that is reached by ssh: this machine, through a real server."""
    need("sshd", "ssh", "ssh-keygen")
    with ssh_board(tmp_path_factory.mktemp("ssh")) as board:
        yield board


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A device that is reached by adb: the real client, and a stand-in for a phone."""
    need("adb")
    with adb_board(tmp_path_factory.mktemp("adb")) as board:
        yield board


REMOTE = [
    pytest.param("ssh_server", marks=pytest.mark.ssh, id="ssh"),
    pytest.param("adb_server", marks=pytest.mark.adb, id="adb"),
]


@pytest.fixture(params=REMOTE)
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    """Each kind of device that is not this machine; its programs are put back after the test."""
    found: Board = request.getfixturevalue(request.param)
    before = {path: path.read_text() for path in found.bin.iterdir()}
    yield found
    for path in found.bin.iterdir():
        path.unlink()
    for path, script in before.items():
        path.write_text(script)
        path.chmod(0o755)


@pytest.fixture(params=["local", *REMOTE])
def device_name(request: pytest.FixtureRequest) -> str:
    """The name of each kind of device."""
    return "local" if request.param == "local" else request.getfixturevalue(request.param).name
