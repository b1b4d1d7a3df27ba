"""A format whose faults are its precisions."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from deploy_prune.errors import BudgetError
from deploy_prune.export.artifact import Extra, describe
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.types import Artifact

suffix: Final = ".txt"
precisions: Final = (
    "fp32",
    "crash",
    "hang",
    "eat",
    "exit",
    "raise",
    "named",
    "chatter",
    "half",
    "keep",
    "import",
    "libraries",
)
_kept: Final[list[bytes]] = []
runtime: Final[str | None] = None
extra: Final[Extra | None] = None
packages: Final = ("torch",)


def write(
    network: nn.Module,
    example: Tensor,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Tensor | None = None,
) -> Artifact:
    """The sum of the network's outputs, as text, or a fault."""
    if precision == "crash":
        print("about to fall", file=sys.stderr, flush=True)
        ctypes.string_at(0)
    elif precision == "hang":
        print("still going", flush=True)
        time.sleep(60)
    elif precision == "eat":
        kept = []
        for _ in range(200):
            kept.append(b"x" * 50_000_000)
            time.sleep(0.02)
    elif precision == "keep":
        _kept.append(b"x" * 1_600_000_000)
    elif precision == "exit":
        os.write(2, b"one\ntwo\nthree\n")
        os._exit(3)
    elif precision == "raise":
        message = f"no such thing\nas {path}"
        raise KeyError(message)
    elif precision == "named":
        message = "The limit is missed."
        raise BudgetError(message)
    elif precision == "chatter":
        print("noise")
        os.system("echo more noise")
    elif precision == "import":
        for name in ("json", "importlib", "typing", "torch", "numpy", "onnx", "tensorrt", "openvino", "planted"):
            with suppress(ImportError):
                import_module(name)
        subprocess.run([sys.executable, "-c", "import json, typing, importlib"], check=True)
    elif precision == "half":
        path.write_text("half")
        ctypes.string_at(0)
    if precision == "libraries":
        path.write_text(f"torchvision {'torchvision' in sys.modules}")
    else:
        total = float(network(example if calibration is None else calibration).sum())
        path.write_text(f"{total:.6f} {part.opset} {os.getpid()}")
    return describe(path, format="planted", precision=precision, input_shape=example.shape, versions={"planted": "1"})
