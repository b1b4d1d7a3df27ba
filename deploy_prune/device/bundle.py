"""Check a bundle with the very script that it carries; nothing of the bundle's own code is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from deploy_prune import errors
from deploy_prune.device import PAYLOAD, TIMEOUT_S
from deploy_prune.errors import CommandError, DeployPruneError, MeasurementError
from deploy_prune.guard import scratch
from deploy_prune.shell import clean_environment, run_command

VERIFY: Final = PAYLOAD / "verify.py"


def verify(bundle: Path, hashes_only: bool = False, timeout_s: float = TIMEOUT_S) -> tuple[str, ...]:
    """Check a bundle's files, preprocessing and parity, in a process of its own; what was found right, a line each.

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
    options = ["--json", *(["--hashes-only"] if hashes_only else [])]
    command = [sys.executable, "-I", str(VERIFY), *options, "--", str(bundle)]
    try:
        with scratch() as folder:
            answer = json.loads(run_command(command, timeout_s, env=clean_environment(folder)))
    except (CommandError, ValueError) as error:
        message = f"The check of {bundle} came to no end. {error}"
        raise MeasurementError(message) from error
    if answer["error"] is not None:
        kind: type[DeployPruneError] = getattr(errors, answer["error"])
        raise kind(answer["message"])
    return tuple(answer["told"])
