"""`deploy-prune profile`: measure a network's latency table from networks of random widths, and check it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy
import torch

from deploy_prune.budget.candidates import CandidateCosts, Tabled, identity_of, profilable, writer
from deploy_prune.commands.predict import CLASSES, network_of
from deploy_prune.cost import CostModel, at_widths
from deploy_prune.device import RUNTIMES
from deploy_prune.device.address import parse
from deploy_prune.device.targets import load_target
from deploy_prune.errors import SurgeryError, TargetError
from deploy_prune.export.examples import drawn, zeros
from deploy_prune.latency.granularity import kept_ratios
from deploy_prune.latency.table import fit_table
from deploy_prune.recipe.parts import ModelPart, PrunePart
from deploy_prune.run.trained import as_if_trained
from deploy_prune.search.gated_network import gates_of
from deploy_prune.surgery import remembered
from deploy_prune.system.guard import scratch
from deploy_prune.types import Input, Progress, Target, silent

VARIANTS: Final = 8
TRIALS: Final = 4
"""Random inputs on which cuts are tried."""


@dataclass(frozen=True, kw_only=True)
class Error:
    """A held-out network, in ms."""

    predicted_ms: float
    measured_ms: float

    @property
    def relative(self) -> float:
        """How far off the prediction is, as a share of the measured latency."""
        return abs(self.predicted_ms / self.measured_ms - 1)


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """A network's latency table on a target, and how good it is.

    ``ratios``: step -> time at width 64 - step over time at width 64, what the granularity is judged by; None where the
    target's file states it. ``by_layer``: layers were timed one by one, and not the whole network only.
    """

    model: str
    target: Target
    inputs: tuple[Input, ...]
    granularity: int
    ratios: Mapping[int, float] | None
    by_layer: bool
    tabled: Tabled
    table: CostModel
    errors: tuple[Error, ...]

    @property
    def dense_ms(self) -> float:
        """Measured p50 of the whole network."""
        return self.tabled.samples[0].total_ms

    @property
    def smallest_ms(self) -> float:
        """Measured p50 with every group at its lowest stair."""
        return self.tabled.samples[1].total_ms

    def quantile(self, share: float) -> float | None:
        """Of the held-out networks' relative errors, that one which a share of them is below; None without any."""
        return float(numpy.quantile([e.relative for e in self.errors], share)) if self.errors else None

    def as_json(self) -> dict[str, Any]:
        """The table and what it was judged by, as plain data."""
        names = ("runner", "runtime", "format", "precision", "threads")
        layers = [
            {"name": c.layer.name, "product_ms": c.product, "linear_ms": c.linear, "fixed_ms": c.fixed}
            for c in self.table.layers
        ]
        return {
            "model": self.model, "target": self.target.name, **{name: getattr(self.target, name) for name in names},
            "inputs": [asdict(x) for x in self.inputs], "granularity": self.granularity,
            "ratios": None if self.ratios is None else {str(step): ratio for step, ratio in self.ratios.items()},
            "by_layer": self.by_layer, "dense_ms": self.dense_ms, "smallest_ms": self.smallest_ms,
            "median_error": self.quantile(0.5), "p90_error": self.quantile(0.9),
            "held_out": [asdict(e) for e in self.errors], "seconds": self.tabled.seconds,
            "table": {"constant_ms": self.table.constant, "layers": layers},
            "samples": [asdict(sample) for sample in self.tabled.samples],
        }  # fmt: skip

    def __str__(self) -> str:
        """A few lines for people."""
        target, num = self.target, len(self.tabled.samples)
        threads = "1 thread" if target.threads == 1 else f"{target.threads} threads"
        steps = "as the target's file says"
        if self.ratios is not None:
            steps = "time of 64 - step channels over that of 64: "
            steps += ", ".join(f"{step}: {ratio:.2f}" for step, ratio in self.ratios.items())
        made = f"{num} networks of random widths" + (", layer by layer" if self.by_layer else "")
        held = "no other widths to check it with"
        if self.errors:
            held = f"off by {self.quantile(0.5):.1%} (median) and {self.quantile(0.9):.1%} (90th percentile) "
            held += f"on {len(self.errors)} others"
        return "\n".join(
            [
                f"{self.model} on {target.name} ({target.runner}): {target.runtime}, {target.precision}, {threads}",
                f"channels   in steps of {self.granularity} ({steps})",
                f"latency    {self.dense_ms:.3g} ms dense, {self.smallest_ms:.3g} ms smallest",
                f"table      of {made}; {held}",
                f"measured   in {self.tabled.seconds:.0f} s; recipes for this network and device will use it",
            ]
        )


