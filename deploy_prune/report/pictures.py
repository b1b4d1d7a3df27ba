"""The page's pictures: test examples with what each network finds in them, from a run folder's pictures.json files."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from deploy_prune.errors import printable
from deploy_prune.report.files import read, shaped
from deploy_prune.report.row import Row

MOST_BYTES: Final = 200_000
"""Of all pictures on a page, in which they take a third more; and of one that is read."""
MOST_WORDS: Final = 8
"""Of what is found in a picture, so many are listed below it, the others counted."""
_JPEG: Final = b"\xff\xd8\xff"
_FILE: Final = re.compile(r"pictures/[0-9]{1,3}\.jpg")
_COLOUR: Final = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is found, and the colour in which it is drawn."""

    colour: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn picture: a JPEG's bytes."""

    content: bytes
    found: tuple[Finding, ...]

    @property
    def source(self) -> str:
        """What an ``img`` loads, from nowhere."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.content).decode()}"

    @property
    def listed(self) -> tuple[Finding, ...]:
        """The first of what is found."""
        return self.found[:MOST_WORDS]

    @property
    def words(self) -> str:
        """What is found, in words."""
        more = len(self.found) - len(self.listed)
        words = ", ".join(one.words for one in self.listed) or "nothing"
        return f"{words} and {more} more" if more else words


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """``examples``: of each, whose answers are drawn -> the picture. ``left_out``: networks for which no room is."""

    examples: tuple[dict[str, Picture], ...]
    left_out: tuple[str, ...]


def of_run(run: Path, rows: Sequence[Row]) -> Gallery | None:
    """What the run's folder has: truth, the dense network, and as many of the good slim ones as a page has room for.

    Room is given to each target's smallest network first. None if there are no pictures.

    Raises:
        RunFolderError: a file is damaged.
    """
    found = {place: of for place in ("truth", "dense") if (of := _read(run / place)) is not None}
    if not found:
        return None
    folders = {(path.parent.parent.name, path.parent.name): path.parent for path in run.glob("*/*/pictures.json")}
    left, left_out = MOST_BYTES - sum(map(_size, found.values())), []
    slim: dict[str, tuple[Picture, ...]] = {}
    for row in _smallest_first(rows):
        drawn = _read(folders[row.target, row.budget]) if (row.target, row.budget) in folders else None
        if drawn is not None and _size(drawn) <= left:
            slim[_name(row)] = drawn
            left -= _size(drawn)
        elif drawn is not None:
            left_out.append(_name(row))
    found |= {name: slim[name] for name in map(_name, rows) if name in slim}
    num = min(len(of) for of in found.values())
    return Gallery(
        examples=tuple({name: of[i] for name, of in found.items()} for i in range(num)), left_out=tuple(left_out)
    )


def _name(row: Row) -> str:
    return f"{row.target} {row.budget}"


def _smallest_first(rows: Sequence[Row]) -> list[Row]:
    """The good slim rows: the smallest of each target, then the next one of each, and so on."""
    good = sorted((row for row in rows if row.budget != "dense" and row.status != "failed"), key=lambda r: r.macs or 0)
    before: dict[str, int] = {}
    ranks = []
    for row in good:
        before[row.target] = rank = before.get(row.target, 0) + 1
        ranks.append(rank)
    return [good[i] for i in sorted(range(len(good)), key=lambda i: ranks[i])]


def _size(pictures: Iterable[Picture]) -> int:
    return sum(len(picture.content) for picture in pictures)


def _read(place: Path) -> tuple[Picture, ...] | None:
    return read(place / "pictures.json", partial(_pictures, place))


@dataclass(frozen=True, kw_only=True)
class _Told:
    """A picture, as pictures.json tells of it."""

    file: str
    found: tuple[tuple[str, str], ...]


def _pictures(place: Path, value: Any) -> tuple[Picture, ...]:
    told = shaped(tuple[_Told, ...], value["pictures"])
    return tuple(Picture(content=_content(place, one.file), found=tuple(map(_finding, one.found))) for one in told)


def _finding(told: tuple[str, str]) -> Finding:
    colour, words = told
    if not _COLOUR.fullmatch(colour):
        message = f"{printable(colour, 20)!r} is no colour"
        raise ValueError(message)
    return Finding(colour=colour, words=printable(words, 100))


def _content(place: Path, name: str) -> bytes:
    """A file's bytes: of the place's own pictures, and a JPEG of a plausible size."""
    file = place / name
    if not _FILE.fullmatch(name) or not file.is_file():
        message = f"there is no picture {printable(name, 40)!r}"
        raise ValueError(message)
    with file.open("rb") as opened:
        content = opened.read(MOST_BYTES + 1)
    if not content.startswith(_JPEG) or len(content) > MOST_BYTES:
        message = f"{name} is no JPEG, or has more than {MOST_BYTES} bytes"
        raise ValueError(message)
    return content
