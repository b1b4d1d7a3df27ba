"""What a cut would cost: price it with a model, or make the artifact and look.

Latency doesn't depend on the weights. So all of this happens before any training, with the network's initial weights,
and what was measured is kept per machine: asked again, a run takes the same way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune import cost
from deploy_prune.cache import cached_json
from deploy_prune.cost import CostModel
from deploy_prune.export import FORMATS, isolated
from deploy_prune.latency.granularity import granularity, machine
from deploy_prune.latency.nodes import by_layer
from deploy_prune.latency.ops import Op, list_ops
from deploy_prune.latency.predict import roofline
from deploy_prune.latency.runners import measure, profile
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.latency.table import Sample, fit_table, variant_counts
from deploy_prune.recipe import Recipe
from deploy_prune.search import smallest_counts
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.trace import trace
from deploy_prune.types import Artifact, Counts, Keep, Metric, Progress, Structure, Target, silent

VARIANTS: Final = 3
"""Random variants of a latency table, beside the dense and the smallest network."""
CANDIDATE_INPUTS: Final = 16
"""A candidate in int8 is calibrated on so many: its ranges don't change how long it takes."""
PROFILED: Final = ("onnx", "onnxruntime")
"""The format and the runtime of which the time of every layer can be told."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """p50 of the dense artifact and of the slim one beside it: what a finished artifact is held to, too."""

    slim_ms: float
    dense_ms: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """A dense network, its groups, and how its cuts are exported and measured. ``scratch``: a folder for artifacts.

    ``calibration``: real inputs [N, C, H, W], for int8.
    """

    network: nn.Module
    structure: Structure
    example: Tensor
    recipe: Recipe
    scratch: Path
    progress: Progress = silent
    calibration: Tensor | None = None
    _dense: dict[str, Artifact] = field(default_factory=dict)
    _anew: dict[str, dict[tuple[tuple[str, int], ...], Timed]] = field(default_factory=dict)
    _ops: list[Op] = field(default_factory=list)

    def granule(self, target: Target) -> int:
        """Channel counts on this target are multiples of this."""

        def write(network: nn.Module, example: Tensor, name: str, folder: Path) -> Artifact:
            path = folder / f"{name}{FORMATS[target.format].suffix}"
            noise = torch.randn(CANDIDATE_INPUTS, *example.shape[1:], generator=torch.Generator().manual_seed(0))
            return isolated.write(target.format, network, example, path, target.precision, self.recipe.export, noise)

        return granularity(target, write)

    def cost(self, target: Target, metric: Metric) -> CostModel:
        """The cost model of a metric on a target, in the metric's unit; it predicts, and ``observe`` looks."""
        if metric == "macs":
            return cost.macs(self.structure)
        if metric == "params":
            return self._params()
        if metric == "size":
            return self._size(target)
        if target.runner is None:
            return roofline(self.structure, target, self._operators())
        return self._table(target)

    def _operators(self) -> list[Op]:
        """What the dense network makes a runtime do; read once."""
        if not self._ops:
            program = trace(self.network, (self.example[:1],), self.recipe.prune.trace_timeout_s)
            self._ops.extend(list_ops(program))
        return self._ops

    def smallest(self, target: Target) -> Counts:
        """Every group at its lowest stair."""
        return smallest_counts(self.structure, self.granule(target), self.recipe.prune.min_channels)

    def timed(self, target: Target, counts: Counts) -> Timed:
        """Cut to these counts, export, and measure beside the dense artifact. Kept per machine."""
        if (known := self._anew.get(target.name)) is not None:
            if _hashable(counts) not in known:
                known[_hashable(counts)] = Timed(**self._time(target, counts))
            return known[_hashable(counts)]
        return Timed(**cached_json("latency", self._key(target, counts), lambda: self._time(target, counts)))

    def correct(self, target: Target, counts: Counts, timed: Timed) -> None:
        """From now on, these counts took so long, and all others are measured anew when they are asked for.

        For if a finished artifact takes longer than its candidate did, it is mostly the machine that has changed: what
        was measured before can't be compared with what is measured now.
        """
        self._anew[target.name] = {_hashable(counts): timed}

    def _key(self, target: Target, counts: Counts) -> dict[str, Any]:
        return {**self._identity(target), "counts": counts, "runs": self.recipe.measure.runs}

    def size_bytes(self, target: Target, counts: Counts) -> int:
        """The size of the artifact with these counts."""
        with TemporaryDirectory() as folder:
            return self._artifact(target, counts, Path(folder)).size_bytes

    def num_params(self, counts: Counts) -> int:
        """Parameters of the network cut to these counts."""
        return sum(p.numel() for p in self._cut(counts).parameters())

    def _time(self, target: Target, counts: Counts) -> dict[str, float]:
        part = self.recipe.measure
        with TemporaryDirectory() as folder:
            pair = [self._dense_artifact(target), self._artifact(target, counts, Path(folder))]
            dense, slim = measure_steadily(target, pair, part.runs, part.warmup)
        return {"dense_ms": dense.p50_ms, "slim_ms": slim.p50_ms}

    def _dense_artifact(self, target: Target) -> Artifact:
        if target.name not in self._dense:
            counts = self.structure.dense_counts
            self._dense[target.name] = self._artifact(target, counts, self.scratch / target.name)
        return self._dense[target.name]

    def _artifact(self, target: Target, counts: Counts, folder: Path) -> Artifact:
        name = "dense" if counts == self.structure.dense_counts else "slim"
        kind = FORMATS[target.format]
        path = folder / f"{name}{kind.suffix}"
        inputs = self.calibration[:CANDIDATE_INPUTS] if self.calibration is not None else None
        return isolated.write(
            target.format, self._cut(counts), self.example, path, target.precision, self.recipe.export, inputs
        )

    def _cut(self, counts: Counts) -> nn.Module:
        """Which units stay doesn't matter to cost: the first ones."""
        keep: Keep = {g.name: torch.arange(g.channels) < counts[g.name] for g in self.structure.groups}
        return cut(self.network, self.structure, keep)

    def _params(self) -> CostModel:
        return cost.params(self.structure, sum(p.numel() for p in self.network.parameters()))

    def _size(self, target: Target) -> CostModel:
        """Parameters in bytes, and what the file has beside them."""
        model = self._params()
        width = {"fp32": 4, "fp16": 2, "int8": 1}[target.precision]
        return model.scaled(width, "size", exact=(self.structure.dense_counts, self._dense_artifact(target).size_bytes))

    def _table(self, target: Target) -> CostModel:
        """The fitted latency table of an attached target, from the dense, the smallest and some random variants."""
        granule = self.granule(target)
        variants: tuple[Counts, ...] = (
            self.structure.dense_counts,
            self.smallest(target),
            *variant_counts(self.structure, granule, VARIANTS, seed=0),
        )
        key = {**self._identity(target), "variants": list(variants)}
        rows = cached_json("table", key, lambda: self._measure_variants(target, variants))
        return fit_table(self.structure, [Sample(**row) for row in rows], granule)

    def _measure_variants(self, target: Target, variants: Sequence[Counts]) -> list[dict[str, Any]]:
        rows = []
        with TemporaryDirectory() as folder:
            artifacts = []
            for i, counts in enumerate(variants):
                self.progress(f"{target.name}: latency table", i, len(variants) + 1)
                artifacts.append(self._artifact(target, counts, Path(folder) / str(i)))
            part = self.recipe.measure
            timed = measure(target, artifacts, part.runs, part.warmup)
            told = (target.format, target.runtime) == PROFILED and target.program is None
            profiles = profile(target, artifacts) if told else [None] * len(artifacts)
            for counts, artifact, latency, nodes in zip(variants, artifacts, timed, profiles, strict=True):
                per_layer = None if nodes is None else by_layer(artifact, self.structure, nodes, latency.p50_ms)
                rows.append({"counts": counts, "total_ms": latency.p50_ms, "per_layer_ms": per_layer})
        self.progress(f"{target.name}: latency table", len(variants) + 1, len(variants) + 1)
        return rows

    def _identity(self, target: Target) -> dict[str, Any]:
        """What a latency depends on, but for the counts: the network's definition, its input, target and machine."""
        shapes = [(name, list(t.shape)) for name, t in self.network.state_dict().items()]
        groups = [(g.name, g.channels, g.period) for g in self.structure.groups]
        layers = [(x.name, x.kind, x.taps, x.positions, x.input_positions) for x in self.structure.layers]
        modules = re.sub(r" at 0x[0-9a-f]+", "", repr(self.network))
        return {
            "network": self.recipe.model.source,
            "args": repr(sorted(self.recipe.model.args.items())),
            "definition": hashlib.sha256(repr((shapes, groups, layers, modules)).encode()).hexdigest(),
            "input": list(self.example.shape),
            "opset": self.recipe.export.opset,
            "dynamic_batch": self.recipe.export.dynamic_batch,
            "target": [target.name, target.format, target.precision, target.runtime, target.threads],
            "machine": machine(target),
        }


def _hashable(counts: Counts) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items()))
