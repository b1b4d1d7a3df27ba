"""A table for the terminal: an architecture on a new task, episode by episode."""

from __future__ import annotations

from rich import box
from rich.table import Table

from deploy_prune.report.results import Transfer
from deploy_prune.report.units import NONE, in_unit


def transfer_table(found: Transfer) -> Table:
    """A row an episode, and their mean."""
    table = Table("seed", "classes", found.score_name, "teacher", "steps", "s", box=box.SIMPLE_HEAD)
    for one in found.episodes:
        shown = ", ".join(map(str, one.classes[:10])) + (f", ... ({len(one.classes)})" if len(one.classes) > 10 else "")
        told = NONE if one.score_teacher is None else in_unit(one.score_teacher, found.score_unit)
        table.add_row(
            str(one.seed), shown, in_unit(one.score, found.score_unit), told, str(one.steps), f"{one.seconds:.1f}"
        )
    half = "" if found.interval is None else f" ± {in_unit(found.interval, found.score_unit)}"
    table.add_section()
    table.add_row("mean", "", in_unit(found.score, found.score_unit) + half, "", "", "")
    return table
