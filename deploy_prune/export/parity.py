"""Proof that an artifact computes what the network does, in the artifact's own runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune import device
from deploy_prune.errors import ParityError
from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import eval_mode, flatten
from deploy_prune.types import Artifact

TOLERANCE: Final = 1e-4
"""Largest relative difference allowed in float32. ONNX Runtime's own is about 5e-8 to 1e-6 on convolution networks."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the artifact's outputs are from the network's: the largest over all inputs and outputs.

    ``max_abs`` is in the output's unit, ``max_rel`` that divided by the output's largest magnitude.
    """

    max_abs: float
    max_rel: float
    tolerance: float
    num_inputs: int


def check_parity(network: nn.Module, artifact: Artifact, inputs: Tensor, tolerance: float = TOLERANCE) -> Parity:
    """Compare the artifact with the network, in eval mode, on real inputs [N, C, H, W].

    Per output, the difference is max|a - b| / max|a| with a the network's and b the artifact's.

    Raises:
        ParityError: they differ by more than ``tolerance``, in number or shape, or are not finite; or the comparison
            would prove nothing, because an artifact that ignored its input would pass.
    """
    expected = _reference(network, inputs, artifact.input_shape[0])
    _refuse_vacuous(expected, tolerance)
    found = device.run(artifact, inputs, _runtime(artifact))
    if [a.shape for a in expected] != [b.shape for b in found]:
        message = f"{artifact.path} has outputs {_shapes(found)}, the network {_shapes(expected)}."
        raise ParityError(message)
    max_abs = max(float((a.double() - b.double()).abs().max()) for a, b in zip(expected, found, strict=True))
    max_rel = max(_relative(a, b) for a, b in zip(expected, found, strict=True))
    if not max_rel <= tolerance:
        message = f"{artifact.path} differs from the network by {max_rel:.2g} relative (allowed: {tolerance:g})."
        raise ParityError(message)
    return Parity(max_abs=max_abs, max_rel=max_rel, tolerance=tolerance, num_inputs=len(inputs))


def _runtime(artifact: Artifact) -> str:
    runtime = FORMATS[artifact.format].runtime
    if runtime is None:
        message = f"{artifact.path} can't be checked: nothing here runs the format {artifact.format}."
        raise ParityError(message)
    return runtime


def _reference(network: nn.Module, inputs: Tensor, batch: int) -> tuple[Tensor, ...]:
    """The network's outputs on the CPU, computed in the artifact's batches."""
    place = next((p.device for p in network.parameters()), inputs.device)
    chunks = [inputs[start : start + batch].to(place) for start in range(0, len(inputs), batch)]
    with eval_mode(network), torch.no_grad():
        parts = [flatten(network(chunk)) for chunk in chunks]
    return tuple(torch.cat([y.cpu() for y in column]) for column in zip(*parts, strict=True))


def _refuse_vacuous(expected: Sequence[Tensor], tolerance: float) -> None:
    """An artifact that gave the same answer to every input would be off by at least half of the outputs' range."""
    if not all(bool(y.isfinite().all()) for y in expected):
        message = "The network's outputs are not finite, so nothing can be compared: check its weights."
        raise ParityError(message)
    moves = max(_relative(y, y[:1].expand_as(y)) for y in expected)
    if moves <= 2 * tolerance:
        message = (
            f"The network's outputs move by only {moves:.2g} relative over {len(expected[0])} inputs, so comparing"
            " proves nothing: give two or more different inputs, and check that the weights are trained."
        )
        raise ParityError(message)


def _relative(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|a|; infinite if b is not finite, or a is all zero and b is not."""
    if not bool(b.isfinite().all()):
        return float("inf")
    difference, scale = float((a.double() - b.double()).abs().max()), float(a.double().abs().max())
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / scale


def _shapes(outputs: Sequence[Tensor]) -> str:
    return ", ".join("x".join(map(str, y.shape)) for y in outputs)
