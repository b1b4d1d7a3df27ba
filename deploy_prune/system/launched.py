"""Launchers such as torchrun start a command several times at once; here it starts its own processes."""

from __future__ import annotations

import os
from typing import Final

from deploy_prune.errors import TrainingError

SIZES: Final = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Where torchrun, accelerate and mpirun say how many processes they have started."""


def require_started_once() -> None:
    """Refuse to do the same work several times.

    Raises:
        TrainingError: a launcher has started this command more than once.
    """
    for name in SIZES:
        size = os.environ.get(name, "")
        if size.isdecimal() and int(size) > 1:
            message = (
                f"A launcher has started this command {size} times at once ({name} is {size}), and each would do the "
                f"whole work: start it once, without torchrun or accelerate launch, with --set processes={size}."
            )
            raise TrainingError(message)
