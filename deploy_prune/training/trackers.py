"""Send a run's figures to experiment trackers, through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from accelerate import Accelerator
from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_wandb_available

from deploy_prune.errors import MissingDependencyError
from deploy_prune.types import Progress

AVAILABLE: Final[dict[str, Callable[[], bool]]] = {
    "tensorboard": is_tensorboard_available,
    "mlflow": is_mlflow_available,
    "wandb": is_wandb_available,
}
"""Every tracker that a recipe may name, and whether its package is installed."""


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not there.

    Raises:
        MissingDependencyError: with the command that installs the first of them.
    """
    for name in names:
        if not AVAILABLE[name]():
            message = f"track: {name} is not installed: pip install {name}, or leave it out."
            raise MissingDependencyError(message)


class Tracked:
    """A progress that is told on, and whose figures go to the accelerator's trackers as "work/figure".

    Steps are counted over all works, for trackers want them to grow. ``accelerator.end_training()`` closes them.
    """

    def __init__(self, progress: Progress, accelerator: Accelerator, project: str, config: Mapping[str, Any]) -> None:
        self.progress, self.accelerator, self.num_logged = progress, accelerator, 0
        accelerator.init_trackers(project, config=dict(config))

    def __call__(self, work: str, done: int, total: int, **figures: float) -> None:
        """Tell the progress, then log the figures."""
        self.progress(work, done, total, **figures)
        if figures:
            self.num_logged += 1
            self.accelerator.log({f"{work}/{name}": value for name, value in figures.items()}, step=self.num_logged)
