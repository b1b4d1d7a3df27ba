"""Runs beside each other: which of their networks are worth having on a device, and in what their recipes differ.

A network is worth having if no other is as fast and as good, and better in one of the two: these are the Pareto front.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from deploy_prune.errors import RunFolderError, printable
from deploy_prune.recipe.file import flat, load_recipe
from deploy_prune.recipe.parts import Recipe
from deploy_prune.report import latency
from deploy_prune.report.files import read
from deploy_prune.report.page import read_rows
from deploy_prune.report.row import Row
from deploy_prune.system.shell import shown

_NO_DIFFERENCE: Final = frozenset({"name", "device", "threads", "track", "processes"})
"""Settings that say how a run was made, not what came of it."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One network of one run. ``ms``: its place on the latency axis, with the ends of its 95% interval.

    ``score``: of the artifact in its runtime where that was computed, else of the network. ``worth``: it is on the
    front. ``folder``: its files are there.
    """

    run: str
    folder: Path
    method: str
    row: Row
    ms: float
    low_ms: float | None
    high_ms: float | None
    score: float
    worth: bool = False


@dataclass(frozen=True, kw_only=True)
class Field:
    """Networks that can be compared: timed on the same device, judged by the same score on the same data."""

    device: str
    data: str
    score_name: str
    score_unit: str
    higher_is_better: bool
    measured: bool
    candidates: tuple[Candidate, ...] = ()

    @property
    def title(self) -> str:
        """The device and the data."""
        return f"{self.device}{'' if self.measured else ' (predicted)'}, {self.data}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs by their names; ``differences``: per run, the settings that aren't the same in all of them."""

    runs: tuple[str, ...]
    fields: tuple[Field, ...]
    differences: Mapping[str, Mapping[str, Any]]
    left_out: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For a file; folders are text."""
        fields = [
            {**asdict(one), "candidates": [{**asdict(c), "folder": str(c.folder)} for c in one.candidates]}
            for one in self.fields
        ]
        return {**asdict(self), "fields": fields}


@dataclass(frozen=True, kw_only=True)
class _Run:
    name: str
    folder: Path
    recipe: Recipe
    rows: tuple[Row, ...]

    @property
    def network(self) -> tuple[Any, ...]:
        """What its dense network is."""
        return self.recipe.model.source, repr(sorted(self.recipe.model.args.items())), repr(self.recipe.data.image_size)

    @property
    def data(self) -> str:
        """What its networks are judged on."""
        part = self.recipe.data
        of = "" if part.target_classes is None else f", classes {', '.join(map(str, part.target_classes))}"
        return f"{self.recipe.loaded_by}{f' in {part.root}' if part.root else ''}{of}"


def compare(folders: Sequence[Path]) -> Comparison:
    """Read the runs and put their networks beside each other.

    Milliseconds of different runs can't be compared, for a machine's speed changes. So a network's place is its share
    of dense, which was measured in the same rounds, times one latency of that dense network: the median over the runs.

    Raises:
        RunFolderError: a folder is given twice, none is a run's, or one of their files is damaged.
        RecipeError: its recipe can't be read.
    """
    runs, others = _read(folders)
    dense = _dense_ms(runs)
    found: dict[Field, list[Candidate]] = {}
    for run in runs:
        for target, places in latency.placed(run.rows).items():
            device = _device(run, target)
            scale = dense[device, run.network] / places[0].reference
            for place in places:
                candidate, row = _candidate(run, place, scale), place.row
                if candidate is not None:
                    kind = Field(
                        device=device, data=run.data, score_name=row.score_name, score_unit=row.score_unit,
                        higher_is_better=row.higher_is_better, measured=row.measured_on is not None,
                    )  # fmt: skip
                    found.setdefault(kind, []).append(candidate)
    return Comparison(
        runs=tuple(run.name for run in runs), fields=tuple(_field(kind, each) for kind, each in found.items()),
        differences=_differences(runs), left_out=(*filter(None, map(_left_out, runs)), *others),
    )  # fmt: skip


def _left_out(run: _Run) -> str:
    """A sentence, if some of its rows failed or there are none."""
    failed = sum(row.status == "failed" for row in run.rows)
    if failed:
        return f"{run.name}: {failed} of {len(run.rows)} results failed, and are left out."
    return "" if run.rows else f"{run.name} has no results yet."


def _read(folders: Sequence[Path]) -> tuple[list[_Run], list[str]]:
    """The runs, and of each place that is none a sentence."""
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        twice = next(place for place, times in Counter(places).items() if times > 1)
        message = f"The run {shown(twice)} is given twice."
        raise RunFolderError(message)
    there = [place for place in places if (place / "recipe.yaml").is_file()]
    if not there:
        message = f"{shown(places[0])} is no run folder: give folders that `deploy-prune recipe` wrote."
        raise RunFolderError(message)
    runs = [
        _Run(name=name, folder=place, recipe=load_recipe(str(place / "recipe.yaml")), rows=read_rows(place) or ())
        for place, name in zip(there, _names(there), strict=True)
    ]
    return runs, [f"{shown(place)} is no run folder." for place in places if place not in there]


def _names(places: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of those above them as tell them apart."""
    for above in range(1, max(len(place.parts) for place in places) + 1):
        names = [printable("/".join(place.parts[-above:]), 200) for place in places]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _device(run: _Run, target: str) -> str:
    """Where a target's rows were timed: the machine that its latency was measured on, else the target."""
    measured = [row for row in run.rows if row.target == target and row.measured_on is not None]
    if not measured:
        return target
    files = [_folder(run, row) / "latency.json" for row in measured]
    told = next(filter(None, (read(file, lambda value: printable(value["device"], 100)) for file in files)), None)
    return f"{measured[0].measured_on} ({told})" if told else str(measured[0].measured_on)


