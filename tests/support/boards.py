"""Devices for tests: real servers on this machine, which run what they are asked in a folder of their own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from adb_daemon import Daemon

REQUIRED = "DEPLOY_PRUNE_REQUIRE"
"""An environment variable with the markers whose tests must not be skipped, as continuous integration sets it."""
ARM = "DEPLOY_PRUNE_ARM"
"""An environment variable with the folder that arm_root.sh has laid out."""
_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, kw_only=True)
class Board:
    """A device: its name; where it keeps what it is sent; a folder in front of its PATH; and how to pull its plug."""

    name: str
    kept: Path
    bin: Path
    unplug: Callable[[], None]

    def stub(self, command: str, script: str) -> Path:
        """Put another program in the place of one of the device's."""
        path = self.bin / command
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path


def need(*commands: str) -> None:
    """Skip the test if a command is missing."""
    missing = [name for name in commands if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")


def lay_out(folder: Path) -> Path:
    """The device's folder of programs, with this Python as its python3."""
    programs = folder / "bin"
    programs.mkdir()
    python = programs / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return programs


def on_arm(board: Board, cpu: str) -> None:
    """Put an aarch64 Python, run by QEMU as on this processor, in the place of a device's; skip if there is none."""
    if ARM not in os.environ:
        pytest.skip(f"an aarch64 Linux is not installed: {ARM} has no folder of arm_root.sh (make test-arm)")
    folder = shlex.quote(str(Path(os.environ[ARM]).resolve(strict=True)))
    emulated = f"{folder}/qemu-aarch64 -cpu {cpu} -L {folder}/root {folder}/root/usr/bin/python3"
    board.stub("python3", f'exec {emulated} "$@"')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the server has ended"
        time.sleep(0.05)
    pytest.fail(f"nothing listens on port {port}")


@contextmanager
def ssh_board(folder: Path) -> Iterator[Board]:
    """A real sshd on a loopback port, with keys made for it; DEPLOY_PRUNE_SSH_OPTIONS says how it is reached."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    for key in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    programs, port, kept = lay_out(folder), free_port(), folder / "cache"
    (folder / "sshd_config").write_text(
        f"""\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
PidFile none
PasswordAuthentication no
SetEnv HOME={folder} XDG_CACHE_HOME={kept} PATH={programs}:{_PATH}
"""
    )
    told = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {told[0]} {told[1]}\n")
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or ""
    command = [sshd, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")]
    with subprocess.Popen(command) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "DEPLOY_PRUNE_SSH_OPTIONS",
            f"-F none -i {folder}/user -o IdentitiesOnly=yes -o UserKnownHostsFile={folder}/known_hosts",
        )
        wait_for_port(port, server)
        try:
            yield Board(
                name=f"ssh://127.0.0.1:{port}",
                kept=kept / "deploy-prune",
                bin=programs,
                unplug=lambda: kill_children(server.pid),
            )
        finally:
            kill_children(server.pid)
            server.terminate()


@contextmanager
def adb_board(folder: Path) -> Iterator[Board]:
    """The real adb client, with a server of its own, and a stand-in for the device's daemon that runs commands here."""
    programs, kept = lay_out(folder), folder / "tmp"
    kept.mkdir()
    env = {"PATH": f"{programs}:{_PATH}", "TMPDIR": str(kept), "HOME": str(folder)}
    daemon = Daemon(env, folder)
    name = f"127.0.0.1:{daemon.port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        patch.setenv("HOME", str(folder))  # the client keeps its key there

        def adb(*words: str) -> str:
            done = subprocess.run(["adb", *words], capture_output=True, text=True, check=False, timeout=60)
            return done.stdout + done.stderr

        assert "connected to" in adb("connect", name)
        try:
            yield Board(name=f"adb://{name}", kept=kept / "deploy-prune", bin=programs, unplug=daemon.unplug)
        finally:
            adb("kill-server")
            daemon.close()


def kill_children(pid: int) -> None:
    """End a server's connections: the processes that it has started, not what these have started."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether a process is there, and not only waiting to be taken note of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
