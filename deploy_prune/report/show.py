"""An architecture drawn in the terminal: what every layer keeps, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from deploy_prune.report import latency
from deploy_prune.report import table as results
from deploy_prune.report.row import Row
from deploy_prune.report.table import plain_table
from deploy_prune.report.units import NONE, amount, percent
from deploy_prune.types import Input, LayerKind, Metric

BAR: Final = 10
"""Characters of a bar that stands for everything."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A cost of the dense and of the slim network, in the metric's unit (MACs, parameters, ms)."""

    dense: float
    slim: float


@dataclass(frozen=True, kw_only=True)
class LayerLine:
    """One layer: channels in and out, [dense, slim]; MACs; latency in ms if there is a target (None else)."""

    name: str
    kind: LayerKind
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    macs: Cost
    latency: Cost | None


@dataclass(frozen=True, kw_only=True)
class GroupLine:
    """One channel group: units, units kept, coordinates of one unit."""

    name: str
    channels: int
    kept: int
    period: int


@dataclass(frozen=True, kw_only=True)
class Overview:
    """An architecture and its costs. ``latency``: predicted, with what belongs to no layer; None without a target.

    ``results``: the row of the run that it is of; None where it is of none, or that isn't finished.
    """

    source: str
    num_classes: int
    inputs: tuple[Input, ...]
    form: str
    target: str | None
    layers: tuple[LayerLine, ...]
    groups: tuple[GroupLine, ...]
    macs: Cost
    params: Cost
    latency: Cost | None
    results: Row | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def overview_tables(overview: Overview) -> tuple[RenderableType, ...]:
    """A headline, a table of layers, totals, and a table of groups."""
    parts = (_headline(overview), _layers(overview), _totals(overview), _groups(overview.groups))
    return parts if overview.results is None else (*parts, _of_the_run(overview.results))


def _of_the_run(row: Row) -> Text:
    """The row's latency and score, on which examples, and what the dense network is."""
    found = latency.sentence(row)
    told = [] if found is None or row.status == "failed" else [f"latency on {row.target}: {found}"]
    scored = f"{row.score_name}: {results.score(row)} (dense → slim)"
    return Text("\n".join([*told, scored, *results.data_sentences([row]), *latency.remarks([row])]))


def _headline(overview: Overview) -> Text:
    shapes = ", ".join("x".join(map(str, x.shape)) + f" {x.type}" * (x.type != "float32") for x in overview.inputs)
    classes = f", {overview.num_classes} classes" if overview.num_classes else ""
    form = "its own modules" if overview.form == "module" else "its exported graph"
    words = f"{overview.source}{classes}, input {shapes}; cut: {form}"
    return Text(words, style="bold")


def _layers(overview: Overview) -> Table:
    table = plain_table("layer", "kind")
    for header in ("inputs", "outputs", "MACs kept"):
        table.add_column(header, justify="right")
    table.add_column("share of MACs\ndense → slim", justify="right")
    table.add_column("")
    if overview.latency is not None:
        table.add_column("share of latency\ndense → slim", justify="right")
        table.add_column("")
    for line in overview.layers:
        table.add_row(*_cells(line, overview), style=None if _cut(line) else "dim")
    if overview.latency is not None:
        table.add_section()
        table.add_row(Text("rest"), "", "", "", "", "", "", *_share(_rest(overview), overview.latency))
    return table


def _cells(line: LayerLine, overview: Overview) -> list[str | Text]:
    cells: list[str | Text] = [Text(line.name), line.kind, _change(line.inputs), _change(line.outputs)]
    cells.append(percent(line.macs.slim / line.macs.dense) if line.macs.dense else NONE)
    cells += _share(line.macs, overview.macs)
    if overview.latency is not None and line.latency is not None:
        cells += _share(line.latency, overview.latency)
    return cells


def _share(part: Cost, whole: Cost) -> list[str | Text]:
    shares = [of / total if total else 0.0 for of, total in ((part.dense, whole.dense), (part.slim, whole.slim))]
    return [" → ".join(map(percent, shares)), Text("█" * round(BAR * shares[1]), style="cyan")]


def _rest(overview: Overview) -> Cost:
    """The latency that belongs to no layer."""
    assert overview.latency is not None
    parts = [line.latency for line in overview.layers if line.latency is not None]
    return Cost(
        dense=overview.latency.dense - sum(p.dense for p in parts),
        slim=overview.latency.slim - sum(p.slim for p in parts),
    )


def _totals(overview: Overview) -> Table:
    table = plain_table("total")
    for header in ("kept", "slim", "dense"):
        table.add_column(header, justify="right")
    totals: list[tuple[str, Cost, Metric]] = [
        ("MACs", overview.macs, "macs"),
        ("parameters", overview.params, "params"),
    ]
    if overview.latency is not None:
        totals.append((f"latency on {overview.target}, predicted", overview.latency, "latency"))
    for name, cost, metric in totals:
        share = percent(cost.slim / cost.dense) if cost.dense else NONE
        table.add_row(Text(name), share, amount(cost.slim, metric), amount(cost.dense, metric))
    return table


def _groups(groups: Sequence[GroupLine]) -> RenderableType:
    if not groups:
        return Text("No channels of this network are chosen.")
    table = plain_table("group")
    for header in ("channels", "kept", "share"):
        table.add_column(header, justify="right")
    table.add_column("")
    for group in groups:
        kept, channels = group.kept * group.period, group.channels * group.period
        share = kept / channels
        bar = Text("█" * round(BAR * share) + "░" * (BAR - round(BAR * share)), style="cyan")
        table.add_row(Text(group.name), str(channels), str(kept), percent(share), bar)
    return table


def _cut(line: LayerLine) -> bool:
    return line.inputs[0] != line.inputs[1] or line.outputs[0] != line.outputs[1]


def _change(width: tuple[int, int]) -> str:
    dense, slim = width
    return str(dense) if dense == slim else f"{dense} → {slim}"