def _folder(run: _Run, row: Row) -> Path:
    """Where a row's files are."""
    place = Path("dense", row.target) if row.budget == "dense" else Path(row.target, row.budget)
    return run.folder / place


def _dense_ms(runs: Sequence[_Run]) -> Mapping[tuple[str, tuple[Any, ...]], float]:
    """One latency of each dense network on each device: the median over the runs' targets."""
    found: dict[tuple[str, tuple[Any, ...]], list[float]] = {}
    for run in runs:
        for target, places in latency.placed(run.rows).items():
            found.setdefault((_device(run, target), run.network), []).append(places[0].reference)
    return {key: median(each) for key, each in found.items()}


def _candidate(run: _Run, place: latency.Placed, scale: float) -> Candidate | None:
    """None without a score."""
    row = place.row
    score = row.score if row.score_artifact is None else row.score_artifact
    if score is None:
        return None
    return Candidate(
        run=run.name, folder=_folder(run, row), row=row, score=score,
        method="dense" if row.budget == "dense" else run.recipe.search.method, ms=place.ms * scale,
        low_ms=None if place.low_ms is None else place.low_ms * scale,
        high_ms=None if place.high_ms is None else place.high_ms * scale,
    )  # fmt: skip


def _field(kind: Field, candidates: Sequence[Candidate]) -> Field:
    """With the networks that are worth having marked, from the fastest on."""
    best = set(front([(one.ms, one.score if kind.higher_is_better else -one.score) for one in candidates]))
    marked = [replace(one, worth=place in best) for place, one in enumerate(candidates)]
    return replace(kind, candidates=tuple(sorted(marked, key=lambda one: one.ms)))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points (cost, worth) that no other beats, by costing as little and being worth as much."""
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
    best, taken = float("-inf"), list[int]()
    for place in order:
        if points[place][1] > best or (taken and points[place] == points[taken[-1]]):
            best = points[place][1]
            taken.append(place)
    return taken


def _differences(runs: Sequence[_Run]) -> dict[str, dict[str, Any]]:
    settings = [flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one if key.partition(".")[0] not in _NO_DIFFERENCE)
    differ = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
    return {run.name: {key: one[key] for key in differ if key in one} for run, one in zip(runs, settings, strict=True)}
