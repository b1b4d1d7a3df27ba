"""Budgets as text: '50%', '50% macs', '4 ms', '120 MMACs', '3 Mparams', '2.5 MB'."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final, get_args

from deploy_prune.errors import BudgetError
from deploy_prune.types import Budget, Metric

_UNITS: Final[dict[str, tuple[Metric, float]]] = {
    "us": ("latency", 1e-3), "ms": ("latency", 1.0), "s": ("latency", 1e3),
    "macs": ("macs", 1.0), "kmacs": ("macs", 1e3), "mmacs": ("macs", 1e6), "gmacs": ("macs", 1e9),
    "params": ("params", 1.0), "kparams": ("params", 1e3), "mparams": ("params", 1e6), "gparams": ("params", 1e9),
    "b": ("size", 1.0), "kb": ("size", 1e3), "mb": ("size", 1e6), "gb": ("size", 1e9),
    "kib": ("size", 2.0**10), "mib": ("size", 2.0**20), "gib": ("size", 2.0**30),
}  # fmt: skip
_BUDGET: Final = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?(?P<unit>%|[A-Za-z]+)(?: (?P<metric>[A-Za-z]+))?"
)
_BUDGET_FORMS: Final = "write it like '50%', '50% macs', '4 ms', '120 MMACs', '3 Mparams' or '2.5 MB'"


def parse_budget(text: str, default_metric: Metric) -> Budget:
    """Read a budget such as "50%" (of dense), "50% macs", "4 ms", "120 MMACs", "3 Mparams" or "2.5 MB".

    Units are read in either case: us ms s; MACs and params with k M G (powers of 1000); B kB MB GB, KiB MiB GiB.
    The limit is in ms, MACs, parameters or bytes; ``default_metric`` is the metric of a percentage that names none.

    Raises:
        BudgetError: it can't be read, is not above 0, or is above 100%.
    """
    words = " ".join(text.split())
    match = _BUDGET.fullmatch(words)
    if match is None:
        raise _unreadable(words)
    number, unit, metric = float(match["number"]), match["unit"].lower(), (match["metric"] or "").lower()
    if unit == "%":
        return _share_of_dense(words, number, metric or default_metric)
    if unit not in _UNITS or metric not in ("", _UNITS[unit][0]):
        raise _unreadable(words)
    limit = number * _UNITS[unit][1]
    if not 0 < limit < math.inf:
        message = f"the budget {words!r} must be above 0 and finite"
        raise BudgetError(message)
    return Budget(text=words, metric=_UNITS[unit][0], limit=limit, relative=False)


def _share_of_dense(words: str, percent: float, metric: str) -> Budget:
    for known in get_args(Metric):
        if metric == known:
            if not 0 < percent <= 100:
                message = f"the budget {words!r} must be above 0% and at most 100%"
                raise BudgetError(message)
            return Budget(text=words, metric=known, limit=percent / 100, relative=True)
    raise _unreadable(words)


def _unreadable(words: str) -> BudgetError:
    return BudgetError(f"the budget {words!r} can't be read; {_BUDGET_FORMS}")


def require_distinct(texts: Sequence[str], metric: Metric) -> None:
    """Refuse budgets that are the same, however they are written. ``metric``: what a percentage alone is of.

    Raises:
        ValueError: two of them are.
    """
    seen: dict[tuple[Metric, float, bool], str] = {}
    for text in texts:
        budget = parse_budget(text, metric)
        key = (budget.metric, budget.limit, budget.relative)
        if key in seen:
            message = f"{budget.text!r} is the same budget as {seen[key]!r}; remove one"
            raise ValueError(message)
        seen[key] = budget.text
