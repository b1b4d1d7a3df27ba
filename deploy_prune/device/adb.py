"""Android devices, through the adb client: `adb devices` has their serial numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from deploy_prune.device.address import Address
from deploy_prune.errors import CommandError
from deploy_prune.system.shell import Finished, Most, run_to_end, tail

_END: Final = "deploy-prune: end of script"
"""Comes last on standard error if the script came to its end; adb doesn't tell when a device is unplugged meanwhile."""
_CAUSES: Final = {
    "unauthorized": "it has not allowed this computer yet: look at its screen",
    "offline": "it does not answer: plug it in anew, or restart adb with `adb kill-server`",
    "not found": "adb does not see it: plug it in, allow USB debugging, or use `adb connect` (see `adb devices`)",
    "no permissions": "this user may not use it: see the udev rules of Android's developer pages",
    "doesn't support": "its Android is too old: 7 or newer is needed",
}
"""What adb prints when it fails, and what that means."""


@dataclass(frozen=True, kw_only=True)
class Adb:
    """A device that the adb server of this machine sees. In an adb shell, TMPDIR is /data/local/tmp."""

    address: Address
    root: str = "${TMPDIR:-/data/local/tmp}/deploy-prune"

    def shell(
        self, script: str, timeout_s: float, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None
    ) -> Finished:
        """Run a script in the device's shell, whatever its exit code.

        Raises:
            CommandError: adb can't reach the device, it is unplugged meanwhile, or ``timeout_s`` are over.
        """
        whole = f"(\n{script}\n)\ncode=$?\necho '{_END}' >&2\nexit $code"
        words = [*self._client(), "shell", "-T", whole]
        done = run_to_end(words, timeout_s, stdin=stdin, stdout=stdout)
        errors, end, _ = done.errors.rpartition(_END)
        if not end:
            raise self._lost(done)
        return Finished(code=done.code, output=done.output, errors=errors)

    def send(self, source: Path, path: str, timeout_s: float) -> Finished:
        """Copy a file to the device."""
        return self._copied(run_to_end([*self._client(), "push", str(source), path], timeout_s))

    def fetch(self, path: str, target: Path, timeout_s: float, most_bytes: int) -> Finished:
        """Copy a file from the device."""
        most = Most(path=target, size_bytes=most_bytes)
        return self._copied(run_to_end([*self._client(), "pull", path, str(target)], timeout_s, most=most))

    def _copied(self, done: Finished) -> Finished:
        """A failure of the device's is for the caller (it says "remote"), one of adb's own is not."""
        if done.code and "remote" not in done.errors + done.output:
            raise self._lost(done)
        return Finished(code=done.code, output=done.output, errors=done.errors or done.output if done.code else "")

    def _client(self) -> list[str]:
        return ["adb", "-s", self.address.host]

    def _lost(self, done: Finished) -> CommandError:
        told = done.errors + done.output if done.code else done.errors
        known = (cause for words, cause in _CAUSES.items() if words in told)
        said = f" (adb: {tail(told, 1)})" if told.strip() else ""
        return CommandError(f"{self.address}: {next(known, 'the connection was lost')}{said}.")
