"""The page's charts, drawn by matplotlib as inline SVG whose colours follow the page (light and dark)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from itertools import cycle
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from deploy_prune.report.units import digits, heading, in_unit

COLOURS: Final[dict[str, str]] = {
    "#1b2430": "--ink",
    "#66717f": "--quiet",
    "#dfe4ea": "--line",
    "#e8ecf1": "--track",
    "#fdfefe": "--card",
    "#2563a8": "--s1",
    "#c2570c": "--s2",
    "#0d7d6c": "--s3",
    "#8b3fa0": "--s4",
    "#a3243b": "--s5",
}
"""Each colour is drawn literally, then replaced by the page's CSS variable."""
INK, QUIET, LINE, TRACK, CARD, *SERIES = COLOURS
POINT: Final = "point"
"""The id of a point's drawing, until its tooltip is there."""
STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


class Point(NamedTuple):
    """A network on the latency-score chart; ``measured`` False = its latency is predicted.

    ``low_ms`` and ``high_ms``: the ends of its error bar. ``about``: what is told of it where one points at it.
    ``link``: where a click on it leads.
    """

    label: str
    ms: float
    score: float
    measured: bool
    low_ms: float | None = None
    high_ms: float | None = None
    about: str = ""
    link: str = ""


class Bar(NamedTuple):
    """One group's channels, before and after."""

    group: str
    channels: int
    kept: int


def latency_score(series: Mapping[str, Sequence[Point]], name: str, unit: str, front: Sequence[Point] = ()) -> Markup:
    """One line per target (or run); its first point is the dense network. Hollow points are predicted.

    Args:
        series: target -> points.
        front: points that no other beats, from the fastest on; a broad line leads through them.
        name: the score's.
        unit: the score's; "%" for scores from 0 to 1.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": "latency"}):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for colour, (target, points) in zip(cycle(SERIES), series.items(), strict=False):
            _line(axes, target, points, colour, unit)
        if front:
            heights = [point.score * (100 if unit == "%" else 1) for point in front]
            axes.plot([point.ms for point in front], heights, color=LINE, linewidth=9, zorder=0, label="worth having")
        latencies = [point.ms for points in series.values() for point in points]
        if max(latencies) > 8 * min(latencies):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
        axes.margins(x=0.08, y=0.18)
        axes.set(xlabel="latency, ms: share of dense × dense's latency", ylabel=f"{name}, {unit}".rstrip(", "))
        figure.legend(loc="outside upper left", ncols=4, handlelength=1.6)
        drawn = _svg(figure, f"{heading(name)} against latency", _describe(series, unit))
        return _with_tooltips(drawn, [point.about for points in series.values() for point in points])


def _line(axes: Any, target: str, points: Sequence[Point], colour: str, unit: str) -> None:
    heights = [point.score * (100 if unit == "%" else 1) for point in points]
    is_measured = all(point.measured for point in points)
    label = target if is_measured else f"{target} (predicted)"
    order = sorted(range(len(points)), key=lambda index: points[index].ms)
    pattern = "-" if is_measured else (0, (4, 3))
    axes.plot(
        [points[i].ms for i in order],
        [heights[i] for i in order],
        color=colour,
        linestyle=pattern,
        linewidth=1.4,
        marker="o",
        markersize=0,
        label=label,
    )
    for point, height in zip(points, heights, strict=True):
        shape, size = ("D", 50) if point.label == "dense" else ("o", 54)
        face = colour if point.measured else CARD
        if point.low_ms is not None and point.high_ms is not None:
            axes.plot([point.low_ms, point.high_ms], [height, height], color=colour, linewidth=4, alpha=0.45)
        dot = axes.scatter(point.ms, height, marker=shape, s=size, facecolor=face, edgecolor=colour, linewidth=1.6)
        dot.set(zorder=3, gid=POINT, urls=[point.link or None])
        axes.annotate(
            point.label,
            (point.ms, height),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )


def _describe(series: Mapping[str, Sequence[Point]], unit: str) -> str:
    def one(point: Point) -> str:
        kind = "measured" if point.measured else "predicted"
        return f"{point.label} at {digits(point.ms)} ms ({kind}), {in_unit(point.score, unit)}"

    return "; ".join(f"{target}: " + ", ".join(map(one, points)) for target, points in series.items())


def _with_tooltips(drawn: Markup, texts: Sequence[str]) -> Markup:
    """The points' texts, in the order in which they were drawn, as titles: what a browser shows at the pointer."""
    first, *others = str(drawn).split(f'<g id="{POINT}">')
    parts = [f"<g><title>{escape(text)}</title>{rest}" for text, rest in zip(texts, others, strict=True)]
    return Markup(first + "".join(parts))  # noqa: S704


