"""This machine as a device."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy_prune.errors import CommandError
from deploy_prune.shell import run_command


def local(payload: Path, spec: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run a payload on this machine in a fresh Python process, untouched by this one's threads and memory.

    Raises:
        CommandError: it fails, outlasts ``timeout_s``, or answers with something that is not a JSON object.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "KMP_", "PYTHON"))}
    text = run_command([sys.executable, "-I", str(payload)], timeout_s, stdin=json.dumps(dict(spec)), env=env)
    try:
        answer = json.loads(text)
    except ValueError as error:
        message = f"{payload.name} answered with something that is not JSON: {text[:80]!r}"
        raise CommandError(message) from error
    if not isinstance(answer, dict):
        message = f"{payload.name} answered with something that is not a JSON object: {text[:80]!r}"
        raise CommandError(message)
    return answer
