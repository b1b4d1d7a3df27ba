"""Build Ultralytics' networks by name, with fresh weights: from the descriptions in the package, without a download.

The package is AGPL-3.0: an extra, imported only here and only when such a network is asked for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from torch import nn

from deploy_prune.errors import MissingDependencyError, ModelError, perhaps
from deploy_prune.networks.libraries import import_torchvision

_CLASSES: Final = {
    "Detect": "DetectionModel", "v10Detect": "DetectionModel", "Segment": "SegmentationModel", "Pose": "PoseModel",
}  # fmt: skip
"""A description's last layer -> the class of its network."""


def builder(name: str) -> Callable[..., nn.Module]:
    """Builds the network of this name, such as yolov8n, yolo11s-seg or yolov8n-pose, from (num_classes, ch).

    ``ch``: its input channels, 3 if they aren't given.

    Raises:
        MissingDependencyError: Ultralytics isn't installed.
        ModelError: it has no network of this name, or one that isn't a detector of boxes, masks or keypoints.
    """
    if find_spec("ultralytics") is None:
        message = "The package ultralytics is not installed: run `pip install 'deploy-prune[ultralytics]'`."
        raise MissingDependencyError(message)
    import_torchvision()
    if name not in (known := names()):
        message = f"model.source: Ultralytics has no network {name!r}.{perhaps(name, known)}"
        raise ModelError(message)
    tasks = importlib.import_module("ultralytics.nn.tasks")
    description = tasks.yaml_model_load(f"{name}.yaml")
    head = description["head"][-1][2]
    if head not in _CLASSES:
        message = f"model.source: {name} of Ultralytics can't be taken: its last layer is {head}; known are "
        message += f"{', '.join(_CLASSES)}: detectors of boxes, masks and keypoints."
        raise ModelError(message)
    tasks = importlib.import_module("ultralytics.nn.tasks")
    return partial(_built, getattr(tasks, _CLASSES[head]), description)


def _built(kind: Callable[..., nn.Module], description: Mapping[str, Any], num_classes: int, ch: int = 3) -> nn.Module:
    return kind({**description, "nc": num_classes}, ch=ch, nc=num_classes, verbose=False)


@cache
def names() -> tuple[str, ...]:
    """Of all networks that the package describes: a file's name, with the letter of a size if it has several."""
    spec = find_spec("ultralytics")
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = sorted(path for folder in folders for path in (Path(folder) / "cfg" / "models").rglob("*.yaml"))
    return tuple(name for path in files for name in _sizes(path))


def _sizes(path: Path) -> list[str]:
    sizes = re.findall(r"^  ([nsmlx]): \[", path.read_text(encoding="utf-8"), re.MULTILINE)
    series = re.fullmatch(r"(yolo(?:e-)?v?\d+)((?:-.*)?)", path.stem)
    return [f"{series[1]}{size}{series[2]}" for size in sizes] if series and sizes else [path.stem]
