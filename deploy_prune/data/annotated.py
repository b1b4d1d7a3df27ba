"""What annotation files say of their pictures, before it is believed; and what is broken in it.

A reader lists pictures and what is said of them. `boxed` reads the pictures and names what is broken; `settled` fails
or leaves it out, as the recipe says. Sizes are (width, height) in pixels. Boxes are left, top, right, bottom in pixels
of the upright picture.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from deploy_prune.data.folders import listed, shown
from deploy_prune.data.pictures import Array, Picture, Scan, Size, scan
from deploy_prune.errors import DataError

NAMED: Final = 10
"""Faults that an error names."""
EDGE_PX: Final = 1.0
"""A box may reach so far beyond its picture without being counted: annotations are rounded."""
Corners = tuple[float, float, float, float]


class Fault(NamedTuple):
    """What is broken: where, in words, and as what it is counted."""

    where: str
    what: str
    kind: str


class SaidBox(NamedTuple):
    """A box as a file has it. ``where``: within the file, as in "object 3"."""

    label: int
    corners: Corners
    where: str


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A picture's file and what is said of it.

    ``annotation``: where that is said, for messages. ``num_said``: how many objects that has, whole or broken.
    ``said_size``: of the picture, if it is said. ``shares``: corners are shares of the picture's width and height
    instead of pixels. ``mask``: the file of its mask.
    """

    image: Path
    annotation: str
    boxes: tuple[SaidBox, ...] = ()
    said_size: Size | None = None
    shares: bool = False
    num_said: int = 0
    mask: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What is broken, and what is only counted, while a data set is read."""

    faults: list[Fault] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True, eq=False)
class Listed:
    """What a reader lists. ``test``: what is scored; None where there is but one set, which is to be split.

    ``names``: the classes'; None where they have numbers only.
    """

    names: tuple[str, ...] | None
    train: tuple[Annotated, ...]
    test: tuple[Annotated, ...] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxedPicture:
    """A picture, its boxes float32 [N, 4], all of some area and within it, and their classes int64 [N]."""

    picture: Picture
    boxes: Array
    labels: Array


def boxed(said: Iterable[Annotated], findings: Findings) -> list[BoxedPicture]:
    """The pictures that can be read, with the boxes that are whole. A picture with broken boxes only is left out."""
    found = []
    for one in said:
        scanned = scanned_or_fault(one, findings)
        if scanned is None:
            continue
        corners = [(box, _in_pixels(one, box, scanned)) for box in one.boxes]
        kept = [(box.label, placed) for box, c in corners if (placed := _placed(one, box, c, scanned, findings))]
        if one.num_said and not kept:
            findings.notes["pictures left out, for all their boxes are broken"] += 1
            continue
        if not one.num_said:
            findings.notes["pictures without a box"] += 1
        boxes = np.array([placed for _, placed in kept], np.float32).reshape(-1, 4)
        labels = np.array([label for label, _ in kept], np.int64)
        found.append(BoxedPicture(picture=scanned.picture, boxes=boxes, labels=labels))
    return found


def scanned_or_fault(one: Annotated, findings: Findings) -> Scan | None:
    """The picture, or None with a fault: it isn't there, can't be read, or has another size than is said."""
    if not one.image.is_file():
        findings.faults.append(Fault(one.annotation, f"there is no picture {one.image}", "missing pictures"))
        return None
    try:
        found = scan(one.image)
    except ValueError as error:
        findings.faults.append(Fault(one.annotation, str(error), "unreadable pictures"))
        return None
    if one.said_size is not None and one.said_size not in {found.picture.size, found.stored}:
        wide, high = found.picture.size
        what = f"{one.image.name} is said to have {one.said_size[0]}x{one.said_size[1]} pixels and has {wide}x{high}"
        findings.faults.append(Fault(one.annotation, what, "pictures of another size than is said"))
        return None
    return found


def require(findings: Findings, how: str, root: Path) -> tuple[str, ...]:
    """What is left out, in words; files as from ``root``.

    Raises:
        DataError: anything is broken, and ``how`` (the recipe's ``data.broken``) is "fail".
    """
    told = [shown(f"{where}: {what}").replace(f"{root}{os.sep}", "") for where, what, _ in findings.faults]
    if told and how == "fail":
        more = f" (and {len(told) - NAMED} more)" if len(told) > NAMED else ""
        kinds = Counter(fault.kind for fault in findings.faults)
        message = f"data.broken: {listed(kinds)} (data.broken: skip leaves them out). {'; '.join(told[:NAMED])}{more}."
        raise DataError(message)
    return tuple(told)


def counted(findings: Findings) -> Mapping[str, int]:
    """How many there are of each kind that is broken or worth a note."""
    return Counter(fault.kind for fault in findings.faults) + findings.notes


def same_file_twice(first: Sequence[Annotated], second: Sequence[Annotated]) -> None:
    """Nothing is scored that is trained on.

    Raises:
        DataError: a picture's file is in both.
    """
    both = {one.image.resolve() for one in first} & {one.image.resolve() for one in second}
    if both:
        message = f"data.root: {min(both)} is among the pictures to train on and among those to score on, as are "
        message += f"{len(both) - 1} others; take each out of one of the lists."
        raise DataError(message)


def _in_pixels(one: Annotated, box: SaidBox, scanned: Scan) -> Corners:
    """Corners in pixels of the upright picture, of what a file says of it as stored or upright."""
    left, top, right, bottom = box.corners
    wide, high = scanned.picture.size
    if one.shares:
        return left * wide, top * high, right * wide, bottom * high
    if one.said_size in {None, scanned.picture.size}:
        return box.corners
    corners = (_upright((x, y), scanned) for x, y in ((left, top), (right, bottom)))
    (x, y), (x2, y2) = corners
    return min(x, x2), min(y, y2), max(x, x2), max(y, y2)


def _upright(point: tuple[float, float], scanned: Scan) -> tuple[float, float]:
    """Where a point of the picture as stored is in the upright one, whose sides are exchanged (EXIF 5 to 8)."""
    (x, y), (wide, high) = point, scanned.stored
    turned = {5: (y, x), 6: (high - y, x), 7: (high - y, wide - x), 8: (y, wide - x)}
    return turned[scanned.orientation]


def _placed(one: Annotated, box: SaidBox, corners: Corners, scanned: Scan, findings: Findings) -> Corners | None:
    """The box within its picture; None with a fault if nothing of it is."""
    wide, high = scanned.picture.size
    fault = _fault(corners, wide, high)
    left, top, right, bottom = corners
    if fault is None:
        over = max(-left, -top, right - wide, bottom - high)
        findings.notes["boxes cut off at their picture's edge"] += over > EDGE_PX
        left, top, right, bottom = (float(np.float32(x)) for x in _inside(corners, wide, high))
        if right > left and bottom > top:
            return left, top, right, bottom
        fault = "has no area", "boxes of no area"
    said = ", ".join(f"{value:.6g}" for value in corners)
    findings.faults.append(Fault(f"{one.annotation}, {box.where}", f"the box [{said}] {fault[0]}", fault[1]))
    return None


def _inside(corners: Corners, wide: int, high: int) -> Corners:
    left, top, right, bottom = corners
    return max(left, 0.0), max(top, 0.0), min(right, float(wide)), min(bottom, float(high))


def _fault(corners: Corners, wide: int, high: int) -> tuple[str, str] | None:
    left, top, right, bottom = corners
    if not all(math.isfinite(value) for value in corners):
        return "has a number that is not finite", "boxes with numbers that are not finite"
    if right <= left or bottom <= top:
        return "has no area", "boxes of no area"
    if left >= wide or top >= high or right <= 0 or bottom <= 0:
        return f"lies outside of its picture of {wide}x{high} pixels", "boxes outside of their picture"
    return None
