"""Text that a file or a device says, made fit to be shown: short, and without characters that steer a terminal."""

from __future__ import annotations

from typing import Final

MAX_MESSAGE: Final = 2000
"""Characters of an error's message: a screen of them; the rest of a longer one is cut."""
_FORMULA: Final = ("=", "+", "-", "@")
"""A spreadsheet takes a cell that begins so for a formula."""


def printable(text: object, limit: int | None = None, keep: str = "") -> str:
    """The text without control characters: line ends and tabs become spaces, all others "?".

    That covers what moves the cursor or the writing direction, and halves of characters, which no terminal can be
    told. ``limit``: characters, beyond which "..." stands for the rest. ``keep``: characters that are left as they are.
    """
    told = str(text)
    short = told if limit is None else told[:limit]
    clean = "".join(c if c.isprintable() or c in keep else " " if c.isspace() else "?" for c in short)
    return clean + ("..." if len(short) < len(told) else "")


def cell(value: object) -> object:
    """A value for a table that a spreadsheet may open: text is printable, and never begins as a formula does."""
    if not isinstance(value, str):
        return value
    text = printable(value, keep="\n")
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
