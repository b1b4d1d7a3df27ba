"""Devices with an ssh server, through the OpenSSH client: the user's keys, agent, ~/.ssh/config and known_hosts."""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, Final

from deploy_prune.device.address import Address
from deploy_prune.errors import CommandError
from deploy_prune.system import guard
from deploy_prune.system.shell import Finished, Most, run_to_end, tail

OPTIONS: Final = "DEPLOY_PRUNE_SSH_OPTIONS"
"""The environment variable with more options for ssh, as in ``-i ~/.ssh/board -o ProxyJump=gate``."""
_SAFE: Final = ("BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no", "RequestTTY=no", "RemoteCommand=none")
"""Never ask, never trust an unknown host. ssh takes the first value that it is given, so these can't be changed ..."""
_USUAL: Final = (
    "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3", "LogLevel=ERROR", "ControlMaster=auto",
    "ControlPersist=60",
)  # fmt: skip
"""... and these can."""
_CLIENT_FAILED: Final = 255
_CAUSES: Final = {
    "HOST IDENTIFICATION HAS CHANGED": "its host key is not the one in known_hosts: is it the same device?",
    "Host key verification failed": "its host key is not in known_hosts: connect once by hand and compare it",
    "Permission denied": "it does not accept this user's key: add it there with ssh-copy-id",
    "Could not resolve hostname": "there is no host of this name",
    "Connection refused": "no ssh server listens on this port",
    "timed out": "it does not answer: is it on, and in this network?",
    "No route to host": "there is no way to it in this network",
    "unreachable": "there is no way to it in this network",
    "Bad configuration option": f"ssh's options are wrong ({OPTIONS}, ~/.ssh/config)",
}
"""What ssh prints when it fails, and what that means."""


@dataclass(frozen=True, kw_only=True)
class Ssh:
    """An ssh server. One connection is kept open for a minute after each command, and used by the next one."""

    address: Address
    root: str = "${XDG_CACHE_HOME:-$HOME/.cache}/deploy-prune"

    def shell(
        self, script: str, timeout_s: float, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None
    ) -> Finished:
        """Run a script in the device's sh, whatever its exit code.

        Raises:
            CommandError: ssh can't connect, the connection is lost, or ``timeout_s`` are over.
        """
        return self._run(script, timeout_s, stdin, stdout, None)

    def _run(
        self, script: str, timeout_s: float, stdin: IO[bytes] | None, stdout: IO[bytes] | None, most: Most | None
    ) -> Finished:
        words = [*self._client(), f"exec sh -c {shlex.quote(script)}"]  # whatever shell the user has there
        done = run_to_end(words, timeout_s, stdin=stdin, stdout=stdout, most=most)
        if done.code == _CLIENT_FAILED:
            known = (cause for words, cause in _CAUSES.items() if words in done.errors)
            message = f"{self.address}: {next(known, 'the connection was lost')} (ssh: {tail(done.errors, 2)})."
            raise CommandError(message)
        return done

    def send(self, source: Path, path: str, timeout_s: float) -> Finished:
        """Copy a file to the device."""
        with source.open("rb") as file:
            return self.shell(f"cat > {shlex.quote(path)}", timeout_s, stdin=file)

    def fetch(self, path: str, target: Path, timeout_s: float, most_bytes: int) -> Finished:
        """Copy a file from the device."""
        with target.open("wb") as file:
            most = Most(path=target, size_bytes=most_bytes)
            return self._run(f"cat < {shlex.quote(path)}", timeout_s, None, file, most)

    def _client(self) -> list[str]:
        """The ssh command up to the host."""
        try:
            extra = shlex.split(os.environ.get(OPTIONS, ""))
        except ValueError as error:
            message = f"{OPTIONS} can't be read: {error}."
            raise CommandError(message) from error
        control = ["-o", f"ControlPath={_control_folder()}/%C"]
        user = ["-l", self.address.user] if self.address.user else []
        port = ["-p", str(self.address.port)] if self.address.port else []
        options = [*_options(_SAFE), *extra, *_options(_USUAL), *control, *user, *port]
        return ["ssh", "-T", "-x", *options, "--", self.address.host]


def _options(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("-o", value)]


@cache
def _control_folder() -> Path:
    """Where this process keeps its connections' sockets: nobody else's, and short (a socket's path has 104 bytes)."""
    folder = Path(mkdtemp(prefix="deploy-prune-", dir="/tmp"))  # noqa: S108
    guard.add(str(folder))
    atexit.register(_hang_up, folder)
    return folder


def _hang_up(folder: Path) -> None:
    """End the connections that are still open."""
    for socket in folder.iterdir():
        run_to_end(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "--", "none"], 5)
    shutil.rmtree(folder, ignore_errors=True)
    guard.discard(str(folder))
