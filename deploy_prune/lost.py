"""What a layer that is slower than its multiply-accumulates say has lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["granularity", "memory-bound", "overhead"]
"""Why a layer is slower than its multiply-accumulates say: latency/why_slower.py has the rules."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A layer that is slower than its multiply-accumulates say; ``share``: lost ms over the slim network's ms."""

    layer: str
    dense_ms: float
    slim_ms: float
    macs_share: float
    share: float
    reason: Reason
