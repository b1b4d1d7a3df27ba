"""Runs beside each other as one self-contained HTML page: a point for each network, which leads to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from deploy_prune.report import charts, latency
from deploy_prune.report.compare import Candidate, Comparison, Field
from deploy_prune.report.page import bars_of
from deploy_prune.report.template import template
from deploy_prune.report.units import in_unit
from deploy_prune.system.shell import write_text


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A network on the page: its anchor, its chart (None: dense, or not there), and its run's own page."""

    anchor: str
    candidate: Candidate
    chart: Markup | None
    report: str | None


@dataclass(frozen=True, kw_only=True)
class _Panel:
    field: Field
    chart: Markup
    networks: tuple[_Shown, ...]


def write_compare_page(comparison: Comparison, path: Path) -> Path:
    """Write the page, atomically. Returns its path.

    Raises:
        RunFolderError: an architecture.json of a run is damaged.
    """
    panels = [_panel(number, field, path.parent) for number, field in enumerate(comparison.fields)]
    keys = list(dict.fromkeys(key for differs in comparison.differences.values() for key in differs))
    write_text(path, template("compare.html.j2").render(comparison=comparison, panels=panels, keys=keys))
    return path


def _panel(number: int, field: Field, beside: Path) -> _Panel:
    anchors = [f"network-{number}-{place}" for place in range(len(field.candidates))]
    points = [_point(one, f"#{anchor}", field) for one, anchor in zip(field.candidates, anchors, strict=True)]
    placed = list(zip(field.candidates, points, strict=True))
    series: dict[str, list[charts.Point]] = {}
    for one, point in sorted(placed, key=lambda pair: (pair[0].run, pair[0].row.budget != "dense", pair[0].ms)):
        series.setdefault(one.run, []).append(point)
    front = [point for one, point in placed if one.worth]
    return _Panel(
        field=field, chart=charts.latency_score(series, _axis(field, points), front),
        networks=tuple(_shown(one, anchor, beside) for one, anchor in zip(field.candidates, anchors, strict=True)),
    )  # fmt: skip


def _axis(field: Field, points: Sequence[charts.Point]) -> charts.ScoreAxis:
    """With the number of test examples, where it is the same for all."""
    examples = {one.row.test_examples for one in field.candidates}
    return charts.score_axis(points, field.score_name, field.score_unit, examples.pop() if len(examples) == 1 else None)


def _point(one: Candidate, link: str, field: Field) -> charts.Point:
    label = "dense" if one.row.budget == "dense" else one.row.budget if one.worth else ""
    told = latency.sentence(one.row) or ""
    return charts.Point(
        label, one.ms, one.score, measured=field.measured, low_ms=one.low_ms, high_ms=one.high_ms, link=link,
        about=f"{one.run} {one.row.target} {one.row.budget}: {in_unit(one.score, field.score_unit)}; {told}",
    )  # fmt: skip


def _shown(one: Candidate, anchor: str, beside: Path) -> _Shown:
    bars = None if one.row.budget == "dense" else bars_of(one.folder)
    chart = charts.channels(one.row.budget, bars) if bars else None
    page = one.folder.parents[1] / "report.html"
    link = quote(os.path.relpath(page, beside.absolute())) if page.is_file() else None
    return _Shown(anchor=anchor, candidate=one, chart=chart, report=link)
