"""One self-contained HTML page about a run, from the JSON files in its folder; what is not there yet is said so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from deploy_prune.errors import RunFolderError, printable
from deploy_prune.report import charts, latency, pictures, table
from deploy_prune.report.files import read, shaped
from deploy_prune.report.row import Row
from deploy_prune.report.take import advice
from deploy_prune.report.template import template
from deploy_prune.report.units import in_unit
from deploy_prune.system import strict_json
from deploy_prune.system.shell import write_text
from deploy_prune.types import Metric

METRICS: Final[dict[Metric, str]] = {
    "latency": "latency", "macs": "MACs", "params": "parameters", "size": "size"
}  # fmt: skip
MAX_NUMBER = 1e15
"""No figure of a search, in MACs, is as large."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the budget loop, in the metric's unit; ``observed`` is None where no device is attached."""

    step: int
    limit: float
    predicted: float
    observed: float | None
    asked: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How one budget was reached."""

    metric: Metric
    tolerance: float
    steps: tuple[Step, ...]

    def error(self, step: Step) -> float:
        """How far the step's cost (observed, else predicted) is from what was asked, as a share of it."""
        return (step.predicted if step.observed is None else step.observed) / step.asked - 1


@dataclass(frozen=True, kw_only=True)
class Network:
    """What one folder TARGET/BUDGET holds; None = the file is not there."""

    target: str
    budget: str
    bars: tuple[charts.Bar, ...] | None
    loop: Loop | None
    measured: str | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, read; None = the file is not there."""

    name: str
    rows: tuple[Row, ...] | None
    networks: tuple[Network, ...]
    trace: tuple[dict[str, float], ...] | None
    provenance: dict[str, Any] | None
    recipe: str | None


def write_page(run: Path) -> Path:
    """Read the run folder and write its ``report.html``, atomically. Returns the page's path.

    Raises:
        RunFolderError: the folder is not there, or one of its files is damaged.
    """
    found = read_run(run)
    names = dict.fromkeys(network.target for network in found.networks)
    page = template("page.html.j2").render(
        run=found,
        sentences=headline(found.rows or ()),
        remarks=latency.remarks(found.rows or ()),
        cards=_cards(found.rows or ()),
        score_charts=_score_charts(found.rows or ()),
        test_examples=_test_examples(found.rows or ()),
        advice=advice(run, found.rows or ()),
        score_name=found.rows[0].score_name if found.rows else "score",
        without_dense_row=_enumerate(latency.without_dense_row(found.rows or ())),
        channel_charts={name: _channel_charts([n for n in found.networks if n.target == name]) for name in names},
        pictures=pictures.of_run(run, found.rows or ()),
        trace_charts=charts.search_trace(found.trace) if found.trace else None,
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def read_run(run: Path) -> Run:
    """Read what the folder has.

    Raises:
        RunFolderError: the folder is not there or is no run's, or one of its files is damaged.
    """
    if not run.is_dir():
        message = f"There is no run folder {run}: give the folder that `deploy-prune recipe` wrote."
        raise RunFolderError(message)
    if not any((run / name).is_file() for name in ("recipe.yaml", "results.json")):
        message = (
            f"{run} is not a run folder (it has no recipe.yaml): give the folder that `deploy-prune recipe` wrote."
        )
        raise RunFolderError(message)
    rows = read_rows(run)
    order = {(row.target, row.budget): index for index, row in enumerate(rows or ())}
    folders = {path.parent for name in ("architecture", "loop") for path in run.glob(f"*/*/{name}.json")}
    if rows is not None:
        folders = {f for f in folders if (f.parent.name, f.name) in order}
    networks = sorted(map(_network, folders), key=lambda n: (order.get((n.target, n.budget), len(order)), n.budget))
    recipe = run / "recipe.yaml"
    return Run(
        name=run.resolve().name,
        rows=rows,
        networks=tuple(networks),
        trace=read(run / "search" / "trace.json", _trace),
        provenance=read(run / "provenance.json", _provenance),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
    )


def read_rows(run: Path) -> tuple[Row, ...] | None:
    """The rows of the folder's results.json, or None if the run has not come so far.

    Raises:
        RunFolderError: the file is damaged.
    """
    return read(run / "results.json", _rows)


def _network(folder: Path) -> Network:
    return Network(
        target=folder.parent.name,
        budget=folder.name,
        bars=bars_of(folder),
        loop=read(folder / "loop.json", _loop),
        measured=read(folder / "latency.json", _measured),
    )


def _rows(value: Any) -> tuple[Row, ...]:
    rows: tuple[Row, ...] = shaped(tuple[Row, ...], strict_json.figures(value, RunFolderError, "it"))
    return tuple(replace(r, target=printable(r.target, 100), budget=printable(r.budget, 100)) for r in rows)


def _trace(value: Any) -> tuple[dict[str, float], ...]:
    rows: tuple[dict[str, float], ...] = shaped(tuple[dict[str, float], ...], value)
    if not all("step" in row and all(abs(number) < MAX_NUMBER for number in row.values()) for row in rows):
        message = "a step of the search has no number, or a figure that is no figure"
        raise ValueError(message)
    return rows


@dataclass(frozen=True, kw_only=True)
class _Provenance:
    """Of provenance.json, what the page takes apart."""

    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def _provenance(value: Any) -> dict[str, Any]:
    taken_apart = shaped(_Provenance, value)
    return {"finished": "", **value, **asdict(taken_apart)}


def bars_of(folder: Path) -> tuple[charts.Bar, ...] | None:
    """The channel groups of the network in a folder TARGET/BUDGET; None if it isn't there.

    Raises:
        RunFolderError: architecture.json is damaged.
    """
    return read(folder / "architecture.json", _bars)


def _bars(architecture: Any) -> tuple[charts.Bar, ...]:
    groups = architecture["groups"].items()
    bars = tuple(charts.Bar(printable(name, 100), int(group["channels"]), int(group["kept"])) for name, group in groups)
    if not all(bar.channels > 0 and 0 <= bar.kept <= bar.channels for bar in bars):
        message = "a group keeps more channels than it has"
        raise ValueError(message)
    return bars


def _loop(value: Any) -> Loop:
    found = shaped(Loop, strict_json.figures(value, RunFolderError, "it"))
    if not all(step.asked > 0 for step in found.steps):
        message = "a step has no limit"
        raise ValueError(message)
    return found


def _measured(latency: Any) -> str:
    if "samples_ms" not in latency:
        return f"predicted by {latency['method']}, not measured"
    threads = f"{latency['threads']} thread" + ("s" if latency["threads"] != 1 else "")
    runs = f"{len(latency['samples_ms'])} runs after {latency['warmup']} to warm up"
    moved = f"; disturbed: {latency['disturbed']}" if latency.get("disturbed") else ""
    device = f"measured on {latency['measured_on']} ({latency['device']})"
    return f"{device}, {threads}, {runs}, interleaved with dense{moved}"


def headline(rows: Sequence[Row]) -> tuple[str, ...]:
    """What was asked for and what came out, in a few sentences."""
    slim = [row for row in rows if row.budget != "dense"]
    if not slim:
        return ()
    sentences = [f"Asked for {_asked(slim)} on {_enumerate(_targets(slim))}."]
    sentences += table.data_sentences(rows)
    failed = [row for row in rows if row.status == "failed"]
    good = [row for row in slim if row.status != "failed"]
    sentences.append(f"{len(good)} of {len(slim)} networks passed every check.")
    fastest = [row for row in good if table.status(row) == "ok" and row.speedup is not None]
    if fastest:
        sentences.append(_outcome(max(fastest, key=lambda row: row.speedup or 0.0)))
    unmeasured = _targets([row for row in slim if table.status(row) == "predicted"])
    if unmeasured:
        sentences.append(f"No device is attached for {_enumerate(unmeasured)}: those latencies are predicted.")
    if failed:
        sentences.append(f"Failed: {_enumerate([f'{row.target} {row.budget}' for row in failed])}; the table says why.")
    return tuple(sentences)


def _asked(slim: Sequence[Row]) -> str:
    """The budgets in words: shares of dense by their metric, as in "75% and 50% of the dense latency and 4 ms"."""
    parts: dict[str, list[str]] = {}
    for row in slim:
        share = row.budget.partition("%")[0] + "%"
        is_share = "%" in row.budget
        shares = parts.setdefault(f" of the dense {METRICS[row.metric]}" if is_share else "", [])
        if (text := share if is_share else row.budget) not in shares:
            shares.append(text)
    return _enumerate([f"{_enumerate(shares)}{of}" for of, shares in parts.items()])


def _outcome(row: Row) -> str:
    text = f"The fastest, {row.target} {row.budget}, is {latency.sentence(row)}"
    if row.score is None:
        return f"{text}."
    slim, dense = in_unit(row.score, row.score_unit), in_unit(row.score_dense, row.score_unit)
    return f"{text}; its {row.score_name} is {slim} (dense {dense})."


def _targets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.target for row in rows))


def _enumerate(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _cards(rows: Sequence[Row]) -> list[Row]:
    """The rows worth large figures: the measured ones, or else the predicted ones."""
    good = [row for row in rows if row.status != "failed" and latency.speedup(row) is not None]
    return [row for row in good if row.measured_on is not None] or good


def _score_charts(rows: Sequence[Row]) -> list[Markup]:
    """A chart of what was measured and one of what is predicted: their milliseconds don't belong on one axis."""
    found = {target: _points(places) for target, places in latency.placed(rows).items()}
    series = {target: points for target, points in found.items() if points}
    if not series:
        return []
    every = [point for points in series.values() for point in points]
    axis = charts.score_axis(every, rows[0].score_name, rows[0].score_unit, _test_examples(rows))
    drawn = []
    for title, is_measured in (("measured", True), ("predicted, no device attached", False)):
        here = {name: points for name, points in series.items() if all(p.measured for p in points) is is_measured}
        if here:
            drawn.append(charts.latency_score(here, axis, title=title))
    return drawn


def _test_examples(rows: Sequence[Row]) -> int | None:
    return next((row.test_examples for row in rows if row.test_examples is not None), None)


def _points(places: Sequence[latency.Placed]) -> list[charts.Point]:
    return [
        charts.Point(
            place.row.budget, place.ms, place.row.score, measured=place.row.measured_on is not None,
            low_ms=place.low_ms, high_ms=place.high_ms,
            about=f"{place.row.target} {place.row.budget}: {latency.sentence(place.row)}",
        )
        for place in places
        if place.row.score is not None
    ]  # fmt: skip


def _channel_charts(networks: Sequence[Network]) -> list[Markup]:
    """One chart per budget."""
    return [charts.channels(network.budget, network.bars) for network in networks if network.bars]
