"""Tables for the terminal: a run's latency measured again, and the layers that lost time."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from deploy_prune.report import latency
from deploy_prune.report.results import Bench
from deploy_prune.report.table import faster, lines, milliseconds, plain_table, predicted, status
from deploy_prune.report.units import NONE, amount, percent, plain


def bench_tables(benches: Sequence[Bench]) -> tuple[RenderableType, ...]:
    """The speed-up, and p50 beside dense's in the same rounds, row by row; where it lags behind MACs, the layers."""
    table = plain_table("target", "budget\nasked\npredicted")
    headers = ("speed-up\n(95%)", "p50 ms\nslim / dense", "p90 ms\np99 ms", "MACs\nof dense")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("status")
    for found in benches:
        table.add_row(*_cells(found), style="red" if found.row.status == "failed" else None)
    errors = [f"\n{b.row.target} {b.row.budget}: {b.row.error}" for b in benches if b.row.status == "failed"]
    told = Text("\n".join(latency.remarks([b.row for b in benches])), style="not italic", justify="left")
    if told or errors:
        table.caption = told.append("".join(errors) if told else "".join(errors).lstrip(), style="red")
        table.caption_justify = "left"
    return table, *(_why(found) for found in benches if found.lags)


def _cells(found: Bench) -> tuple[str | Text, ...]:
    row = found.row
    tail = "\n".join(plain(ms, "latency") for ms in (row.measured_p90_ms, row.measured_p99_ms))
    return (
        Text(row.target), Text(lines(row.budget, amount(row.asked, row.metric), predicted(row))), lines(*faster(row)),
        lines(*milliseconds(row)), tail, percent(found.macs_share), status(row),
    )  # fmt: skip


def _why(found: Bench) -> RenderableType:
    """The layers that lost time, or that the runtime doesn't tell."""
    row = found.row
    share = None if row.speedup is None else 1 / row.speedup
    head = f"{row.target} {row.budget}: {latency.times(row.speedup)} as fast as dense, {percent(share)} of its latency "
    head += f"with {percent(found.macs_share)} of its MACs"
    if not found.lost:
        return Text(f"{head}; no single layer can be named.", style="yellow")
    table = plain_table("layer", title=f"{head}. Time lost against MACs, of the slim network's:")
    for header in ("lost", "ms\ndense → slim", "ms kept", "MACs kept"):
        table.add_column(header, justify="right")
    table.add_column("why")
    for x in found.lost:
        times = f"{plain(x.dense_ms, 'latency')} → {plain(x.slim_ms, 'latency')}"
        kept = percent(x.slim_ms / x.dense_ms) if x.dense_ms > 0 else NONE
        table.add_row(Text(x.layer), percent(x.share), times, kept, percent(x.macs_share), x.reason)
    return table
