"""Proof that an artifact computes what the network does, in the artifact's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from deploy_prune import device
from deploy_prune.errors import ParityError
from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import eval_mode, flatten
from deploy_prune.export.noise import agreement, eight_bits, half, snr_db
from deploy_prune.types import Artifact

TOLERANCE: Final = 1e-4
"""Largest relative difference allowed in float32. ONNX Runtime's own is about 5e-8 to 1e-6 on convolution networks."""
HALF_TOLERANCE: Final = 1e-3
"""Half precision has 11 significant bits, 5e-4 relative each: a difference of two of them is allowed always, ..."""
HALF_MARGIN: Final = 8.0
"""... and so many times that of the network itself when torch rounds what its layers read to half precision: runtimes
also sum in it."""
MARGIN_DB: Final = 9.0
"""An int8 artifact may have this much more noise than the network with its tensors rounded to 8 bits. Runtimes round in
more places than the yardstick, and take ranges from other inputs: ONNX Runtime has 6 dB more on a CIFAR ResNet-20."""
LEAST_DB: Final = 6.0
"""With less than this, half of what the outputs tell is noise, and nothing is proven."""
MOST_DB: Final = 36.0
"""No more than this (less the margin) is asked for: a small network's few roundings can chance to cancel in torch."""
LOST: Final = 0.15
"""And so much less of the inputs may keep their largest output."""
CHUNK: Final = 512
"""Inputs that an artifact is given at a time."""


class Labelled(Protocol):
    """Examples: ``data.Examples``, or what is like them."""

    def __len__(self) -> int:
        """How many there are."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, C, H, W] and labels [B]."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the artifact's outputs are from the network's: the largest over all inputs and outputs.

    ``max_abs`` is in the output's unit, ``max_rel`` that divided by the output's largest magnitude. In int8
    ``tolerance`` is None and the worst output's ``snr_db`` (see ``noise``) must be ``least_db``.
    """

    max_abs: float
    max_rel: float
    tolerance: float | None
    num_inputs: int
    snr_db: float | None = None
    least_db: float | None = None
    agreement: float | None = None


def check_parity(network: nn.Module, artifact: Artifact, inputs: Tensor, tolerance: float | None = None) -> Parity:
    """Compare the artifact with the network, in eval mode, on real inputs [N, C, H, W].

    Per output, the difference is max|a - b| / max|a| with a the network's and b the artifact's. It may be
    ``tolerance``; default: `TOLERANCE` in fp32, in fp16 what the same network loses when torch rounds what its layers
    read to half precision, times `HALF_MARGIN`. In int8 noise is expected, so the artifact is held to what the network
    loses with 8 bits: signal to noise ratio, and the largest output.

    Raises:
        ParityError: they differ by more than is allowed, in number or shape, or are not finite; or the comparison
            would prove nothing, because an artifact that ignored its input would pass.
        MeasurementError: the artifact has changed since it was written, or its runtime can't run it.
    """
    expected = _reference(network, inputs, artifact.input_shape[0])
    exact = artifact.precision != "int8" or tolerance is not None
    allowed = (tolerance or _tolerance(network, artifact, inputs, expected)) if exact else None
    _refuse_vacuous(expected, allowed or 0.0)
    found = device.run(artifact, inputs, _runtime(artifact))
    if [a.shape for a in expected] != [b.shape for b in found]:
        message = f"{artifact.path} has outputs {_shapes(found)}, the network {_shapes(expected)}."
        raise ParityError(message)
    max_abs = max(float((a.double() - b.double()).abs().max()) for a, b in zip(expected, found, strict=True))
    max_rel = max(_relative(a, b) for a, b in zip(expected, found, strict=True))
    parity = Parity(max_abs=max_abs, max_rel=max_rel, tolerance=allowed, num_inputs=len(inputs))
    if allowed is None:
        return _check_noise(network, artifact, inputs, expected, found, parity)
    if not max_rel <= allowed:
        message = f"{artifact.path} differs from the network by {max_rel:.2g} relative (allowed: {allowed:g})."
        raise ParityError(message)
    return parity


def artifact_accuracy(artifact: Artifact, examples: Labelled) -> float:
    """Share of examples (0 to 1) whose highest output is their label, computed by the artifact in its own runtime.

    Examples that don't fill a last batch are left out.

    Raises:
        MeasurementError: the artifact can't be run.
    """
    batch, correct, num = artifact.input_shape[0], 0, len(examples)
    num -= num % batch
    step = max(batch, CHUNK - CHUNK % batch)
    for start in range(0, num, step):
        x, y = examples.take(torch.arange(start, min(start + step, num)))
        correct += int((device.run(artifact, x, _runtime(artifact))[0].argmax(1) == y).sum())
    return correct / num


