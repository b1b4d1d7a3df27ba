"""What annotation files say of their pictures, before it is believed; and what is broken in it.

A reader lists pictures and what is said of them. `boxed` reads the pictures and names what is broken; `settled` fails
or leaves it out, as the recipe says. Sizes are (width, height) in pixels. Boxes are left, top, right, bottom in pixels
of the upright picture.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from deploy_prune.data.folders import listed, shown
from deploy_prune.data.instances import Instances, Outlines, fault_of_shape
from deploy_prune.data.kept_scans import kept_scans
from deploy_prune.data.pictures import Array, Picture, Scan, Size, array_digest
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import BoxesPart, Objects, PicturesPart

NAMED: Final = 10
"""Faults that an error names."""
EDGE_PX: Final = 1.0
"""A box may reach so far beyond its picture without being counted: annotations are rounded."""
_OTHER_SIZE: Final = "pictures of another size than is said"
Corners = tuple[float, float, float, float]


class Fault(NamedTuple):
    """What is broken: where, in words, and as what it is counted."""

    where: str
    what: str
    kind: str


class SaidBox(NamedTuple):
    """A box as a file has it.

    ``where``: within the file, as in "object 3". ``shape``: the object's, as `instances.Outlines` has it. ``points``:
    x, y and whether it is seen (0, 1, 2) of each of its key points.
    """

    label: int
    corners: Corners
    where: str
    shape: Any = None
    points: tuple[float, ...] | None = None


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

    ``names``: the classes'; None where they have numbers only. ``num_points``: key points of an object. ``mirror``: for
    each of these, which one it is in a mirror; None where that is not known.
    """

    names: tuple[str, ...] | None
    train: tuple[Annotated, ...]
    test: tuple[Annotated, ...] | None
    num_points: int = 0
    mirror: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxedPicture:
    """A picture, its boxes float32 [N, 4], all of some area and within it, and their classes int64 [N].

    ``masks``: of its objects. ``points``: their key points, float32 [N, K, 3]: x, y, and whether it is seen.
    """

    picture: Picture
    boxes: Array
    labels: Array
    masks: Instances | None = None
    points: Array | None = None

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        found = hashlib.sha256(self.picture.digest + array_digest(self.labels) + array_digest(self.boxes))
        found.update(b"" if self.masks is None else self.masks.digest)
        found.update(b"" if self.points is None else array_digest(self.points))
        return found.digest()

    def kept(self, is_kept: Array) -> BoxedPicture:
        """With some objects alone; ``is_kept``: bool [N]."""
        return replace(
            self, boxes=self.boxes[is_kept], labels=self.labels[is_kept],
            masks=None if self.masks is None else self.masks.kept(is_kept),
            points=None if self.points is None else self.points[is_kept],
        )  # fmt: skip


def boxed(said: Sequence[Annotated], part: BoxesPart, num_points: int, findings: Findings) -> list[BoxedPicture]:
    """The pictures that can be read, with the boxes that are whole. A picture with broken boxes only is left out.

    ``part``: says what is wanted of each object; ``num_points``: K.
    """
    found = []
    for one, scan in scanned(said, part, findings):
        placed = ((box, _placed(one, box, scan, part.objects, findings)) for box in one.boxes)
        kept = [(box, corners) for box, corners in placed if corners is not None]
        if one.num_said and not kept:
            findings.notes["pictures left out, for all their boxes are broken"] += 1
            continue
        findings.notes["pictures without a box"] += not one.num_said
        found.append(_boxed(one, kept, scan, part.objects, num_points))
    return found


def _boxed(
    one: Annotated, kept: list[tuple[SaidBox, Corners]], scanned: Scan, objects: Objects, num_points: int
) -> BoxedPicture:
    masks = points = None
    if objects == "masks":
        size = said_of(one, scanned)
        shapes = tuple(_shape(one, box, size) for box, _ in kept)
        orientation = 1 if size == scanned.picture.size else scanned.orientation
        masks = Outlines(shapes=shapes, size=size, orientation=orientation)
    if objects == "keypoints":
        rows = [_points(one, box, scanned) for box, _ in kept]
        points = np.array(rows, np.float32).reshape(-1, num_points, 3)
    return BoxedPicture(
        picture=scanned.picture, boxes=np.array([corners for _, corners in kept], np.float32).reshape(-1, 4),
        labels=np.array([box.label for box, _ in kept], np.int64), masks=masks, points=points,
    )  # fmt: skip


def said_of(one: Annotated, scanned: Scan) -> Size:
    """The size of the picture that an annotation speaks of: upright, or as stored."""
    return scanned.picture.size if one.said_size in {None, scanned.picture.size} else scanned.stored


