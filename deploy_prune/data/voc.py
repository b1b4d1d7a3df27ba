"""Read boxes and masks in the layout of PASCAL VOC.

    ROOT/JPEGImages/NAME.jpg   ROOT/Annotations/NAME.xml   ROOT/ImageSets/Main/train.txt, val.txt, test.txt
    ROOT/SegmentationClass/NAME.png                        ROOT/ImageSets/Segmentation/train.txt, ...

ROOT may also be the folder with VOCdevkit in it, or VOCdevkit itself. Corners are the numbers of pixels, from 1, that
belong to the object: a box from 1 to W is as wide as the picture.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from deploy_prune.data.annotated import Annotated, Fault, Findings, Listed, SaidBox
from deploy_prune.data.images import SUFFIXES
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import BoxesPart

MAX_XML_BYTES: Final = 2**23
"""Of one picture's annotation."""
Objects = list[tuple[str, tuple[float, float, float, float], str]]
"""Name, corners as written, and where in the file."""


def list_boxes(root: Path, part: BoxesPart, findings: Findings) -> Listed:
    """The pictures of the lists train and test (else val), and their boxes.

    Raises:
        DataError: it is no such folder, or no picture has an annotation.
    """
    if part.objects != "boxes":
        message = f"data.objects: voc has boxes, and no {part.objects} of objects."
        raise DataError(message)
    root = _year(root)
    train, test = _parts(root, "Main", "Annotations", ".xml", findings)
    read = {name: _read(root, name, findings) for name in (*train, *(test or ()))}
    known = part.classes or sorted({name for one in train for name, *_ in (read[one] or (None, []))[1]})
    if not known:
        message = f"data.root: no object is in the training pictures' annotations in {root / 'Annotations'}."
        raise DataError(message)
    numbers = {name: number for number, name in enumerate(known)}
    parts = [
        tuple(_annotated(root, name, found, numbers, findings) for name in names if (found := read[name]) is not None)
        for names in (train, test or ())
    ]
    return Listed(names=tuple(known), train=parts[0], test=None if test is None else parts[1])


def list_masks(root: Path, findings: Findings) -> Listed:
    """The pictures of the lists train and test (else val), and their masks.

    Raises:
        DataError: it is no such folder.
    """
    root = _year(root)
    train, test = _parts(root, "Segmentation", "SegmentationClass", ".png", findings)
    parts = [tuple(_masked(root, name) for name in part) for part in (train, test or ())]
    return Listed(names=None, train=parts[0], test=None if test is None else parts[1])


def _year(root: Path) -> Path:
    """The folder with JPEGImages."""
    below = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    found = [folder for folder in below if (folder / "JPEGImages").is_dir()]
    if len(found) == 1 or (found and found[0] == root):
        return found[0]
    message = f"data.root: {root} has no folder JPEGImages, as PASCAL VOC's layout has."
    if found:
        message = f"data.root: {root} has several data sets, {found[0].name} and {found[1].name}; name one of them."
    raise DataError(message)


def _parts(root: Path, kind: str, folder: str, suffix: str, findings: Findings) -> tuple[list[str], list[str] | None]:
    """The names of the pictures to train and to score on; without lists, all that have an annotation are one set."""
    lists = {p: _names(root / "ImageSets" / kind / f"{p}.txt") for p in ("train", "trainval", "test", "val")}
    there = {path.stem for path in (root / folder).glob(f"*{suffix}")}
    if not there:
        message = f"data.root: {root} has no files {folder}/NAME{suffix}."
        raise DataError(message)
    scored = next((p for p in ("test", "val") if there.intersection(lists[p] or ())), None)
    if lists["train"] is None and scored == "val" and lists["trainval"] is not None:
        lists["train"] = [name for name in lists["trainval"] if name not in set(lists["val"] or ())]
    train = lists["train"] or lists["trainval"]
    if train is None:
        return sorted(there), None
    test = None if scored is None else lists[scored]
    left = set().union(*(names for names in lists.values() if names)) - {*train, *(test or ())}
    if left:
        findings.notes["pictures of lists that are not read, for train and test are"] += len(left)
    return train, test


def _names(path: Path) -> list[str] | None:
    """A list's pictures, each once; None where there is no list, or nothing in it."""
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        message = f"data.root: {path} can't be read: {error}"
        raise DataError(message) from error
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip())) or None


def _read(root: Path, name: str, findings: Findings) -> tuple[tuple[int, int] | None, Objects] | None:
    """The picture's size as it is said, and its objects; None with a fault where the file is missing or damaged."""
    path = root / "Annotations" / f"{name}.xml"
    if not path.is_file():
        findings.faults.append(Fault(str(path), "there is no annotation of this picture", "missing annotations"))
        return None
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            message = f"it has more than {MAX_XML_BYTES} bytes"
            raise ValueError(message)
        tree = ElementTree.fromstring(path.read_bytes())
        size = _size(tree.find("size"))
        objects = [_object(node, f"object {number}") for number, node in enumerate(tree.findall("object"), 1)]
    except (ElementTree.ParseError, ValueError, OSError) as error:
        findings.faults.append(Fault(str(path), f"it can't be read: {error}", "damaged annotations"))
        return None
    return size, objects


def _size(node: ElementTree.Element | None) -> tuple[int, int] | None:
    """Width and height; None where they aren't said, or as 0 (which some programs write)."""
    wide, high = (int(float(node.findtext(key) or 0)) if node is not None else 0 for key in ("width", "height"))
    return (wide, high) if wide > 0 and high > 0 else None


def _object(node: ElementTree.Element, where: str) -> tuple[str, tuple[float, float, float, float], str]:
    name, box = (node.findtext("name") or "").strip(), node.find("bndbox")
    if not name or box is None:
        message = f"{where} has no name or no bndbox"
        raise ValueError(message)
    values = [_number(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")]
    return name, (values[0], values[1], values[2], values[3]), where


def _number(text: str | None) -> float:
    """Not finite where it is no number: such a box is named as broken."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _annotated(
    root: Path, name: str, read: tuple[tuple[int, int] | None, Objects], numbers: dict[str, int], findings: Findings
) -> Annotated:
    path, boxes = root / "Annotations" / f"{name}.xml", []
    for title, (left, top, right, bottom), where in read[1]:
        if title not in numbers:
            fault = Fault(f"{path}, {where}", f"there is no class {title!r} to train on", "boxes of an unknown class")
            findings.faults.append(fault)
            continue
        is_flat = right <= left or bottom <= top  # as written: such a box isn't one pixel's
        corners = (left, top, right, bottom) if is_flat else (left - 1, top - 1, right, bottom)
        boxes.append(SaidBox(numbers[title], corners, where))
    return Annotated(
        image=_image(root, name), annotation=str(path), boxes=tuple(boxes), said_size=read[0],
        num_said=len(read[1]),
    )  # fmt: skip


def _masked(root: Path, name: str) -> Annotated:
    mask = root / "SegmentationClass" / f"{name}.png"
    return Annotated(image=_image(root, name), annotation=str(mask), mask=mask)


def _image(root: Path, name: str) -> Path:
    """The picture's file, whatever its suffix."""
    plain = root / "JPEGImages" / f"{name}.jpg"
    if plain.is_file():
        return plain
    folder = root / "JPEGImages"
    others = (folder / f"{name}{suffix}" for suffix in sorted(SUFFIXES))
    upper = (folder / f"{name}{suffix.upper()}" for suffix in sorted(SUFFIXES))
    return next((path for path in (*others, *upper) if path.is_file()), plain)