def channels(budgets: Mapping[str, Sequence[Bar]]) -> Markup:
    """Channels kept per group, a panel per budget beside each other, all with the same groups in the same order.

    The bar's length is the share kept, the figures beside it are the counts: ``24 / 96``.
    """
    groups = [bar.group for bar in next(iter(budgets.values()))]
    height = 0.75 + 0.2 * len(groups)
    with mpl.rc_context({**STYLE, "axes.grid": False, "font.size": 9, "svg.hashsalt": "channels"}):
        figure = Figure(figsize=(9.6, height), layout="constrained")
        panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
        for axes, (budget, bars) in zip(panels, budgets.items(), strict=True):
            _panel(axes, budget, bars)
        panels[0].set_yticks(range(len(groups)), labels=groups, color=INK)
        panels[0].set_ylim(len(groups) - 0.4, -0.6)
        text = "; ".join(
            f"{budget}: " + ", ".join(f"{b.group} {b.kept} of {b.channels}" for b in bars)
            for budget, bars in budgets.items()
        )
        return _svg(figure, "Channels per group, kept of dense", text)


def _panel(axes: Any, budget: str, bars: Sequence[Bar]) -> None:
    rows = range(len(bars))
    axes.barh(rows, [100] * len(bars), height=0.62, color=TRACK)
    axes.barh(rows, [100 * bar.kept / bar.channels for bar in bars], height=0.62, color=SERIES[0])
    for row, bar in enumerate(bars):
        axes.text(103, row, f"{bar.kept} / {bar.channels}", va="center", fontsize=8, color=QUIET)
    axes.set_xlim(0, 138)
    axes.set_xticks([0, 50, 100], labels=["0", "50", "100%"])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title(budget, loc="left", fontsize=11, color=INK, fontweight="bold")


def search_trace(trace: Sequence[Mapping[str, float]]) -> Markup:
    """The loss per step; where gates were learned also the expected cost beside its limit, and the cost's price."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": "trace"}):
        priced = [row for row in trace if {"cost", "limit", "lambda"} <= row.keys()]
        losses = [row for row in trace if row.get("loss") is not None]
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        panels = figure.subplots(1, 3 if priced else 1, squeeze=False)[0]
        _trace_line(panels[0], losses, "loss", "loss", SERIES[0])
        if priced:
            _trace_line(panels[1], priced, "cost", "cost, % of dense", SERIES[1], 100)
            limits = [100 * row["limit"] for row in priced]
            panels[1].plot([r["step"] for r in priced], limits, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            _trace_line(panels[2], priced, "lambda", "price of the cost", SERIES[0])
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        ends = f"Loss {losses[0]['loss']:.3g} to {losses[-1]['loss']:.3g}" if losses else "No loss"
        return _svg(figure, "The search, step by step", f"{ends} in {trace[-1].get('step', len(trace)):g} steps.")


def _trace_line(
    axes: Axes, rows: Sequence[Mapping[str, float]], name: str, label: str, colour: str, factor: float = 1
) -> None:
    """One figure of the trace, over the steps."""
    axes.plot([row["step"] for row in rows], [factor * row[name] for row in rows], color=colour, linewidth=1.2)
    axes.set(xlabel="step", ylabel=label)
    axes.set_ylim(bottom=0)


def _svg(figure: Figure, title: str, description: str) -> Markup:
    """The figure as an inline ``<svg>`` with a title and a description, and the page's colours."""
    written = StringIO()
    with warnings.catch_warnings():  # the browser's fonts draw the text, not matplotlib's
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    head, _, body = text[text.index("<svg") :].partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    referred = set(re.findall(r"#([\w.-]+)", body))
    kept = referred | {POINT}
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in kept else "", body)
    for colour, variable in COLOURS.items():
        body = body.replace(colour, f"var({variable})")
    label = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return Markup(f'{head} role="img" aria-label="{escape(title)}">{label}{body}')  # noqa: S704