def _tolerance(network: nn.Module, artifact: Artifact, inputs: Tensor, expected: Sequence[Tensor]) -> float:
    """The largest relative difference that the artifact may have in its precision, fp32 or fp16."""
    if artifact.precision == "fp32":
        return TOLERANCE
    with half():
        yardstick = _reference(network, inputs, artifact.input_shape[0])
    return max(HALF_TOLERANCE, HALF_MARGIN * max(map(_relative, expected, yardstick)))


def _check_noise(
    network: nn.Module, artifact: Artifact, inputs: Tensor, expected: Sequence[Tensor], found: Sequence[Tensor],
    parity: Parity,
) -> Parity:  # fmt: skip
    """Hold an int8 artifact to the network in 8 bits."""
    yardstick = _in_eight_bits(network, inputs)
    for a, b, c in zip(expected, found, yardstick, strict=True):
        if _is_constant(a):
            continue
        ratio, best = snr_db(a, b), snr_db(a, c)
        least = _least_db(best)
        same = agreement(a, b) if a.dim() == 2 and a.shape[1] > 1 else None
        if not ratio >= least:
            message = (
                f"{artifact.path} differs from the network: signal over noise is {ratio:.1f} dB; int8 should have "
                f"{least:.1f} dB (8 bits in torch: {best:.1f} dB). {_advice(best)}"
            )
            raise ParityError(message)
        if same is not None and same < agreement(a, c) - LOST:
            message = f"{artifact.path} differs: {same:.0%} of the largest outputs agree, {agreement(a, c):.0%} should."
            raise ParityError(message)
        if parity.snr_db is None or ratio < parity.snr_db:
            parity = replace(parity, snr_db=ratio, least_db=least, agreement=same)
    return parity


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What an artifact is held to wherever it goes: the network's outputs [N, ...] for some inputs, and how near to be.

    ``tolerance``: max|a - b| / max|a|; None in int8. ``least_db``: there, signal over noise per output, None for an
    output that doesn't depend on the input.
    """

    outputs: tuple[Tensor, ...]
    tolerance: float | None
    least_db: tuple[float | None, ...] | None


def reference(network: nn.Module, artifact: Artifact, inputs: Tensor) -> Reference:
    """What ``check_parity`` compares with, for inputs [N, C, H, W]; the artifact isn't run.

    Raises:
        ParityError: the outputs are not finite, or hardly depend on the inputs: a comparison would prove nothing.
    """
    expected = _reference(network, inputs, artifact.input_shape[0])
    tolerance = None if artifact.precision == "int8" else _tolerance(network, artifact, inputs, expected)
    _refuse_vacuous(expected, tolerance or 0.0)
    if tolerance is not None:
        return Reference(outputs=expected, tolerance=tolerance, least_db=None)
    pairs = zip(expected, _in_eight_bits(network, inputs), strict=True)
    least = tuple(None if _is_constant(a) else _least_db(snr_db(a, c)) for a, c in pairs)
    return Reference(outputs=expected, tolerance=None, least_db=least)


def _in_eight_bits(network: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    with eight_bits():
        return _reference(network, inputs, len(inputs))


def _advice(best: float) -> str:
    """What to change, given the ratio of 8 bits in torch."""
    if best < LEAST_DB:
        return "8 bits are too few for this network as it is: train it first if its weights are random, or use fp16."
    return "More calibration examples may help: values outside of their range are cut off."


def _is_constant(output: Tensor) -> bool:
    """An output that doesn't depend on the input has no signal."""
    return len(output) < 2 or bool((output == output[:1]).all())


def _least_db(best: float) -> float:
    return max(LEAST_DB, min(best, MOST_DB) - MARGIN_DB)


def can_run(artifact: Artifact) -> bool:
    """Whether the artifact can be run here: its format has a runtime, and the engine, if it needs one, is built."""
    kind = FORMATS[artifact.format]
    built: Callable[[Artifact], bool] = getattr(kind, "is_built", lambda artifact: True)
    return kind.runtime is not None and built(artifact)


def compare_contents(network: nn.Module, artifact: Artifact, inputs: Tensor) -> dict[str, Any] | None:
    """What is inside the artifact beside the network's layers, where its format can be read but not run; else None.

    Raises:
        ParityError: it differs.
    """
    compare = getattr(FORMATS[artifact.format], "compare", None)
    return None if compare is None else asdict(compare(network, artifact, inputs[: artifact.input_shape[0]]))


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
