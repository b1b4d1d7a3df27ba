"""What a cut would cost: price it with a model, or make the artifact and measure it.

Latency doesn't depend on the weights. So all of this happens before any training, with the network's initial weights,
and what was measured is kept per machine: asked again, a run takes the same way.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune import cost
from deploy_prune.budget.choose import smallest_counts
from deploy_prune.budget.shelf import Shelf
from deploy_prune.cost import CostModel
from deploy_prune.export import FORMATS, isolated
from deploy_prune.export.inputs import as_given, called_in_order
from deploy_prune.latency.granularity import Write, granularity, machine
from deploy_prune.latency.measure import measure, profile_for
from deploy_prune.latency.nodes import by_layer
from deploy_prune.latency.ops import Op, list_ops
from deploy_prune.latency.predict import roofline
from deploy_prune.latency.steady import measure_steadily
from deploy_prune.latency.table import Sample, fit_table, variant_counts, widths_of
from deploy_prune.recipe.parts import ExportPart, MeasurePart, ModelPart, PrunePart
from deploy_prune.surgery.cut import cut
from deploy_prune.surgery.trace import trace
from deploy_prune.system.cache import cached_json, kept_json, still_valid, store_json
from deploy_prune.system.guard import scratch
from deploy_prune.types import Artifact, Counts, Keep, Metric, Progress, Structure, Target, silent

VARIANTS: Final = 3
"""Random variants of a recipe's latency table, beside the dense and the smallest network."""
TABLE_RUNS, TABLE_S = 60, 0.3
"""Every network of a table is timed so often, and for about so many seconds if that takes less."""
ATTEMPTS: Final = 10
"""Random variants are drawn so often, if some are the same."""
PROFILE_S: Final = 2.0
"""Its nodes are timed for about so many seconds."""
CANDIDATE_INPUTS: Final = 16
"""A candidate in int8 is calibrated on so many: its ranges don't change how long it takes."""
PROFILED: Final = ("onnx", "onnxruntime")
"""The format and the runtime of which the time of every layer can be told."""

_Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """p50 of the dense artifact and of the slim one beside it: what a finished artifact is held to, too."""

    slim_ms: float
    dense_ms: float


