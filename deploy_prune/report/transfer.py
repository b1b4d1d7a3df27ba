"""A table for the terminal: an architecture on a new task, episode by episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich import box
from rich.table import Table

from deploy_prune.report.units import NONE, percent


class Episode(Protocol):
    """One draw of the examples."""

    @property
    def seed(self) -> int:
        """Of the draw."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Of the task."""

    @property
    def accuracy(self) -> float:
        """The slim network's, 0 to 1."""

    @property
    def accuracy_teacher(self) -> float | None:
        """The dense network's after the same examples."""

    @property
    def steps(self) -> int:
        """Training steps."""

    @property
    def seconds(self) -> float:
        """They took."""


class Transfer(Protocol):
    """All of them."""

    @property
    def episodes(self) -> Sequence[Episode]:
        """In order."""

    @property
    def accuracy(self) -> float:
        """Their mean."""

    @property
    def interval(self) -> float | None:
        """Half the mean's 95% interval."""


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
