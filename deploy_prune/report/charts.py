"""The page's charts, drawn by matplotlib as inline SVG whose colours follow the page (light and dark)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import StringIO
from itertools import cycle
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from deploy_prune.report.names import shortened
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
WIDTH: Final = 4.4
"""Of each drawing in inches: on a screen of 420 pixels, its smallest text (10 of 72 * 4.4 units) has 11 pixels."""
LEGEND: Final = 36
GROUP: Final = 24
"""Characters of a name that a drawing has room for: in its legend, and beside a bar."""
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


class ScoreAxis(NamedTuple):
    """The axis that charts of one score share: what it shows, of how many test examples, and its ends.

    ``low`` and ``high`` are in the score's own unit, a "%" score from 0 to 1; ``examples`` is None if unknown.
    """

    name: str
    unit: str
    low: float
    high: float
    examples: int | None = None

    @property
    def label(self) -> str:
        """As in "accuracy, %" and, below it, "90.4 to 92.6, n = 846"."""
        number = "" if self.examples is None else f", n = {self.examples}"
        ends = " to ".join(in_unit(end, self.unit).removesuffix(self.unit).strip() for end in (self.low, self.high))
        return f"{self.name}, {self.unit}".rstrip(", ") + f"\n{ends}{number}"


def score_axis(points: Iterable[Point], name: str, unit: str, examples: int | None = None) -> ScoreAxis:
    """The axis that has room for all of these points, and a label above each."""
    scores = [point.score for point in points]
    room = 0.18 * (max(scores) - min(scores)) or 0.05 * abs(scores[0]) or 0.01
    return ScoreAxis(name, unit, min(scores) - room, max(scores) + room, examples)


def latency_score(
    series: Mapping[str, Sequence[Point]], axis: ScoreAxis, front: Sequence[Point] = (), title: str = ""
) -> Markup:
    """One line per target (or run); its first point is the dense network. Hollow points are predicted.

    Args:
        series: target -> points, all of latencies that may stand on one axis.
        axis: of the score; the same for charts that stand beside each other.
        front: points that no other beats, from the fastest on; a broad line leads through them.
        title: above the chart; none if empty.
    """
    names = shortened(list(series), LEGEND)
    columns = 1 if max(map(len, names.values())) > LEGEND / 2 else 2
    height = 3.1 + 0.2 * -(-(len(series) + bool(front)) // columns)
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"latency {title}"}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        for colour, (target, points) in zip(cycle(SERIES), series.items(), strict=False):
            _line(axes, names[target], points, colour, axis.unit)
        factor = 100 if axis.unit == "%" else 1
        if front:
            heights = [point.score * factor for point in front]
            axes.plot([point.ms for point in front], heights, color=LINE, linewidth=9, zorder=0, label="worth having")
        _latency_axis(axes, [point.ms for points in series.values() for point in points])
        axes.set(ylim=(axis.low * factor, axis.high * factor), ylabel=axis.label)
        if title:
            axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
        figure.legend(loc="outside lower left", ncols=columns, handlelength=1.6)
        drawn = _svg(figure, f"{heading(axis.name)} against latency", _describe(series, axis.unit))
        return _with_tooltips(drawn, [point.about for points in series.values() for point in points])


def _latency_axis(axes: Any, latencies: Sequence[float]) -> None:
    """In ms; logarithmic where one network takes many times as long as another."""
    axes.margins(x=0.1)
    if max(latencies) > 8 * min(latencies):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.set_xlabel("latency, ms: share of dense × dense's latency")


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


def channels(budget: str, bars: Sequence[Bar]) -> Markup:
    """Channels kept per group of one budget's network.

    The bar's length is the share kept, the figures beside it are the counts: ``24 / 96``.
    """
    names = shortened([bar.group for bar in bars], GROUP)
    with mpl.rc_context({**STYLE, "axes.grid": False, "svg.hashsalt": "channels"}):
        figure = Figure(figsize=(WIDTH, 0.75 + 0.21 * len(bars)), layout="constrained")
        axes = figure.add_subplot()
        _panel(axes, budget, bars)
        axes.set_yticks(range(len(bars)), labels=[names[bar.group] for bar in bars], color=INK)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        text = f"{budget}: " + ", ".join(f"{b.group} {b.kept} of {b.channels}" for b in bars)
        return _svg(figure, "Channels per group, kept of dense", text)


def _panel(axes: Any, budget: str, bars: Sequence[Bar]) -> None:
    rows = range(len(bars))
    axes.barh(rows, [100] * len(bars), height=0.62, color=TRACK)
    axes.barh(rows, [100 * bar.kept / bar.channels for bar in bars], height=0.62, color=SERIES[0])
    for row, bar in enumerate(bars):
        axes.text(103, row, f"{bar.kept} / {bar.channels}", va="center", color=QUIET)
    axes.set_xlim(0, 160)
    axes.set_xticks([0, 50, 100], labels=["0", "50", "100%"])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title(budget, loc="left", fontsize=11, color=INK, fontweight="bold")


def search_trace(trace: Sequence[Mapping[str, float]]) -> list[Markup]:
    """The loss per step; where gates were learned also the expected cost beside its limit, and the cost's price."""
    losses = [row for row in trace if row.get("loss") is not None]
    ends = f"Loss {losses[0]['loss']:.3g} to {losses[-1]['loss']:.3g}" if losses else "No loss"
    told = f"{ends} in {trace[-1].get('step', len(trace)):g} steps."
    priced = [row for row in trace if {"cost", "limit", "lambda"} <= row.keys()]
    drawn = [_trace(losses, ("loss", "loss"), SERIES[0], told)]
    if priced:
        limits = [100 * row["limit"] for row in priced]
        drawn.append(_trace(priced, ("cost", "cost, % of dense"), SERIES[1], told, 100, limits))
        drawn.append(_trace(priced, ("lambda", "price of the cost"), SERIES[0], told))
    return drawn


def _trace(
    rows: Sequence[Mapping[str, float]], shown: tuple[str, str], colour: str, told: str, factor: float = 1,
    limits: Sequence[float] = (),
) -> Markup:  # fmt: skip
    """One figure of the trace over the steps, by its name and its label; limits are dashed."""
    name, label = shown
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"trace {name}"}):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([row["step"] for row in rows], [factor * row[name] for row in rows], color=colour, linewidth=1.2)
        if limits:
            axes.plot([row["step"] for row in rows], limits, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set(xlabel="step", ylabel=label)
        axes.set_ylim(bottom=0)
        return _svg(figure, f"The search, step by step: {label}", told)


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
