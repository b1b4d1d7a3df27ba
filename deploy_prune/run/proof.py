"""Artifacts on real data: int8 calibration, and the proof that an artifact computes what its network does."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.data.splits import TransferData
from deploy_prune.export.parity import artifact_accuracy, can_run, check_parity, compare_contents, unchecked
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.training.loop import accuracy
from deploy_prune.types import Artifact

EXAMPLES: Final = 8
"""Real examples, spread over the classes, on which an artifact is compared with the network ..."""
NOISE_EXAMPLES: Final = 64
"""... and below fp32, where there is noise to tell from faults."""


def calibration_inputs(examples: TransferData, part: ExportPart) -> Tensor:
    """So many inputs [N, C, H, W] as the part says (or all there are), normalised, not augmented, evenly spread.

    The target task's training examples, and the source's if they are too few.
    """
    wanted, found = part.calibration_examples, list[Tensor]()
    for each in (examples.target_train, examples.source_train):
        num = min(wanted - sum(map(len, found)), len(each))
        if num > 0:
            found.append(each.take(torch.linspace(0, len(each) - 1, num).round().long())[0])
    return torch.cat(found)


def prove_artifact(examples: TransferData, network: nn.Module, artifact: Artifact) -> dict[str, Any]:
    """What parity.json says: the comparison with the network and, below fp32, the accuracy of both.

    Where it can't be run here: what its contents say, or that it is unchecked.

    Raises:
        ParityError: the artifact isn't the network.
        MeasurementError: it can't be run.
    """
    test = examples.target_test
    if not can_run(artifact):
        contents = compare_contents(network, artifact, test.take(test.spread(artifact.input_shape[0]))[0])
        return {"max_abs": None, "contents": contents, "unchecked": unchecked(artifact)}
    exact = artifact.precision == "fp32"
    inputs = test.take(test.spread(EXAMPLES if exact else NOISE_EXAMPLES))[0]
    told = asdict(check_parity(network, artifact, inputs))
    if exact:
        return told
    return {**told, "accuracy": accuracy(network, test), "accuracy_artifact": artifact_accuracy(artifact, test)}
