"""Check a bundle with the very script that it carries; nothing of the bundle's own code is run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from deploy_prune import errors
from deploy_prune.device import PAYLOAD, TIMEOUT_S
from deploy_prune.errors import CommandError, DeployPruneError, MeasurementError, printable
from deploy_prune.system import strict_json
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import clean_environment, run_command

VERIFY: Final = PAYLOAD / "verify.py"


@dataclass(frozen=True, kw_only=True)
class _Answer:
    told: tuple[str, ...]
    error: Literal["BundleError", "MeasurementError", "MissingDependencyError", "ParityError"] | None
    message: str


def verify(bundle: Path, hashes_only: bool = False, timeout_s: float = TIMEOUT_S) -> tuple[str, ...]:
    """Check a bundle's files, preprocessing and parity, in a separate process. Returns a line for each check.

    Args:
        bundle: a folder, or a zip, which may come from anywhere.
        hashes_only: the files alone, where the artifact's runtime isn't installed.
        timeout_s: for the whole check.

    Raises:
        BundleError: it is damaged, edited, unsafe or not there.
        MissingDependencyError: the files are right, but the artifact's runtime isn't installed.
        ParityError: preprocessing or artifact give other results than they should.
        MeasurementError: the artifact can't be run, or the check crashed or outlasted ``timeout_s``.
    """
    options = ["--json", "--timeout-s", f"{timeout_s + 5:g}", *(["--hashes-only"] if hashes_only else [])]
    command = [sys.executable, "-I", str(VERIFY), *options, "--", str(bundle)]
    try:
        with scratch() as folder:
            text = run_command(command, timeout_s, env=clean_environment(folder))
    except CommandError as error:
        message = f"The check of {bundle} did not finish. {error}"
        raise MeasurementError(message) from error
    told = strict_json.parse(text, MeasurementError, f"The check of {bundle}")
    answer = strict_json.conform(_Answer, told, MeasurementError, f"The check of {bundle}")
    if answer.error is not None:
        kind: type[DeployPruneError] = getattr(errors, answer.error)
        raise kind(answer.message)
    return tuple(map(printable, answer.told))
