"""Artifacts on real data: int8 calibration, and the proof that an artifact computes what its network does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_structure, tree_unflatten

from deploy_prune.data.examples import Examples, spread
from deploy_prune.data.splits import TransferData
from deploy_prune.export.parity import artifact_outputs, can_run, check_parity, compare_contents, unchecked
from deploy_prune.tasks import Objective
from deploy_prune.training.loop import network_score
from deploy_prune.types import Artifact

EXAMPLES: Final = 8
"""Real examples, spread over the classes, on which an artifact is compared with the network ..."""
NOISE_EXAMPLES: Final = 64
"""... and below fp32, where there is noise to tell from faults."""
CHUNK: Final = 512
"""Inputs that an artifact is given at a time, at most."""


def some_inputs(examples: Examples, num: int) -> tuple[Tensor, ...]:
    """So many inputs (or all there are), each [N, ...], with every class (if there are any) as often as it can be."""
    return examples.take(spread(examples.strata, num)).inputs


def calibration_inputs(data: TransferData, wanted: int) -> tuple[Tensor, ...]:
    """So many inputs (or all there are), each [N, ...], not augmented, evenly spread.

    The target task's training examples, and the source's if they are too few.
    """
    left, found = wanted, list[tuple[Tensor, ...]]()
    for examples in (data.target_train, data.source_train):
        num = min(left, len(examples))
        if num > 0:
            found.append(examples.take(torch.linspace(0, len(examples) - 1, num).round().long()).inputs)
            left -= num
    return tuple(torch.cat(each) for each in zip(*found, strict=True))


def prove_artifact(data: TransferData, network: nn.Module, artifact: Artifact, objective: Objective) -> dict[str, Any]:
    """What parity.json says: the comparison with the network and, below fp32, the score of both.

    Where it can't be run here: what its contents say, or that it is unchecked.

    Raises:
        ParityError: the artifact isn't the network.
        MeasurementError: it can't be run.
    """
    test = data.target_test
    if not can_run(artifact):
        contents = compare_contents(network, artifact, some_inputs(test, artifact.input_shape[0]))
        return {"max_abs": None, "contents": contents, "unchecked": unchecked(artifact)}
    exact = artifact.precision == "fp32"
    told = asdict(check_parity(network, artifact, some_inputs(test, EXAMPLES if exact else NOISE_EXAMPLES)))
    if exact:
        return told
    found = objective.judge(_outputs_and_targets(network, artifact, test))
    return {**told, "score": network_score(network, test, objective), "score_artifact": found}


@torch.no_grad()
def _outputs_and_targets(network: nn.Module, artifact: Artifact, examples: Examples) -> Iterator[tuple[Any, Any]]:
    """What the artifact gives in its own runtime, as the network would give it, and the examples' targets.

    Examples that don't fill a last batch are left out.
    """
    batch, num = artifact.input_shape[0], len(examples)
    shape = tree_structure(network.eval()(*some_inputs(examples, batch)))
    step = max(batch, CHUNK - CHUNK % batch)
    for start in range(0, num - num % batch, step):
        taken = examples.take(torch.arange(start, min(start + step, num - num % batch)))
        yield tree_unflatten(artifact_outputs(artifact, taken.inputs), shape), taken.targets
