"""Proof that an artifact computes what the network does, in the artifact's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune import device
from deploy_prune.errors import ParityError
from deploy_prune.export import FORMATS
from deploy_prune.export.artifact import eval_mode, flatten
from deploy_prune.export.inputs import Given, as_given, pieces, several
from deploy_prune.export.noise import agreement, eight_bits, half, single, snr_db
from deploy_prune.export.overflow import LARGEST, stored_in_half
from deploy_prune.networks.compare import is_finite, relative
from deploy_prune.types import Artifact

TOLERANCE: Final = 1e-4
"""A relative difference that is always allowed in float32: runtimes' own is about 5e-8 to 1e-5 on most networks, ..."""
MARGIN: Final = 8.0
"""... and so many times what float32 itself loses on the network, beside float64: of five runtimes on seven networks of
benchmarks/_zoo_networks.py, with calibrated norms, the worst had 3.7 times as much, and half of them 1.5 or less."""
CEILING: Final = 1e-3
"""More is never allowed in float32: of 144 exchanges of two channels in one layer, in twelve networks of
benchmarks/_zoo_networks.py, all but one moved the outputs further (the middle one by 0.13)."""
HALF_TOLERANCE: Final = 1e-3
"""Half precision has 11 significant bits, 5e-4 relative each: a difference of two of them is allowed always, ..."""
HALF_MARGIN: Final = 8.0
"""... and so many times that of the network itself when torch rounds what its layers read to half precision: runtimes
also sum in it."""
HALF_CEILING: Final = 0.025
"""More is never allowed in half precision: twice what the worst honest file of benchmarks/parity.py had (0.012, of
trained networks in seven formats), and a fifth of what the middle one of those exchanges does."""
MARGIN_DB: Final = 9.0
"""An int8 artifact may have this much more noise than the network with its tensors rounded to 8 bits. Runtimes round in
more places than the yardstick, and take ranges from other inputs: ONNX Runtime has 6 dB more on a CIFAR ResNet-20."""
LEAST_DB: Final = 6.0
"""With less than this, half of what the outputs tell is noise, and nothing is proven."""
MOST_DB: Final = 36.0
"""No more than this (less the margin) is asked for: a small network's few roundings can chance to cancel in torch."""
CONSTANT: Final = 10 ** (-(MOST_DB - MARGIN_DB) / 20)
"""What that is as an amplitude: so far, relative, may be an output that has no signal, for it never changes."""
LOST: Final = 0.15
"""And so much less of the inputs may keep their largest output, ..."""
LOST_INPUTS: Final = 2
"""... but always so many inputs: of 8, two near ties are 25%, and say nothing."""


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


def check_parity(network: nn.Module, artifact: Artifact, inputs: Given, tolerance: float | None = None) -> Parity:
    """Compare the artifact with the network, in eval mode, on real inputs [N, C, H, W].

    Per output, the difference is max|a - b| / max|a| with a the network's and b the artifact's. It may be
    ``tolerance``; default: `TOLERANCE` in fp32, and `HALF_TOLERANCE` in fp16, or what the same network loses in torch
    (float32 beside float64; what its layers read rounded to half precision) times `MARGIN` or `HALF_MARGIN`, if that is
    more, but never more than `CEILING` or `HALF_CEILING`. In int8 noise is expected, so the artifact is held to what
    the network loses with 8 bits: signal to noise ratio, and the largest output.

    Raises:
        ParityError: they differ by more than is allowed, in number or shape, or are not finite; the inputs aren't of
            the artifact's shape; values overflow in half precision; or the comparison would prove nothing, because an
            artifact that ignored its input would pass.
        MeasurementError: the artifact has changed since it was written, or its runtime can't run it.
    """
    _require_shape(artifact, inputs)
    expected = _reference(network, inputs, artifact.input_shape[0])
    _refuse_vacuous(expected, tolerance or 0.0)
    allowed = tolerance
    if tolerance is None and artifact.precision == "fp16":
        allowed = _tolerance(network, artifact, inputs, expected)
    elif tolerance is None and artifact.precision == "fp32":
        allowed = TOLERANCE
    _refuse_vacuous(expected, allowed or 0.0)
    found = device.run(artifact, as_given(several(inputs)), _runtime(artifact))
    if [a.shape for a in expected] != [b.shape for b in found]:
        message = f"{artifact.path} differs: it has outputs {_shapes(found)}, the network {_shapes(expected)}."
        raise ParityError(message)
    max_rel = max(map(_relative, expected, found))
    if tolerance is None and artifact.precision == "fp32" and TOLERANCE < max_rel <= CEILING:
        allowed = _tolerance(network, artifact, inputs, expected)  # float64 is slow, and mostly not needed
        _refuse_vacuous(expected, allowed)
    parity = Parity(max_abs=_farthest(expected, found), max_rel=max_rel, tolerance=allowed, num_inputs=_rows(inputs))
    if allowed is None:
        return _check_noise(network, artifact, inputs, expected, found, parity)
    if not max_rel <= allowed:
        message = f"{artifact.path} differs from the network by {max_rel:.2g} relative (allowed: {allowed:g})."
        raise ParityError(message)
    return parity


