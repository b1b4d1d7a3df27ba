"""A table for the terminal: an architecture on a new task, episode by episode."""

from __future__ import annotations

from rich import box
from rich.table import Table

from deploy_prune.report.results import Transfer
from deploy_prune.report.units import NONE, percent


def transfer_table(found: Transfer) -> Table:
    """A row an episode, and their mean."""
    table = Table("seed", "classes", "accuracy", "teacher", "steps", "s", box=box.SIMPLE_HEAD)
    for one in found.episodes:
        shown = ", ".join(map(str, one.classes[:10])) + (f", ... ({len(one.classes)})" if len(one.classes) > 10 else "")
        told = NONE if one.accuracy_teacher is None else percent(one.accuracy_teacher)
        table.add_row(str(one.seed), shown, percent(one.accuracy), told, str(one.steps), f"{one.seconds:.1f}")
    half = "" if found.interval is None else f" ± {percent(found.interval)}"
    table.add_section()
    table.add_row("mean", "", percent(found.accuracy) + half, "", "", "")
    return table
