"""`deploy-prune predict`: a network's latency on a device that isn't attached, and how far off it may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError
from torch import nn

from deploy_prune.api import load
from deploy_prune.architecture import json_file
from deploy_prune.commands.given_inputs import or_own
from deploy_prune.commands.show import architecture_file
from deploy_prune.device.targets import load_target
from deploy_prune.errors import ModelError, perhaps
from deploy_prune.export.examples import zeros
from deploy_prune.families import raw_form
from deploy_prune.latency.ops import list_ops
from deploy_prune.latency.predict import predict
from deploy_prune.networks import build
from deploy_prune.recipe.parts import BUILT_IN_NETWORKS, LIBRARIES, ModelPart
from deploy_prune.surgery.trace import trace
from deploy_prune.types import Input, Prediction, Target

_FORMS: Final = ", ".join(f"{library}:NAME" for library in LIBRARIES)
CLASSES: Final = 1000
"""Of a network that is given by a library's name."""
TIMEOUT_S: Final = 300.0


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A network's predicted latency on a target. ``macs``: of one inference, as the operators have them."""

    model: str
    target: Target
    inputs: tuple[Input, ...]
    macs: int
    prediction: Prediction

    def as_json(self) -> dict[str, Any]:
        """Plain data: ms, and low_ms and high_ms where the target's file states its error."""
        ms, error = self.prediction.ms, self.prediction.error
        band = {} if error is None else {"low_ms": ms * error.low, "high_ms": ms * error.high, "error": asdict(error)}
        device = {name: getattr(self.target, name) for name in ("runtime", "format", "precision", "threads")}
        return {
            "model": self.model, "target": self.target.name, **device, "inputs": [asdict(x) for x in self.inputs],
            "macs": self.macs, "ms": ms, **band, "method": self.prediction.method,
        }  # fmt: skip

    def __str__(self) -> str:
        """One line: the latency, and the band it lies in."""
        ms, error = self.prediction.ms, self.prediction.error
        if error is None:
            return f"{ms:.3g} ms predicted on {self.target.name} (its file states no error)"
        held = f"80% of {error.networks} left-out networks were within" if error.networks else "error unverified"
        return f"{ms:.3g} ms predicted on {self.target.name} ({ms * error.low:.3g} to {ms * error.high:.3g}; {held})"


def predicted(model: str, target: str, inputs: Sequence[Input] = (), trust: bool = False) -> Predicted:
    """Predict one inference's latency; nothing is run.

    Args:
        model: ``torchvision:NAME``, ``timm:NAME``, ``ultralytics:NAME``, a built-in network's name, or what
            ``api.load.load`` takes: an architecture.json, or a run's TARGET/BUDGET folder. With ``trust`` also
            ``module:callable``.
        target: a target's name, or a file of the user's own.
        inputs: an example of each of the network's inputs, [1, ...]; may be left out for an architecture.
        trust: as for ``api.load.load``.

    Raises:
        DeployPruneError: the target or the network is unknown, can't be traced, or the target can't be predicted for.
    """
    device = load_target(target)
    network, inputs, _ = network_of(model, inputs, trust)
    program = trace(network, [x.to(_place(network)) for x in zeros(inputs)], TIMEOUT_S)
    ops = list_ops(program)
    macs = sum(op.macs() for op in ops)
    return Predicted(model=model, target=device, inputs=inputs, macs=macs, prediction=predict(ops, device))


def network_of(
    model: str, inputs: Sequence[Input], trust: bool, num_classes: int = CLASSES
) -> tuple[nn.Module, tuple[Input, ...], ModelPart]:
    """The named network's raw form in eval mode, its inputs, and how it is built.

    Raises:
        DeployPruneError: it is unknown, or its inputs are, or it is code of the user's own without ``trust``.
    """
    path = Path(model)
    with torch.random.fork_rng(devices=[]):
        if path.exists():
            described = json_file.load(architecture_file(path))
            return load.load(path, trust=trust), or_own(inputs, described), described.model
        if "/" in model or path.suffix == ".json":
            message = f"There is no {model}; give {_FORMS}, an architecture.json or a run's folder."
            raise ModelError(message)
        part = _named(model, trust)
        if not inputs:
            message = f"{model} needs the size of its input: add --input, as in --input 3x224x224."
            raise ModelError(message)
        network = build.build_network(part, num_classes if build.takes_classes(part) else 0).eval()
        return raw_form(network, zeros(inputs)).network.eval(), tuple(inputs), part


def _named(model: str, trust: bool) -> ModelPart:
    """A library's or a built-in network, by its name, or the user's own."""
    if ":" in model and model.partition(":")[0] not in LIBRARIES and not trust:
        message = f"{model!r} is none of {_FORMS}, and there is no such file or folder. "
        message += "If it is a function of your own (module:callable), add --trust: it is imported and called."
        raise ModelError(message)
    try:
        return ModelPart(source=model)
    except ValidationError as error:
        known = ", ".join(BUILT_IN_NETWORKS)
        message = (
            f"There is no network {model!r}; known: {known}, {_FORMS}, or the path of an "
            f"architecture.json or a run's TARGET/BUDGET folder.{perhaps(model, BUILT_IN_NETWORKS)}"
        )
        raise ModelError(message) from error


def _place(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))
