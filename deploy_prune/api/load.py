"""What can be done with a finished run: load its networks, export them for other targets."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from deploy_prune.architecture import json_file
from deploy_prune.run.folder import load_tensors


def load(path: str | Path, *, trust: bool = False) -> nn.Module:
    """Load a slim network, in eval mode. Nothing is unpickled.

    Args:
        path: a folder with architecture.json and weights.safetensors, such as a run's TARGET/BUDGET folder. Or an
            architecture.json alone: then the weights are new, from torch's global generator.
        trust: allow code of your own (``module:callable``) that the file names to be imported and called.

    Raises:
        ArchitectureError: the file is damaged, needs ``trust``, or doesn't fit the network's code.
        RunFolderError: the weights are missing or damaged.
    """
    path = Path(path)
    file = path / "architecture.json" if path.is_dir() else path
    described = json_file.load(file)
    slim = json_file.build_slim(described, json_file.dense_network(described, trust))
    if path.is_dir():
        json_file.load_weights(slim, load_tensors(path / "weights.safetensors"), path)
    return slim.eval()