def _require_shape(artifact: Artifact, inputs: Given) -> None:
    given = several(inputs)
    if [tuple(x.shape[1:]) for x in given] != [tuple(shape[1:]) for shape in artifact.shapes]:
        made = ", ".join("x".join(map(str, shape)) for shape in artifact.shapes)
        message = f"{artifact.path} differs: it is made for inputs {made}, and compared on {_shapes(given)}."
        raise ParityError(message)


def _farthest(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """max|a - b| over all outputs; infinite where one of them isn't finite."""
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True) if a.numel()]
    return max((float((a - b).abs().max().nan_to_num(inf)) for a, b in pairs), default=0.0)


def artifact_outputs(artifact: Artifact, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the artifact gives for inputs [N, ...] in its own runtime, in order; N is a multiple of its batch.

    Raises:
        MeasurementError: the artifact can't be run.
    """
    return device.run(artifact, as_given(inputs), _runtime(artifact))


def _tolerance(network: nn.Module, artifact: Artifact, inputs: Given, expected: Sequence[Tensor]) -> float:
    """The largest relative difference that the artifact may have in its precision, fp32 or fp16.

    Raises:
        ParityError: the network's values overflow in half precision.
    """
    batch = artifact.input_shape[0]
    if artifact.precision == "fp32":
        yardstick = single(lambda net, x: _reference(net, x, batch), network, inputs)
        return min(CEILING, max(TOLERANCE, MARGIN * max(map(_relative, yardstick, expected))))
    _refuse_overflow(network, inputs, batch, expected)
    with half():
        yardstick = _reference(network, inputs, batch)
    return min(HALF_CEILING, max(HALF_TOLERANCE, HALF_MARGIN * max(map(_relative, expected, yardstick))))


def _refuse_overflow(network: nn.Module, inputs: Given, batch: int, expected: Sequence[Tensor]) -> None:
    """Stop if values that half precision can't hold spoil the outputs."""
    stored, overflow = stored_in_half(network, inputs, batch)
    if overflow is not None and not max(map(_relative, expected, stored)) <= HALF_CEILING:
        message = (
            f"Half precision (fp16) holds values up to {LARGEST:g}, and {overflow.where} reaches "
            f"{overflow.magnitude:.3g}: an fp16 artifact overflows there. Export it in fp32, or scale the values down "
            "there (the layer's weights, or the inputs) and up again after it."
        )
        raise ParityError(message)


def _check_noise(
    network: nn.Module, artifact: Artifact, inputs: Given, expected: Sequence[Tensor], found: Sequence[Tensor],
    parity: Parity,
) -> Parity:  # fmt: skip
    """Hold an int8 artifact to the network in 8 bits."""
    yardstick = _in_eight_bits(network, inputs)
    for number, (a, b, c) in enumerate(zip(expected, found, yardstick, strict=True)):
        if _is_constant(a):
            if not _relative(a, b) <= CONSTANT:
                message = f"{artifact.path} differs from the network by {_relative(a, b):.2g} in an output that never "
                message += f"changes (allowed in int8: {CONSTANT:g})."
                raise ParityError(message)
            continue
        ratio, best = snr_db(a, b), snr_db(a, c)
        least = _least_db(best)
        same = agreement(a, b) if a.dim() == 2 and a.shape[1] > 1 else None
        if not ratio >= least:
            message = (
                f"{artifact.path} differs from the network: signal over noise is {ratio:.1f} dB; int8 should have "
                f"{least:.1f} dB (8 bits in torch: {best:.1f} dB). {_advice(network, inputs, number, least)}"
            )
            raise ParityError(message)
        if same is not None and same < agreement(a, c) - max(LOST, LOST_INPUTS / len(a)):
            message = f"{artifact.path} differs: {same:.0%} of the largest outputs agree, {agreement(a, c):.0%} should."
            raise ParityError(message)
        if parity.snr_db is None or ratio < parity.snr_db:
            parity = replace(parity, snr_db=ratio, least_db=least, agreement=same)
    return parity


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What an artifact is held to wherever it goes: the network's outputs [N, ...] for some inputs, and how near to be.

    ``tolerance``: max|a - b| / max|a|; None in int8. ``least_db``: there, signal over noise per output, None for an
    output that doesn't depend on the input. ``rounded``: there, the network's outputs in 8 bits.
    """

    outputs: tuple[Tensor, ...]
    tolerance: float | None
    least_db: tuple[float | None, ...] | None
    rounded: tuple[Tensor, ...] | None = None


def reference(network: nn.Module, artifact: Artifact, inputs: Given) -> Reference:
    """What ``check_parity`` compares with, for inputs [N, C, H, W]; the artifact isn't run.

    Raises:
        ParityError: the outputs are not finite, or hardly depend on the inputs: a comparison would prove nothing; or
            values overflow in half precision.
    """
    _require_shape(artifact, inputs)
    expected = _reference(network, inputs, artifact.input_shape[0])
    _refuse_vacuous(expected, 0.0)
    tolerance = None if artifact.precision == "int8" else _tolerance(network, artifact, inputs, expected)
    _refuse_vacuous(expected, tolerance or 0.0)
    if tolerance is not None:
        return Reference(outputs=expected, tolerance=tolerance, least_db=None)
    rounded = _in_eight_bits(network, inputs)
    pairs = zip(expected, rounded, strict=True)
    least = tuple(None if _is_constant(a) else _least_db(snr_db(a, c)) for a, c in pairs)
    return Reference(outputs=expected, tolerance=None, least_db=least, rounded=rounded)


def _in_eight_bits(network: nn.Module, inputs: Given) -> tuple[Tensor, ...]:
    with eight_bits():
        return _reference(network, inputs, _rows(inputs))


def _advice(network: nn.Module, inputs: Given, number: int, least: float) -> str:
    """What to change, given the dB of output ``number``: does torch have them where layers' results are rounded too?"""
    expected = _reference(network, inputs, _rows(inputs))[number]
    with eight_bits(results=True):
        stored = _reference(network, inputs, _rows(inputs))[number]
    if snr_db(expected, stored) < least:
        return "8 bits are too few for this network as it is: train it first if its weights are random, or use fp16."
    return "More calibration examples may help: values outside of their range are cut off. Or use fp16."


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


class UncheckedWarning(UserWarning):
    """An artifact was written that can't be run here, so nobody has compared it with its network."""


def unchecked(artifact: Artifact) -> str:
    """Why an artifact that can't be run here isn't checked, and where it would be."""
    if FORMATS[artifact.format].runtime is None:
        return f"nothing on this machine runs {artifact.path.name} ({artifact.format})"
    return f"this machine can't run {artifact.path.name}: its engine has to be built first, on the device"


def compare_contents(network: nn.Module, artifact: Artifact, inputs: Given) -> dict[str, Any] | None:
    """What is inside the artifact beside the network's layers, where its format can be read but not run; else None.

    Raises:
        ParityError: it differs.
    """
    compare = getattr(FORMATS[artifact.format], "compare", None)
    return (
        None if compare is None else asdict(compare(network, artifact, next(pieces(inputs, artifact.input_shape[0]))))
    )


def _runtime(artifact: Artifact) -> str:
    runtime = FORMATS[artifact.format].runtime
    if runtime is None:
        message = f"{artifact.path} can't be checked: nothing here runs the format {artifact.format}."
        raise ParityError(message)
    return runtime


def _reference(network: nn.Module, inputs: Given, batch: int) -> tuple[Tensor, ...]:
    """The network's outputs on the CPU, computed in the artifact's batches."""
    place = next((p.device for p in network.parameters()), several(inputs)[0].device)
    with eval_mode(network), torch.no_grad():
        parts = [flatten(network(*(x.to(place) for x in piece))) for piece in pieces(inputs, batch)]
    return tuple(torch.cat([torch.atleast_1d(y.cpu()) for y in column]) for column in zip(*parts, strict=True))


def _rows(inputs: Given) -> int:
    return len(several(inputs)[0])


def _refuse_vacuous(expected: Sequence[Tensor], tolerance: float) -> None:
    """An artifact that gave the same answer to every input would be off by at least half of the outputs' range."""
    if not any(y.numel() for y in expected):
        message = "The network's outputs have no values, so nothing can be compared."
        raise ParityError(message)
    for number, y in enumerate(expected):
        if not is_finite(y):
            message = f"The network's output {number} is not finite (NaN or infinite), so nothing can be compared: "
            raise ParityError(message + "check its weights and the scale of its inputs.")
    moves = max(_relative(y, y[:1].expand_as(y)) for y in expected)
    if moves <= 2 * tolerance:
        message = (
            f"The network's outputs move by only {moves:.2g} relative over {len(expected[0])} inputs, so comparing"
            " proves nothing: give two or more different inputs, and check that the weights are trained."
        )
        raise ParityError(message)


def _relative(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|a|, a file's own types for integers allowed; infinite where one of them is not finite."""
    return relative(a, b if a.is_floating_point() else b.to(a.dtype))


def _shapes(outputs: Sequence[Tensor]) -> str:
    return ", ".join("x".join(map(str, y.shape)) for y in outputs)