def _shape(one: Annotated, box: SaidBox, size: Size) -> Any:
    """The object's shape, in pixels."""
    if not one.shares or box.shape is None:
        return box.shape
    return [[value * size[i % 2] for i, value in enumerate(outline)] for outline in box.shape]


def _points(one: Annotated, box: SaidBox, scanned: Scan) -> list[tuple[float, float, float]]:
    """An object's key points in pixels of the upright picture."""
    values = box.points or ()
    found = []
    for x, y, seen in zip(values[::3], values[1::3], values[2::3], strict=True):
        place = _upright_place((x, y), one, scanned)
        found.append((*place, seen))
    return found


def scanned(said: Sequence[Annotated], part: PicturesPart, findings: Findings) -> Iterator[tuple[Annotated, Scan]]:
    """Each picture that can be read; a fault of each that isn't there, can't be, or has another size than is said.

    They are looked at once, by ``part.workers`` processes, and decoded if what is damaged is to be left out.
    """
    looks = kept_scans([one.image for one in said], part.workers, decode=part.broken == "skip")
    for one, found in zip(said, looks, strict=True):
        if found is None:
            fault = f"there is no picture {one.image}", "missing pictures"
        elif isinstance(found, ValueError):
            fault = str(found), "unreadable pictures"
        elif one.said_size not in {None, found.picture.size, found.stored}:
            wide, high = found.picture.size
            size = "{}x{}".format(*one.said_size)
            fault = f"{one.image.name} is said to have {size} pixels and has {wide}x{high}", _OTHER_SIZE
        else:
            yield one, found
            continue
        findings.faults.append(Fault(one.annotation, *fault))


def require(findings: Findings, how: str, root: Path | None) -> tuple[str, ...]:
    """What is left out, in words; files as from the data set's ``root``.

    Raises:
        DataError: anything is broken, and ``how`` (the recipe's ``data.broken``) is "fail".
    """
    told = [shown(f"{where}: {what}") for where, what, _ in findings.faults]
    if root is not None:
        told = [text.replace(f"{shown(root)}{os.sep}", "") for text in told]
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
    """Corners in pixels of the upright picture."""
    left, top, right, bottom = box.corners
    (x, y), (x2, y2) = (_upright_place(place, one, scanned) for place in ((left, top), (right, bottom)))
    if said_of(one, scanned) == scanned.picture.size:
        return x, y, x2, y2
    return min(x, x2), min(y, y2), max(x, x2), max(y, y2)


def _upright_place(place: tuple[float, float], one: Annotated, scanned: Scan) -> tuple[float, float]:
    """In pixels of the upright picture, of what a file says in shares or pixels of it, upright or as stored."""
    x, y = place
    if one.shares:
        return x * scanned.picture.size[0], y * scanned.picture.size[1]
    if said_of(one, scanned) == scanned.picture.size:
        return place
    wide, high = scanned.stored  # its sides are exchanged (EXIF 5 to 8)
    return {5: (y, x), 6: (high - y, x), 7: (high - y, wide - x), 8: (y, wide - x)}[scanned.orientation]


def _placed(one: Annotated, box: SaidBox, scanned: Scan, objects: Objects, findings: Findings) -> Corners | None:
    """The box within its picture; None with a fault if nothing of it is, or it lacks what is wanted of objects."""
    wide, high = scanned.picture.size
    corners = _in_pixels(one, box, scanned)
    left, top, right, bottom = corners
    fault = fault_of_corners(corners, wide, high) or _fault_of_object(one, box, objects, said_of(one, scanned))
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


def _fault_of_object(one: Annotated, box: SaidBox, objects: Objects, size: Size) -> tuple[str, str] | None:
    if objects == "masks" and (problem := fault_of_shape(_shape(one, box, size), size)):
        return problem, "objects without a whole mask"
    values = box.points
    if objects == "keypoints" and (not values or len(values) % 3 or not all(math.isfinite(v) for v in values)):
        return "has no key points, or they aren't x, y, seen each", "objects without whole key points"
    return None


def _inside(corners: Corners, wide: int, high: int) -> Corners:
    left, top, right, bottom = corners
    return max(left, 0.0), max(top, 0.0), min(right, float(wide)), min(bottom, float(high))


def fault_of_corners(corners: Corners, wide: int, high: int) -> tuple[str, str] | None:
    """What is wrong with a box on a picture, in words and as what it is counted; None if some of it is there."""
    left, top, right, bottom = corners
    if not all(math.isfinite(value) for value in corners):
        return "has a number that is not finite", "boxes with numbers that are not finite"
    if right <= left or bottom <= top:
        return "has no area", "boxes of no area"
    if left >= wide or top >= high or right <= 0 or bottom <= 0:
        return f"lies outside of its picture of {wide}x{high} pixels", "boxes outside of their picture"
    return None
