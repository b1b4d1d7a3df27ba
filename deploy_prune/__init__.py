"""deploy-prune: from a network, a device and a latency budget to a slim, checked and measured artifact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploy_prune.export.python import export
    from deploy_prune.pruning import Pruned
    from deploy_prune.training import Session
    from deploy_prune.types import Task

__version__ = "0.1.0"
__all__ = ["__version__", "export", "load", "prune"]


def load(path: str | Path, *, trust: bool = False) -> nn.Module:
    """The slim network of a run's TARGET/BUDGET folder, in eval mode; see ``reuse.load``.

    Raises:
        ArchitectureError: the file is damaged, needs ``trust``, or doesn't fit the network's definition.
        RunFolderError: the weights are missing or damaged.
    """
    from deploy_prune import reuse

    return reuse.load(path, trust=trust)


def prune(
    network: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    task: Task,
    batches: Iterable[Any],
    *,
    budget: str | Sequence[str] = "50% macs",
    method: str = "gate",
    session: Session | None = None,
    **settings: Any,
) -> tuple[Pruned, ...]:
    """Prune any network for any differentiable loss: one slim network per budget; see ``pruning.prune``.

    Raises:
        DeployPruneError: as there.
    """
    from deploy_prune import pruning

    return pruning.prune(network, inputs, task, batches, budget=budget, method=method, session=session, **settings)


def __getattr__(name: str) -> Any:
    """``export``, loaded when it is first asked for: the package of that name, which can be called."""
    if name == "export":
        import importlib

        return importlib.import_module("deploy_prune.export")
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
