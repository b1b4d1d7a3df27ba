"""What the commands `check`, `bench` and `transfer` find: plain data that they make and that the tables show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from deploy_prune.cost import Lost
from deploy_prune.report.remedies import Remedy, remedy_of
from deploy_prune.report.row import Row
from deploy_prune.types import Metric, Structure, Whole

LAGS: Final = 0.03
"""Latency fell less than the MACs did if its share of dense is larger by this much, at the low end of its interval."""


@dataclass(frozen=True, kw_only=True)
class TargetReach:
    """How small and how large the network can get on one target, in the metric's unit."""

    target: str
    granularity: int
    granularity_source: str
    metric: Metric
    smallest: float
    dense: float
    predicted_by: str


@dataclass(frozen=True, kw_only=True)
class BudgetReach:
    """Whether one budget can be met on one target; ``reason`` says why not."""

    target: str
    budget: str
    metric: Metric
    asked: float
    met: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A class of a network's code: its name, and where it begins."""

    kind: str
    file: str
    line: int


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckReport:
    """What ``check`` found. ``dense``: macs and params. ``summary``: sentences of what goes into the network.

    ``places``: of each part that is left whole, in the order of ``structure.whole``, the class that uses it; None where
    its file isn't known.
    """

    recipe_name: str
    network: str
    structure: Structure
    dense: dict[str, float]
    targets: tuple[TargetReach, ...]
    budgets: tuple[BudgetReach, ...]
    seconds: float
    summary: tuple[str, ...] = ()
    places: tuple[Place | None, ...] = ()

    @property
    def left_whole(self) -> tuple[tuple[Whole, Place | None, Remedy | None], ...]:
        """What is left whole, where that is, and what frees it."""
        places = self.places or (None,) * len(self.structure.whole)
        found = zip(self.structure.whole, places, strict=True)
        return tuple((whole, place, remedy_of(whole.reason)) for whole, place in found)

    def as_json(self) -> dict[str, Any]:
        """For a file: figures, groups that can be pruned, and layers that are left whole: why, where, the remedy."""
        groups = [
            {
                "name": group.name, "channels": group.channels, "period": group.period,
                "tensors": sorted({axis.tensor for axis in group.members}),
                "read_by": sorted({axis.tensor for axis in group.consumers}),
            }
            for group in self.structure.groups
        ]  # fmt: skip
        whole = [
            {**asdict(part), "place": place and asdict(place), "remedy": remedy and remedy.change}
            for part, place, remedy in self.left_whole
        ]
        figures = {"targets": [asdict(x) for x in self.targets], "budgets": [asdict(x) for x in self.budgets]}
        return {
            "recipe": self.recipe_name, "network": self.network, "dense": self.dense, "groups": groups, "whole": whole,
            **figures, "seconds": self.seconds, "summary": list(self.summary),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A row, measured again. ``macs_share``: of the dense network's; None where either isn't known.

    ``lost``: the layers that lost most time, if latency fell less than MACs and the runtime tells.
    """

    row: Row
    macs_share: float | None
    lost: tuple[Lost, ...] = ()

    @property
    def lags(self) -> bool:
        """Whether latency fell less than the multiply-accumulates did."""
        fastest = self.row.speedup_high
        return fastest is not None and self.macs_share is not None and 1 / fastest > self.macs_share + LAGS

    def as_json(self) -> dict[str, Any]:
        """The row as results.json has it, with what was found beside it."""
        beside = {"macs_share": self.macs_share, "lags": self.lags, "lost": [asdict(x) for x in self.lost]}
        return {**asdict(self.row), **beside}


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One draw of classes and shots, and what came of it; scores on the task's test examples."""

    seed: int
    classes: tuple[int, ...]
    split: str
    score: float
    score_teacher: float | None
    steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """All episodes, their mean score, half its 95% interval (None of one), and where the first one's network is.

    ``mean`` and ``std``: what that network's inputs are normalised with, per channel, of values in 0..1.
    """

    folder: Path
    episodes: tuple[Episode, ...]
    score: float
    interval: float | None
    init: str
    params: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    score_name: str = "accuracy"
    score_unit: str = "%"

    def as_json(self) -> dict[str, Any]:
        """For transfer.json."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one recipe of many: exit code, the error's sentence if it isn't 0, and the results that it wrote.

    ``device``: where it trained, if it was told where.
    """

    name: str
    code: int
    error: str | None
    device: str | None
    seconds: float
    rows: tuple[Row, ...] = ()

    def as_json(self) -> list[dict[str, Any]]:
        """Its rows with the recipe's name; of one that failed before there was any, one with the error."""
        if not self.rows:
            return [{"recipe": self.name, "status": "failed" if self.code else "ok", "error": self.error}]
        return [{"recipe": self.name, **asdict(row)} for row in self.rows]
