"""Have memory that is freed go back to the system, where the C library would keep it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""What mallopt(3) calls M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
_SMALL: Final = 1 << 20
_LARGEST: Final = 32 << 20
"""glibc's own limit for the threshold that it moves by itself on 64-bit systems (DEFAULT_MMAP_THRESHOLD_MAX), bytes."""


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's; None where another C library is."""
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library.mallopt if hasattr(library, "gnu_get_libc_version") else None


_MALLOPT: Final = _mallopt()
"""Found once: while files of strangers are loaded, nothing loads code."""


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Inside, blocks of a megabyte or more go back to the system as soon as they are freed.

    glibc serves what is below a threshold from its heap, and moves the threshold up to 32 MiB as larger blocks are
    freed. The heap shrinks from its end alone, so small blocks that are kept between large ones that are not hold all
    of it. Afterwards the threshold is where it would have moved to. Other C libraries are left alone.
    """
    if _MALLOPT is None:
        yield
        return
    _MALLOPT(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        _MALLOPT(_MMAP_THRESHOLD, _LARGEST)
        _MALLOPT(_TRIM_THRESHOLD, 2 * _LARGEST)
