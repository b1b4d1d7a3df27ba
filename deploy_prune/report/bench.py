"""Tables for the terminal: a run's latency measured again, and the layers that lost time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from deploy_prune.report.table import predicted, status
from deploy_prune.report.units import NONE, amount, percent, plain
from deploy_prune.types import Row


class Lost(Protocol):
    """A layer that is slower than its multiply-accumulates say."""

    @property
    def layer(self) -> str:
        """Its name."""

    @property
    def dense_ms(self) -> float:
        """Its time in the dense network."""

    @property
    def slim_ms(self) -> float:
        """Its time in the slim network."""

    @property
    def macs_share(self) -> float:
        """Its MACs, of the dense layer's."""

    @property
    def share(self) -> float:
        """The time that it lost, of the slim network's."""

    @property
    def reason(self) -> str:
        """Why."""


class Bench(Protocol):
    """A row, measured again."""

    @property
    def row(self) -> Row:
        """As in results.json."""

    @property
    def macs_share(self) -> float:
        """MACs, of the dense network's."""

    @property
    def lags(self) -> bool:
        """Whether latency fell less than MACs."""

    @property
    def lost(self) -> Sequence[Lost]:
        """The layers that lost most time."""


def bench_tables(benches: Sequence[Bench]) -> tuple[RenderableType, ...]:
    """What was asked, predicted and measured, row by row; then, where latency fell less than MACs, the layers."""
    table = _table("target", "budget")
    for header in ("asked", "predicted", "measured ms\np50 / p90 / p99", "of dense\n(95% interval)", "MACs\nof dense"):
        table.add_column(header, justify="right")
    table.add_column("status")
    for found in benches:
        table.add_row(*_cells(found), style="red" if found.row.status == "failed" else None)
    errors = [f"{b.row.target} {b.row.budget}: {b.row.error}" for b in benches if b.row.status == "failed"]
    if errors:
        table.caption = Text("\n".join(errors), style="not italic red", justify="left")
    return table, *(_why(found) for found in benches if found.lags)


def _cells(found: Bench) -> tuple[str | Text, ...]:
    row = found.row
    times = (row.measured_p50_ms, row.measured_p90_ms, row.measured_p99_ms)
    measured = " / ".join(plain(ms, "latency") for ms in times) if row.measured_on else "not measured"
    if row.disturbed:
        measured += " (disturbed)"
    ratio = (
        NONE if row.ratio is None else f"{percent(row.ratio)}\n({percent(row.ratio_low)} to {percent(row.ratio_high)})"
    )
    return (
        Text(row.target), Text(row.budget), amount(row.asked, row.metric), predicted(row), measured, ratio,
        percent(found.macs_share), status(row),
    )  # fmt: skip


def _why(found: Bench) -> RenderableType:
    """The layers that lost time, or that the runtime doesn't tell."""
    row = found.row
    head = (
        f"{row.target} {row.budget}: {percent(row.ratio)} of dense latency with {percent(found.macs_share)} of its MACs"
    )
    if not found.lost:
        return Text(f"{head}; no single layer can be named.", style="yellow")
    table = _table("layer", title=f"{head}. Time lost against MACs, of the slim network's:")
    for header in ("lost", "ms\ndense → slim", "ms kept", "MACs kept"):
        table.add_column(header, justify="right")
    table.add_column("why")
    for x in found.lost:
        times = f"{plain(x.dense_ms, 'latency')} → {plain(x.slim_ms, 'latency')}"
        kept = percent(x.slim_ms / x.dense_ms) if x.dense_ms > 0 else NONE
        table.add_row(Text(x.layer), percent(x.share), times, kept, percent(x.macs_share), x.reason)
    return table


def _table(*headers: str, title: str | None = None) -> Table:
    table = Table(*headers, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.title_style, table.title_justify = "bold not italic", "left"
    return table
