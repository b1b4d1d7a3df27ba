"""Whether a device stayed the same while it was measured."""

from __future__ import annotations

from typing import Any, Final

FELL: Final = 0.1
"""A clock that is lower by more than this share after the measurement than before it has fallen."""
ROSE_C: Final = 15.0
"""A temperature has risen if it is higher by more than this, in degrees Celsius."""


def disturbance(conditions: Any) -> str | None:
    """What moved too far, in words; None if nothing did, or if the device doesn't tell.

    Args:
        conditions: {"before": told, "after": told}, where told may have "clock_mhz", "gpu_clock_mhz" and
            "temperatures_c" (by name), as payload/about.py says.
    """
    before, after = ((conditions or {}).get(key) or {} for key in ("before", "after"))
    found = [
        f"the {name} fell from {before[key]:.0f} to {after[key]:.0f} MHz"
        for key, name in (("clock_mhz", "clock"), ("gpu_clock_mhz", "GPU's clock"))
        if key in before and key in after and after[key] < before[key] * (1 - FELL)
    ]
    start, end = (told.get("temperatures_c", {}) for told in (before, after))
    rises = {name: end[name] - start[name] for name in start.keys() & end.keys()}
    if rises and max(rises.values()) > ROSE_C:
        zone = max(sorted(rises), key=lambda name: rises[name])
        found.append(f"{zone} rose from {start[zone]:.0f} to {end[zone]:.0f} degrees")
    return "; ".join(found) or None
