"""Bundles of a small network, and ways to plant faults in them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.bundle import write
from deploy_prune.bundle.write import Bundle, Contents
from deploy_prune.export import FORMATS, isolated
from deploy_prune.recipe.parts import ExportPart

SIZE, CLASSES = 12, 5
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
LABELS = ("ant", "bee", "cat", "dog", "emu")
RUN = [sys.executable, "-I"]


class Net(nn.Module):
    """Two convolutions, one of them depthwise, and a head; not symmetric in colours, height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depth, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8 * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depth(F.relu(self.norm(self.stem(x)))))
        return self.head(F.avg_pool2d(x, 4).flatten(1))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = Net()
    nn.init.normal_(made.norm.bias, 0, 0.5)
    return made.eval()


def images(count: int, seed: int = 1) -> Tensor:
    """Smooth images of different colours, uint8 [N, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    return (F.interpolate(coarse, SIZE, mode="bilinear") * 255).round().to(torch.uint8)


def inputs(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def artifact(folder: Path, kind: tuple[str, str] = ("onnx", "fp32"), net: nn.Module | None = None) -> Any:
    """The network's artifact of a (format, precision); as in a run, in a process of its own."""
    name, precision = kind
    example, calibration = torch.zeros(1, 3, SIZE, SIZE), inputs(images(64, seed=2))
    path = folder / f"model{FORMATS[name].suffix}"
    return isolated.write(name, net or network(), example, path, precision, ExportPart(), calibration)


def contents(folder: Path, kind: tuple[str, str] = ("onnx", "fp32"), **changes: Any) -> Contents:
    pixels = images(16)
    values: dict[str, Any] = {
        "about": {"run": "small", "target": "a-device", "budget": "50%"}, "network": network(), "images": pixels,
        "inputs": inputs(pixels), "mean": MEAN, "std": STD, "labels": LABELS, "are_names": True,
        "parity": {"max_abs": 1e-7}, "latency": {"in_words": "1.00 ms (predicted)"}, "provenance": {"seed": 3},
    }  # fmt: skip
    return Contents(**{"artifact": artifact(folder, kind), **values, **changes})


def made(folder: Path, kind: tuple[str, str] = ("onnx", "fp32")) -> Bundle:
    """A bundle in ``folder``/small, its artifact in ``folder``/run."""
    (folder / "run").mkdir()
    return write.write(contents(folder / "run", kind), folder / "small")


def rehash(folder: Path) -> None:
    """Make provenance.json right again, as somebody would who wants a changed bundle to pass."""
    path = folder / "provenance.json"
    told = json.loads(path.read_text())
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p != path]
    told["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)}
    path.write_text(json.dumps(told))


def replace_artifact(folder: Path, path: Path) -> None:
    """Another artifact in the place of the bundle's, with sums that fit."""
    old = folder / path.name
    shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(path, old) if path.is_dir() else shutil.copyfile(path, old)
    rehash(folder)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def script(folder: Path, name: str, *args: str | Path, options: Sequence[str] = ("-I",)) -> Any:
    """The bundle's own script, in a process of its own, with nothing but an isolated Python."""
    command = [sys.executable, *options, str(folder / "python" / f"{name}.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