@dataclass(frozen=True, kw_only=True)
class Tabled:
    """What was measured for a latency table.

    ``samples``: the dense network, the narrowest one, that without branches, and random variants; ``held_out``: others,
    which the table is not made of, and which are not profiled. ``seconds``: how long that took.
    """

    samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class CandidateCosts:
    """A dense network, its groups, and how its cuts are exported and measured.

    Several threads may use it: one at a time traces, cuts and writes, and meanwhile the others can measure.

    Attributes:
        network: its weights don't matter.
        structure: its channel groups, all of which can be cut.
        inputs: an example of each input, [1, ...] of any rank and type: what artifacts are made for.
        identity: names the network where figures are kept: ``identity_of`` a recipe's, ``identity_by_graph`` of any.
        scratch: a folder for artifacts.
        calibration: real examples [N, ...] of each input, for int8; CANDIDATE_INPUTS are enough.
        since: what was measured before (seconds since 1970) is measured again.
        beside: the same network at a larger input, which shares of dense are of; None: shares are of this one.
    """

    network: nn.Module
    structure: Structure
    inputs: tuple[Tensor, ...]
    identity: Mapping[str, str]
    scratch: Path
    prune: PrunePart = PrunePart()
    export: ExportPart = ExportPart()
    measure: MeasurePart = MeasurePart()
    progress: Progress = silent
    calibration: tuple[Tensor, ...] | None = None
    since: float = field(default_factory=still_valid)
    beside: CandidateCosts | None = None
    _shelf: Shelf = field(default_factory=Shelf)
    _ops: list[Op] = field(default_factory=list)
    _sizes: dict[tuple[str, str, tuple[tuple[str, int], ...]], int] = field(default_factory=dict)
    _alone: threading.RLock = field(default_factory=threading.RLock)

    def granule(self, target: Target) -> int:
        """Channel counts on this target are multiples of this."""
        write = writer(target, self.export)

        def written(network: nn.Module, example: Tensor, name: str, folder: Path) -> Artifact:
            def first(path: Path) -> Artifact:
                return write(network, example, name, path.parent)

            path = folder / f"{name}{FORMATS[target.format].suffix}"
            with self._alone:
                return self._shelf.take((target.format, target.precision, name), path, self.scratch, first)

        return granularity(target, written, self.since)

    def cost(self, target: Target, metric: Metric) -> CostModel:
        """The cost model of a metric on a target, in the metric's unit; it predicts; ``observe`` measures."""
        if metric == "macs":
            return cost.macs(self.structure)
        if metric == "params":
            return cost.params(self.structure, self.network)
        if metric == "size":
            return self._size(target)
        if target.runner is None:
            return roofline(self.structure, target, self._operators())
        samples = self.tabled(target, VARIANTS, 0).samples
        return fit_table(self.structure, samples, self.granule(target))

    @property
    def whole(self) -> CandidateCosts:
        """Of the dense network that shares are of."""
        return self.beside or self

    def dense(self, target: Target, metric: Metric) -> float:
        """What the dense network costs that shares are of, by its model, in the metric's unit."""
        return self.whole.cost(target, metric)(self.structure.dense_counts)

    def tabled(self, target: Target, variants: int, held_out: int) -> Tabled:
        """What a latency table of an attached target is made of, and is checked with. Kept per machine.

        A table that was made of more variants, or for a recipe that prunes other groups, serves too.

        Args:
            target: a target with a runner.
            variants: random variants to make it of, beside the dense and the smallest network.
            held_out: random variants to check it with.

        Raises:
            ExportError: a variant can't be written.
            MeasurementError: a variant can't be measured.
        """
        granule = self.granule(target)

        def compute() -> _Record:
            started = time.perf_counter()
            known = self._variants(self._extremes(target), granule, variants, 0)
            others = self._variants(known, granule, held_out, 1)[len(known) :]
            rows = self._measure_variants(target, known, others)
            return {
                "variants": variants, "held_out": held_out, "samples": rows[: len(known)], "others": rows[len(known) :],
                "seconds": time.perf_counter() - started,
            }  # fmt: skip

        def enough(kept: _Record) -> bool:
            return bool(kept["variants"] >= variants and kept["held_out"] >= held_out)

        branches = {"branches": len(self.structure.branches)} if self.structure.branches else {}
        key = {**self._identity(target), "granule": granule, **branches}
        kept = cached_json("table", key, compute, self.since, enough)
        samples, rest = (tuple(map(_sample, kept[name])) for name in ("samples", "others"))
        return Tabled(samples=samples, held_out=rest, seconds=kept["seconds"])

    def _operators(self) -> list[Op]:
        """What the dense network makes a runtime do; read once."""
        with self._alone:
            if not self._ops:
                program = trace(self.network, self.inputs, self.prune.trace_timeout_s)
                self._ops.extend(list_ops(program))
            return self._ops

    def smallest(self, target: Target) -> Counts:
        """Every group at its lowest stair."""
        return smallest_counts(self.structure, self.granule(target), self.prune.min_channels)

    def _extremes(self, target: Target) -> list[Counts]:
        """The dense network, the narrowest one and, where branches may go, the one without any."""
        smallest = self.smallest(target)
        branches = {branch.name: 1 for branch in self.structure.branches}
        return [self.structure.dense_counts, {**smallest, **branches}, *([smallest] if branches else [])]

    def timed(self, target: Target, counts: Counts) -> Timed:
        """Cut to these counts, export, and measure beside the dense artifact. Kept per machine."""
        key, missed = self._key(target, counts), kept_json("missed", self._identity(target), self.since)
        since = self.since if missed is None else max(self.since, float(missed["at"]))
        return Timed(**cached_json("latency", key, lambda: self._time(target, counts), since))

    def override(self, target: Target, counts: Counts, timed: Timed) -> None:
        """From now on, these counts took so long, and all others are measured anew when they are asked for.

        For if a finished artifact takes longer than its candidate did, it is mostly the machine that has changed: what
        was measured before can't be compared with what is measured now. The next run on this machine knows it, too.
        """
        store_json("missed", self._identity(target), {"at": time.time()})
        store_json("latency", self._key(target, counts), asdict(timed))

    def _key(self, target: Target, counts: Counts) -> dict[str, Any]:
        groups = [(g.name, g.channels, g.period) for g in self.structure.groups]
        beside = {} if self.beside is None else {"beside": [list(x.shape) for x in self.beside.inputs]}
        return {**self._identity(target), "groups": groups, "counts": counts, "runs": self.measure.runs, **beside}

    def size_bytes(self, target: Target, counts: Counts) -> int:
        """The size of the artifact with these counts; one that was written before is not written again."""
        key = target.format, target.precision, _hashable(counts)
        if key not in self._sizes:
            with scratch() as folder:
                self._sizes[key] = self._artifact(target, counts, folder).size_bytes
        return self._sizes[key]

    def num_params(self, counts: Counts) -> int:
        """Parameters of the network cut to these counts."""
        return sum(p.numel() for p in self._cut(counts).parameters())

    def _time(self, target: Target, counts: Counts) -> dict[str, float]:
        part = self.measure
        with scratch() as folder:
            whole = self.whole._artifact(target, self.structure.dense_counts, folder / "whole")
            pair = [whole, self._artifact(target, counts, folder)]
            dense, slim = measure_steadily(target, pair, part.runs, part.warmup, self.progress)
        return {"dense_ms": dense.p50_ms, "slim_ms": slim.p50_ms}

    def _artifact(self, target: Target, counts: Counts, folder: Path) -> Artifact:
        """Written at most once for all targets of its format and precision."""
        name = "dense" if counts == self.structure.dense_counts else "slim"
        path = folder / f"{name}{FORMATS[target.format].suffix}"
        key = target.format, target.precision, _hashable(counts)
        with self._alone:
            return self._shelf.take(key, path, self.scratch, lambda path: self._write(target, counts, path))

    def _write(self, target: Target, counts: Counts, path: Path) -> Artifact:
        real = None if self.calibration is None else as_given([x[:CANDIDATE_INPUTS] for x in self.calibration])
        given = as_given(self.inputs)
        network = called_in_order(self._cut(counts), given)
        work = f"{target.name}: write {'the dense' if path.stem == 'dense' else 'a slim'} artifact"
        self.progress(work, 0, 1)
        artifact = isolated.write(target.format, network, given, path, target.precision, self.export, real)
        self.progress(work, 1, 1)
        return artifact

    def _cut(self, counts: Counts) -> nn.Module:
        """Which units stay doesn't matter to cost: the first ones."""
        keep: Keep = {g.name: torch.arange(g.channels) < counts[g.name] for g in self.structure.groups}
        with self._alone:
            return cut(self.network, self.structure, keep)

    def _size(self, target: Target) -> CostModel:
        """A line through the dense and the smallest artifact: both are written."""
        least = self.smallest(target)
        files = self.size_bytes(target, self.structure.dense_counts), (least, self.size_bytes(target, least))
        return cost.size(self.structure, target.precision, *files)

    def _variants(self, known: list[Counts], granule: int, num: int, seed: int) -> list[Counts]:
        """The known ones and ``num`` random ones beside them, all different; fewer, if a network hasn't so many."""
        found = {_hashable(counts): counts for counts in known}
        for attempt in range(ATTEMPTS):
            for counts in variant_counts(self.structure, granule, num, seed + 2 * attempt):
                if len(found) < len(known) + num:
                    found.setdefault(_hashable(counts), counts)
        return list(found.values())

    def _measure_variants(self, target: Target, known: Sequence[Counts], others: Sequence[Counts]) -> list[_Record]:
        """All in one interleaved measurement; those of ``known`` are profiled, where the runtime can."""
        variants, work = [*known, *others], f"{target.name}: latency table"
        with scratch() as folder:
            artifacts = []
            for i, counts in enumerate(variants):
                self.progress(work, i, len(variants) + 1)
                artifacts.append(self._artifact(target, counts, folder / str(i)))
            self.progress(work, len(variants), len(variants) + 1)
            timed = measure(target, artifacts, TABLE_RUNS, self.measure.warmup, min_s=TABLE_S)
            layers: list[dict[str, float] | None] = [None] * len(variants)
            if profilable(target):
                for i, nodes in enumerate(profile_for(target, artifacts[: len(known)], timed[0].p50_ms, PROFILE_S)):
                    layers[i] = by_layer(artifacts[i], self.structure, nodes, timed[i].p50_ms)
        self.progress(work, len(variants) + 1, len(variants) + 1)
        return [
            {"widths": widths_of(self.structure, counts), "total_ms": latency.p50_ms, "per_layer_ms": per_layer}
            for counts, latency, per_layer in zip(variants, timed, layers, strict=True)
        ]

    def _identity(self, target: Target) -> dict[str, Any]:
        """What a latency depends on, but for the widths: the network's definition, its input, runtime and machine."""
        shapes = [(name, list(t.shape)) for name, t in self.network.state_dict().items()]
        layers = [
            (x.name, x.kind, x.taps, x.positions, x.input_positions, len(x.widths)) for x in self.structure.layers
        ]
        modules = re.sub(r" at 0x[0-9a-f]+", "", repr(self.network))
        return {
            **self.identity,
            "definition": hashlib.sha256(repr((shapes, layers, modules)).encode()).hexdigest(),
            "inputs": [[str(x.dtype), *x.shape] for x in self.inputs],
            "opset": self.export.opset,
            "dynamic_batch": self.export.dynamic_batch,
            "target": [target.format, target.precision, target.runtime, target.threads, target.program],
            "machine": machine(target),
        }


