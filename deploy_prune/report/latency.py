"""A row's latency as it may be compared: the speed-up first, then the network's ms beside its own dense ms.

Milliseconds of two runs can't be compared: a machine that got slower in between makes a faster network look slower.
What can be compared is the speed-up, from samples of slim and dense that were taken in the same rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from deploy_prune.report.row import Row
from deploy_prune.report.units import NONE, amount, digits, plain

DRIFTED: Final = 0.03
"""The dense network's p50 in one run over that in another, less 1, from which it is said that the machine's speed
changed: as much as a recipe lets a budget be off by default (``measure.tolerance``)."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A row on the latency axis: its share of dense times the reference, and the same for the interval's ends.

    ``low_ms`` and ``high_ms`` are None where there is no interval: of a dense and of a predicted row.
    ``reference``: the one dense latency in ms, see ``reference_ms``.
    """

    row: Row
    ms: float
    reference: float
    low_ms: float | None = None
    high_ms: float | None = None


def speedup(row: Row) -> float | None:
    """How many times as fast as dense: measured in pairs, else predicted; None of a dense row or without both."""
    if row.budget == "dense":
        return None
    if row.measured_on is not None:
        return row.speedup
    return row.predicted_dense_ms / row.predicted_ms if row.predicted_dense_ms and row.predicted_ms else None


def latency_ms(row: Row) -> float | None:
    """The row's latency in ms: measured where there is a device, else predicted."""
    return row.predicted_ms if row.measured_on is None else row.measured_p50_ms


def own_dense_ms(row: Row) -> float | None:
    """The dense network's latency that this row's may stand beside: of the same rounds, or by the same model."""
    return row.predicted_dense_ms if row.measured_on is None else row.dense_p50_ms


def times(found: float | None) -> str:
    """As in "1.31x"."""
    return NONE if found is None else f"{digits(found)}x"


def interval(row: Row) -> str | None:
    """As in "1.29–1.33": the speed-up's 95% interval; None where it isn't measured."""
    if row.speedup_low is None or row.speedup_high is None:
        return None
    return f"{digits(row.speedup_low)}–{digits(row.speedup_high)}"


def beside_dense(row: Row) -> str:
    """As in "0.864 / 1.13": p50 in ms, and dense's in the same rounds; of a dense row its own p50 alone."""
    dense = own_dense_ms(row)
    mine = plain(latency_ms(row), "latency")
    return mine if dense is None or row.budget == "dense" else f"{mine} / {plain(dense, 'latency')}"


def sentence(row: Row) -> str | None:
    """The latency in words, the speed-up first; None where nothing is known of it."""
    ms, dense, faster = latency_ms(row), own_dense_ms(row), speedup(row)
    if ms is None:
        return None
    if faster is None or dense is None:
        return f"{amount(ms, 'latency')} (p50{'' if row.measured_on else ', predicted'})"
    if row.measured_on is None:
        both = f"{amount(ms, 'latency')}, dense {amount(dense, 'latency')}"
        return f"predicted to be {digits(faster)} times as fast as dense: {both} (both predicted, not measured)"
    sure = f" (95% interval {interval(row)})" if interval(row) else ""
    both = f"{amount(ms, 'latency')}, dense {amount(dense, 'latency')} in the same rounds"
    return f"{digits(faster)} times as fast as dense{sure}: {both} (p50, measured on {row.measured_on})"


def reference_ms(rows: Sequence[Row]) -> float | None:
    """The one dense latency of a target that its axis is in ms by.

    That of the dense row; where that failed, the median of the dense networks beside the others; None without any.
    """
    good = [row for row in rows if row.status != "failed"]
    dense = next((latency_ms(row) for row in good if row.budget == "dense"), None)
    beside = [ms for row in good if (ms := own_dense_ms(row)) is not None]
    return dense if dense is not None else median(beside) if beside else None


def placed(rows: Sequence[Row]) -> Mapping[str, tuple[Placed, ...]]:
    """Per target, its rows on the latency axis; failed rows and those without a latency have no place.

    A row's place is its share of dense (1 / speed-up) times the target's one reference: it is left of the dense network
    exactly if it is faster, however the machine's speed changed between the runs.
    """
    found = {}
    for target in dict.fromkeys(row.target for row in rows):
        here = [row for row in rows if row.target == target and row.status != "failed"]
        reference = reference_ms(here)
        if reference is not None and (known := [p for row in here if (p := _place(row, reference))]):
            found[target] = tuple(known)
    return found


def without_dense_row(rows: Sequence[Row]) -> tuple[str, ...]:
    """Targets whose reference isn't their dense row's latency, as that row failed."""
    dense = {row.target for row in rows if row.budget == "dense" and row.status != "failed"}
    return tuple(target for target in placed(rows) if target not in dense)


def _place(row: Row, reference: float) -> Placed | None:
    if row.budget == "dense":
        return Placed(row=row, ms=reference, reference=reference) if latency_ms(row) is not None else None
    faster = speedup(row)
    if faster is None:
        return None
    if row.measured_on is None or row.speedup_low is None or row.speedup_high is None:
        return Placed(row=row, ms=reference / faster, reference=reference)
    return Placed(
        row=row, ms=reference / faster, reference=reference, low_ms=reference / row.speedup_high,
        high_ms=reference / row.speedup_low,
    )  # fmt: skip


def remarks(rows: Sequence[Row]) -> tuple[str, ...]:
    """What has to be known to read the figures: rows that weren't steady, and machines whose speed changed."""
    told = [f"{row.target} {row.budget} was disturbed: {row.disturbed}." for row in rows if row.disturbed]
    told += [f"{row.target} {row.budget} is in {row.precision}: {row.refused}" for row in rows if row.refused]
    for target in dict.fromkeys(row.target for row in rows):
        dense = [row.dense_p50_ms for row in rows if row.target == target and row.dense_p50_ms is not None]
        if dense and max(dense) / min(dense) > 1 + DRIFTED:
            low, high = (amount(ms, "latency") for ms in (min(dense), max(dense)))
            told.append(
                f"On {target} the dense network took {low} to {high} in different runs: the machine's speed changed. "
                "Compare speed-ups, not milliseconds of different rows."
            )
    return tuple(told)
