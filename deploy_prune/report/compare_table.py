"""Runs beside each other, in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from deploy_prune.report import latency
from deploy_prune.report.compare import Candidate, Comparison, Field
from deploy_prune.report.table import lines, plain_table
from deploy_prune.report.units import in_unit, plain

MARK: Final = "*"
SHOWN: Final = 8
"""So many settings of a run are shown."""


def compare_tables(comparison: Comparison) -> tuple[RenderableType, ...]:
    """A table for each device, and one of the settings that differ. At most 80 columns for names of 20 characters."""
    parts: list[RenderableType] = [_networks(field) for field in comparison.fields]
    if not comparison.fields:
        parts.append(Text("No network of these runs has both a latency and a score (yet)."))
    else:
        parts.append(Text(f"{MARK} worth having: no other network is as fast and as good.", style="dim"))
    parts += [Text(sentence, style="red") for sentence in comparison.left_out]
    if len(comparison.runs) > 1:
        parts.append(_differences(comparison.differences))
    return tuple(parts)


def _networks(field: Field) -> Table:
    table = plain_table("", "run", "method", "budget", title=field.title)
    for header in ("ms", "speed-up\n(95%)", field.score_name, "MB"):
        table.add_column(header, justify="right", no_wrap=True)
    several = len({one.row.target for one in field.candidates}) > 1
    for one in field.candidates:
        table.add_row(*_cells(one, field, several), style=None if one.worth else "dim")
    return table


def _cells(one: Candidate, field: Field, several: bool) -> Iterator[str | Text]:
    row = one.row
    yield MARK if one.worth else ""
    yield Text(one.run)
    yield one.method
    yield Text(lines(row.budget, row.target if several else "", "" if row.precision == "fp32" else row.precision))
    yield plain(one.ms, "latency")
    yield lines(latency.times(latency.speedup(row)), latency.interval(row) or "")
    yield in_unit(one.score, field.score_unit)
    yield plain(row.size_bytes, "size")


def _differences(differences: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    if not any(differences.values()):
        return Text("Their recipes differ in nothing that a result depends on.")
    table = plain_table("run", "settings that differ", title="In what the recipes differ")
    for run, settings in differences.items():
        told = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        more = f" and {len(told) - SHOWN} more (see the page)" if len(told) > SHOWN else ""
        table.add_row(Text(run), Text(", ".join(told[:SHOWN]) + more))
    return table
