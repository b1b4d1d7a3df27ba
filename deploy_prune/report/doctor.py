"""What `deploy-prune doctor` finds, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.console import RenderableType
from rich.text import Text

from deploy_prune.report.table import plain_table

State = Literal["ok", "absent", "note", "wrong"]
STYLES: Final[dict[State, str]] = {"ok": "green", "absent": "dim", "note": "yellow", "wrong": "red"}
"""``absent``: nothing is wrong, it just isn't there. ``note``: figures may suffer. ``wrong``: something will fail."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at. ``area``: the heading it stands under. ``remedy``: what to do; "" if nothing."""

    area: str
    name: str
    state: State
    told: str
    remedy: str = ""


def doctor_tables(findings: Sequence[Finding]) -> tuple[RenderableType, ...]:
    """A table for each area, at most 80 columns wide."""
    tables: list[RenderableType] = []
    for area in dict.fromkeys(one.area for one in findings):
        table = plain_table("", "", "", title=area)
        table.show_header = False
        for one in findings:
            if one.area == area:
                told = Text(one.told)
                if one.remedy:
                    told.append(f"\n{one.remedy}", style="bold")
                table.add_row(Text(one.state, style=STYLES[one.state]), Text(one.name), told)
        tables.append(table)
    return tuple(tables)
