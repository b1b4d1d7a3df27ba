"""Disturbance: whether a device's clocks or temperatures changed while it was measured."""

from __future__ import annotations

from typing import Any, Final

FELL: Final = 0.1
"""A clock that is lower by more than this share after the measurement than before it has fallen."""
ROSE_C: Final = 15.0
"""A temperature has risen if it is higher by more than this, in degrees Celsius."""
_CLOCKS: Final = {"clock_mhz": "the clock", "gpu_clock_mhz": "the GPU's clock"}


def disturbance(conditions: Any) -> str | None:
    """What changed too much, in words; None if nothing did, or if the device doesn't report it.

    Args:
        conditions: {"before": told, "after": told}, where told may have "clock_mhz", "gpu_clock_mhz" and
            "temperatures_c" (by name), as payload/about.py says. It comes from a device: anything may be in it.
    """
    before, after = (_numbers(_part(conditions, key)) for key in ("before", "after"))
    found = [
        f"{name} fell from {before[key]:.0f} to {after[key]:.0f} MHz"
        for key, name in _CLOCKS.items()
        if after.get(key, before.get(key, 0.0)) < before.get(key, 0.0) * (1 - FELL)
    ]
    start, end = (_numbers(_part(_part(conditions, key), "temperatures_c")) for key in ("before", "after"))
    rises = {name: end[name] - start[name] for name in sorted(start.keys() & end.keys())}
    if rises and max(rises.values()) > ROSE_C:
        zone = max(rises, key=lambda name: rises[name])
        found.append(f"{zone} rose from {start[zone]:.0f} to {end[zone]:.0f} degrees")
    return "; ".join(found) or None


def _part(told: Any, key: str) -> Any:
    return told.get(key) if isinstance(told, dict) else None


def _numbers(told: Any) -> dict[str, float]:
    return {k: float(v) for k, v in told.items() if isinstance(v, int | float)} if isinstance(told, dict) else {}
