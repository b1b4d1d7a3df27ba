"""deploy-prune: from a network, a device and a latency budget to a slim, checked and measured artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path, *, trust: bool = False) -> nn.Module:
    """The slim network of a run's TARGET/BUDGET folder, in eval mode; see ``reuse.load``.

    Raises:
        ArchitectureError: the file is damaged, needs ``trust``, or doesn't fit the network's definition.
        RunFolderError: the weights are missing or damaged.
    """
    from deploy_prune import reuse

    return reuse.load(path, trust=trust)
