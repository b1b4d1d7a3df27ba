"""Figures as people read them: three significant digits and a unit."""

from __future__ import annotations

from math import floor, isfinite, log10
from typing import Final, NamedTuple

from deploy_prune.types import Metric

NONE: Final = "–"
"""What stands where there is no figure."""


class Unit(NamedTuple):
    """A metric is shown as ``value / scale`` followed by ``symbol``."""

    scale: float
    symbol: str


UNITS: Final[dict[Metric, Unit]] = {
    "latency": Unit(1.0, "ms"),
    "macs": Unit(1e6, "MMACs"),
    "params": Unit(1e6, "M"),
    "size": Unit(1e6, "MB"),
}


def digits(value: float, significant: int = 3) -> str:
    """A number with so many significant digits, never in scientific notation: 0.0412, 3.14, 27.2, 1280."""
    if value == 0 or not isfinite(value):
        return f"{value:g}"
    decimals = significant - 1 - floor(log10(abs(value)))
    rounded = round(value, decimals)
    decimals = significant - 1 - floor(log10(abs(rounded)))
    return f"{rounded:.{max(decimals, 0)}f}"


def plain(value: float | None, metric: Metric) -> str:
    """A value in the metric's own unit (ms, MACs, parameters, bytes), scaled, without its symbol."""
    return NONE if value is None else digits(value / UNITS[metric].scale)


def amount(value: float | None, metric: Metric) -> str:
    """The same with its symbol: ``amount(59_600_000, "macs") == "59.6 MMACs"``."""
    return NONE if value is None else f"{plain(value, metric)} {UNITS[metric].symbol}"


def in_unit(score: float | None, unit: str) -> str:
    """A task's score: in percent with one decimal if that is its unit, else three digits and the unit."""
    if score is None or unit == "%":
        return percent(score)
    return f"{digits(score)} {unit}".rstrip()


def percent(share: float | None, signed: bool = False) -> str:
    """A share (0 to 1) in percent with one decimal, never -0.0; with its sign if ``signed``."""
    if share is None:
        return NONE
    return f"{100 * share:+z.1f}%" if signed else f"{100 * share:z.1f}%"


def heading(name: str) -> str:
    """A score's name where a sentence or a title begins: "Accuracy", but "mAP50-95"."""
    first = name.partition(" ")[0]
    return name if first != first.lower() else f"{name[:1].upper()}{name[1:]}"
