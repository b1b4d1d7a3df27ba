"""A network's weights, from files. Nothing in them is run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from deploy_prune.networks.build import head_tensors
from deploy_prune.networks.checkpoints import Taken, read_all, read_for
from deploy_prune.recipe.parts import ModelPart


def load_weights(network: nn.Module, path: Path, key: str | None = None, fresh: Collection[str] = ()) -> Taken:
    """Copy a file's tensors into the network: a .safetensors file, or what torch.save wrote; nothing in it is run.

    Which of its tensors are the network's: `checkpoints`. Floats of another width are cast. ``num_batches_tracked`` may
    be missing.

    Args:
        network: what the tensors are copied into; unchanged where they don't fit.
        path: the file.
        key: the entry to take, where several fit (``model.weights_key``).
        fresh: tensors that stay as they are, and need not be in the file (``model.head: new``).

    Raises:
        WeightsError: missing, damaged, pickled code, or not this network's; the first tensor that differs is named.
    """
    state, taken = read_for(network.state_dict(), path, key, fresh)
    load_state(network, state, strict=False)
    return taken


def load_given(network: nn.Module, part: ModelPart, num_classes: int) -> Taken | None:
    """Copy the recipe's weights into a network of this part; None if it has none.

    With ``head: new`` the layers whose size follows from the number of classes stay as they are.

    Raises:
        WeightsError: as `load_weights`.
    """
    if part.weights is None:
        return None
    fresh = head_tensors(part, num_classes) if part.head == "new" else frozenset[str]()
    return load_weights(network, Path(part.weights), part.weights_key, fresh)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file.

    Raises:
        WeightsError: missing, damaged, or pickled code.
    """
    return read_all(path)


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """``load_state_dict`` of tensors that bear no versions: they are taken for this definition's, never an older one's.

    Some modules rebuild themselves for tensors without a version (torchvision's MNASNet its first layers).
    """
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(versioned, strict=strict)
