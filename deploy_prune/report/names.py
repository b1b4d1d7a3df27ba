"""Names where there is little room: shortened in the middle, and never two of them to the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

CUT: Final = "…"


def shortened(names: Sequence[str], width: int) -> Mapping[str, str]:
    """Each name in at most so many characters, its middle left out; those that would look alike stay whole.

    Args:
        names: that stand beside each other.
        width: characters, at least 3.
    """
    short = {name: _in_the_middle(name, width) for name in names}
    alike = Counter(short.values())
    return {name: text if alike[text] == 1 else name for name, text in short.items()}


def _in_the_middle(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3  # of a path, the end tells more
    head = width - 1 - tail
    return f"{name[:head]}{CUT}{name[len(name) - tail :]}"
