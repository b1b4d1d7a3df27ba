"""The process that writes artifacts; started by ``isolated``. One JSON request a line, one JSON answer a line."""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from deploy_prune.errors import DeployPruneError
from deploy_prune.export.artifact import as_module, first_line, quiet
from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.recipe.parts import ExportPart


def main() -> None:
    """Answer until standard input ends. What formats print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The written artifact's description, or the error's class and message."""
    try:
        return {"artifact": _write(request)}
    except DeployPruneError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # the vendors' exceptions have no common base but Exception
        name = request["module"].rpartition(".")[2]
        message = f"The {name} file can't be written: {type(error).__name__}: {first_line(error)[:300]}"
        return {"error": "ExportError", "message": message}


def _write(request: dict[str, Any]) -> dict[str, Any]:
    if request["torchvision"]:
        import_torchvision()  # declares its operators; that takes as long as importing torch
    kind = importlib.import_module(request["module"])
    tensors = torch.load(request["tensors"], weights_only=True)
    with quiet():
        network = as_module(torch.export.load(request["program"]))
    artifact = kind.write(
        network,
        tensors["example"],
        Path(request["path"]),
        request["precision"],
        ExportPart.model_validate(request["part"]),
        tensors["calibration"],
    )
    return {**asdict(artifact), "path": str(artifact.path), "versions": dict(artifact.versions)}