def identity_of(model: ModelPart) -> dict[str, str]:
    """A recipe's network: all that are built alike."""
    return {"network": model.source, "args": repr(sorted(model.args.items()))}


def identity_by_graph(network: nn.Module, inputs: Sequence[Tensor], timeout_s: float) -> dict[str, str]:
    """Any network, by a digest of its graph: its operators, in order, with the shape of what each gives.

    Raises:
        SurgeryError: it can't be traced within ``timeout_s``.
    """
    graph = trace(network, inputs, timeout_s).graph
    nodes = [(node.format_node(), str(node.meta.get("val"))) for node in graph.nodes]
    return {"graph": hashlib.sha256(repr(nodes).encode()).hexdigest()}


def writer(target: Target, part: ExportPart) -> Write:
    """How the networks that a target's granularity is found with become its artifacts."""

    def write(network: nn.Module, example: Tensor, name: str, folder: Path) -> Artifact:
        path = folder / f"{name}{FORMATS[target.format].suffix}"
        noise = torch.randn(CANDIDATE_INPUTS, *example.shape[1:], generator=torch.Generator().manual_seed(0))
        return isolated.write(target.format, network, example, path, target.precision, part, noise)

    return write


def profilable(target: Target) -> bool:
    """Whether the target's runtime tells the time of every layer."""
    return (target.format, target.runtime) == PROFILED and target.program is None


def _sample(record: _Record) -> Sample:
    """What was kept of one variant; lists are tuples again."""
    return Sample(**{**record, "widths": tuple((i, o, n) for i, o, n in record["widths"])})


def _hashable(counts: Counts) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items()))