def profile(
    model: str,
    target: str,
    inputs: Sequence[Input] = (),
    *,
    device: str | None = None,
    classes: int = CLASSES,
    variants: int = VARIANTS,
    trust: bool = False,
    progress: Progress = silent,
) -> Profiled:
    """Measure a network's latency table on a device, if there is none, and check it with other networks.

    Args:
        model: as for ``predict.predicted``.
        target: a target's name, or a file of the user's own.
        inputs: as for ``predict.predicted``.
        device: measure there instead: ``local``, ``ssh://...`` or ``adb://...``.
        classes: of a network that is given by a library's name.
        variants: random variants to make the table of, and as many to check it with.
        trust: as for ``predict.predicted``.
        progress: is told of every network.

    Raises:
        TargetError: there is no device to measure on, or no runtime that can be started there.
        SurgeryError: the network can't be traced, or no channel of it can be cut.
        DeployPruneError: the network is unknown, or can't be exported or measured.
    """
    on = attached(load_target(target), device)
    network, inputs, part = network_of(model, inputs, trust, classes)
    with scratch() as folder:
        costs = costs_of(network, inputs, part, folder, progress)
        granule, tabled = costs.granule(on), costs.tabled(on, variants, variants)
        table = fit_table(costs.structure, tabled.samples, granule)
        return Profiled(
            model=model, target=on, inputs=inputs, granularity=granule, by_layer=profilable(on), tabled=tabled,
            ratios=kept_ratios(on, writer(on, costs.export)) if on.granularity is None else None, table=table,
            errors=tuple(
                Error(predicted_ms=at_widths(table, x.widths), measured_ms=x.total_ms) for x in tabled.held_out
            ),
        )  # fmt: skip


def attached(target: Target, device: str | None) -> Target:
    """The target, on the named device if there is one.

    Raises:
        TargetError: it is no device's name, there is none, or the target's runtime can't be started there.
    """
    if device is not None:
        parse(device)
        target = target.on(device)
    if target.runner is None:
        message = f"No device is attached for {target.name}: name one with --device, or use `deploy-prune predict`."
        raise TargetError(message)
    if target.runtime not in RUNTIMES:
        message = (
            f"Nothing can be measured with {target.name}'s runtime {target.runtime}, but with {', '.join(RUNTIMES)}."
        )
        raise TargetError(message)
    return target


def costs_of(
    network: torch.nn.Module, inputs: Sequence[Input], part: ModelPart, scratch: Path, progress: Progress = silent
) -> CandidateCosts:
    """What cuts of a network would cost; a recipe of the same network finds the same figures.

    Args:
        network: with initial weights, which are made as different as a trained network's.
        inputs: an example of each of the network's inputs, [1, ...].
        part: how the network is built.
        scratch: a folder for artifacts.
        progress: is told of every network that is measured.

    Raises:
        SurgeryError: the network can't be traced, or no channel of it can be cut.
    """
    example = zeros(inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, trials = as_if_trained(network), drawn(inputs, network, TRIALS)
    structure = remembered.cuttable_groups(network, example, trials, PrunePart(), gates_of)
    if not structure.groups:
        message = "No channel of this network can be removed, so there is nothing to make a table of."
        raise SurgeryError(message)
    return CandidateCosts(
        network=network, structure=structure, inputs=example, identity=identity_of(part), scratch=scratch,
        progress=progress, calibration=trials,
    )  # fmt: skip
