"""torch.compile, where a recipe asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from deploy_prune.errors import TrainingError


@contextmanager
def compiled(network: nn.Module, wanted: bool) -> Iterator[nn.Module]:
    """The network, compiled for training, if that is wanted; its weights are the network's own.

    Raises:
        TrainingError: torch can't compile it, or finds no compiler on this machine.
    """
    if not wanted:
        yield network
        return
    from torch._dynamo.exc import TorchDynamoException

    before = dict(vars(network))
    try:
        yield cast(nn.Module, torch.compile(network))
    except TorchDynamoException as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        message = f"compile: torch can't compile the network here: {cause}; leave `compile` out."
        raise TrainingError(message) from error
    finally:
        for name in vars(network).keys() - before.keys():  # what torch notes there
            delattr(network, name)
