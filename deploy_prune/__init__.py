"""deploy-prune: from a network, a device and a latency budget to a slim, checked and measured artifact."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any, Final

from deploy_prune.version import __version__

if TYPE_CHECKING:
    from deploy_prune.api.bundle import export_bundle
    from deploy_prune.api.export import export_network
    from deploy_prune.api.load import load
    from deploy_prune.api.prune import prune
    from deploy_prune.api.run import run_network, run_recipe
    from deploy_prune.api.save import save
    from deploy_prune.data.dataset_examples import task_data
    from deploy_prune.families.raw_form import RawForm
    from deploy_prune.report.terminal import rich_progress
    from deploy_prune.tasks.task import Drawn, Score, Task

__all__ = [
    "Drawn", "RawForm", "Score", "Task", "__version__", "export_bundle", "export_network", "load", "prune",
    "rich_progress", "run_network", "run_recipe", "save", "task_data",
]  # fmt: skip

_OFFERED: Final = {
    "export_bundle": "deploy_prune.api.bundle",
    "export_network": "deploy_prune.api.export",
    "load": "deploy_prune.api.load",
    "prune": "deploy_prune.api.prune",
    "rich_progress": "deploy_prune.report.terminal",
    "run_network": "deploy_prune.api.run",
    "run_recipe": "deploy_prune.api.run",
    "save": "deploy_prune.api.save",
    "Drawn": "deploy_prune.tasks.task",
    "RawForm": "deploy_prune.families.raw_form",
    "Score": "deploy_prune.tasks.task",
    "Task": "deploy_prune.tasks.task",
    "task_data": "deploy_prune.data.dataset_examples",
}
"""Each public name's module, which is imported when the name is first asked for: torch takes seconds."""

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's, of a notebook's bars, which accelerate imports


def __getattr__(name: str) -> Any:
    """A public function or class, from its module."""
    if name not in _OFFERED:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(_OFFERED[name]), name)
