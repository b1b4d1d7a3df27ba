"""This machine as a device."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy_prune.errors import CommandError
from deploy_prune.system import strict_json
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import clean_environment, run_command


def local(payload: Path, spec: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run a payload on this machine in a fresh Python process, untouched by this one's threads and memory.

    Raises:
        CommandError: it fails, outlasts ``timeout_s``, or answers with something that is not a JSON object.
    """
    with scratch() as folder:
        clean = clean_environment(folder).items()
        env = {key: value for key, value in clean if not key.startswith(("OMP_", "KMP_"))}
        text = run_command([sys.executable, "-I", str(payload)], timeout_s, stdin=json.dumps(dict(spec)), env=env)
    return as_object(text, payload.name)


def as_object(text: str, name: str) -> dict[str, Any]:
    """The JSON object in the last line of what a payload printed: a login shell may have said something before it.

    Raises:
        CommandError: there is none.
    """
    last = text.strip().rpartition("\n")[2]
    if len(last) > strict_json.MAX_BYTES:
        message = f"{name} answered with {len(last)} characters, which is too much for an answer."
        raise CommandError(message)
    answer = strict_json.parse(last, CommandError, f"{name} answered {last[:80]!r}")
    if not isinstance(answer, dict):
        message = f"{name} answered with something that is not a JSON object: {last[:80]!r}"
        raise CommandError(message)
    return answer
