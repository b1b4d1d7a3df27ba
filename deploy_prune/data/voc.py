"""Read boxes and masks in the layout of PASCAL VOC.

    ROOT/JPEGImages/NAME.jpg   ROOT/Annotations/NAME.xml   ROOT/ImageSets/Main/train.txt, val.txt, test.txt
    ROOT/SegmentationClass/NAME.png                        ROOT/ImageSets/Segmentation/train.txt, ...
    ROOT/train/NAME.jpg        ROOT/train/NAME.xml         and the same in valid and test

ROOT may also be the folder with VOCdevkit in it, or VOCdevkit itself; JPEGImages may be called images. Corners are the
numbers of pixels, from 1, that belong to the object: a box from 1 to W is as wide as the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree

from deploy_prune.data.annotated import Annotated, Corners, Fault, Findings, Listed, SaidBox
from deploy_prune.data.folders import TEST, TRAIN, VALIDATION, is_clutter
from deploy_prune.data.images import SUFFIXES
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import BoxesPart

MAX_XML_BYTES: Final = 2**23
"""Of one picture's annotation."""
_IMAGES: Final = ("JPEGImages", "images")
_BOXES: Final = ("Annotations", "annotations")
_MASKS: Final = ("SegmentationClass",)
_PARTS: Final = {"train": TRAIN, "test": TEST, "val": VALIDATION}
Pair = tuple[Path, Path]
"""A picture, and its annotation or mask."""


class _Object(NamedTuple):
    """``where``: its place in the file; ``corners``: as written."""

    where: str
    name: str
    corners: Corners


class _Told(NamedTuple):
    """A picture and what its annotation says: its size, if it does, and its objects."""

    image: Path
    path: Path
    size: tuple[int, int] | None
    objects: list[_Object]


def list_boxes(root: Path, part: BoxesPart, findings: Findings) -> Listed:
    """The pictures to train and to score on (of test, else of val), and their boxes.

    Raises:
        DataError: it is no such folder, or no picture has an annotation.
    """
    if part.objects != "boxes":
        message = f"data.objects: voc has boxes, and no {part.objects} of objects."
        raise DataError(message)
    pairs = _scored(_in_parts(root) or _in_lists(_year(root), "Main", _BOXES, ".xml"), findings)
    train, test = ([_read(*pair, findings) for pair in of_part] for of_part in (pairs[0], pairs[1] or ()))
    names = part.classes or sorted({one.name for told in train for one in told.objects if one.name})
    if not names:
        message = f"data.root: no object is in the training pictures' annotations in {root}."
        raise DataError(message)
    numbers = {name: number for number, name in enumerate(names)}
    parts = [
        tuple(_annotated(told, numbers, findings) for told in read if told is not _UNREAD) for read in (train, test)
    ]
    return Listed(names=tuple(names), train=parts[0], test=None if pairs[1] is None else parts[1])


def list_masks(root: Path, findings: Findings) -> Listed:
    """The pictures to train and to score on (of test, else of val), and their masks.

    Raises:
        DataError: it is no such folder.
    """
    train, test = _scored(_in_lists(_year(root), "Segmentation", _MASKS, ".png"), findings)
    parts = [
        tuple(Annotated(image=image, annotation=str(mask), mask=mask) for image, mask in pairs)
        for pairs in (train, test or ())
    ]
    return Listed(names=None, train=parts[0], test=None if test is None else parts[1])


def _year(root: Path) -> Path:
    """The folder with the pictures' folder in it."""
    below = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    found = [folder for folder in below if any((folder / name).is_dir() for name in _IMAGES)]
    if len(found) == 1 or (found and found[0] == root):
        return found[0]
    message = f"data.root: {root} has no folder JPEGImages, as PASCAL VOC's layout has."
    if found:
        message = f"data.root: {root} has several data sets, {found[0].name} and {found[1].name}; name one of them."
    raise DataError(message)


def _in_parts(root: Path) -> dict[str, list[Pair]] | None:
    """Pictures with their annotations beside them, in folders of parts; None if there is none."""
    found: dict[str, list[Pair]] = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        name = next((part for part, names in _PARTS.items() if folder.name.lower() in names), None)
        if name is not None and folder.is_dir() and any(folder.glob("*.xml")):
            found[name] = [
                (_image(folder, stem), folder / f"{stem}.xml") for stem in _stems(folder, {".xml"} | SUFFIXES)
            ]
    return found or None


def _in_lists(root: Path, kind: str, folders: tuple[str, ...], suffix: str) -> dict[str, list[Pair]]:
    """Pictures and annotations of the lists; without lists, all there are, as "train"."""
    images = next(root / name for name in _IMAGES if (root / name).is_dir())
    folder = next((root / name for name in folders if (root / name).is_dir()), root / folders[0])
    there = _stems(folder, {suffix})
    if not there:
        message = f"data.root: {root} has no files {folder.name}/NAME{suffix}."
        raise DataError(message)
    lists = {p: _names(root / "ImageSets" / kind / f"{p}.txt") for p in ("train", "trainval", "test", "val")}
    found = {part: names for part, names in lists.items() if names}
    if "test" in found and not set(found["test"]) & set(there):
        del found["test"]  # whose annotations aren't published
    both = found.pop("trainval", None)
    if "train" not in found and both:
        found["train"] = [name for name in both if name not in found.get("val", ())] or both
    if not found:
        found["train"] = there if kind == "Segmentation" else sorted({*there, *_stems(images, SUFFIXES)})
    return {p: [(_image(images, name), folder / f"{name}{suffix}") for name in names] for p, names in found.items()}


def _scored(pairs: dict[str, list[Pair]], findings: Findings) -> tuple[list[Pair], list[Pair] | None]:
    """Those to train on and to score on. A single part is one set."""
    if "train" not in pairs:
        name = next(iter(pairs))
        if len(pairs) > 1:
            message = f"data.root: there are pictures to score on ({', '.join(pairs)}), and none to train on (train)."
            raise DataError(message)
        return pairs[name], None
    scored = next((part for part in ("test", "val") if part in pairs), None)
    used = {image for part in ("train", scored) if part for image, _ in pairs[part]}
    left = {image for of_part in pairs.values() for image, _ in of_part} - used
    findings.notes["pictures of other parts, which are not read"] += len(left)
    return pairs["train"], None if scored is None else pairs[scored]


def _stems(folder: Path, suffixes: set[str] | frozenset[str]) -> list[str]:
    """The names of a folder's files of these kinds, without suffix, each once."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted({path.stem for path in paths if path.suffix.lower() in suffixes and not is_clutter(path.name)})


def _names(path: Path) -> list[str]:
    """A list's pictures, each once; none where there is no list."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        message = f"data.root: {path} can't be read: {error}"
        raise DataError(message) from error
    words = [line.split()[0] for line in lines if line.strip()]
    return list(dict.fromkeys(Path(word).stem if Path(word).suffix.lower() in SUFFIXES else word for word in words))


def _image(folder: Path, name: str) -> Path:
    """The picture's file, whatever its suffix."""
    suffixes = (".jpg", *sorted(SUFFIXES))
    paths = (folder / f"{name}{case}" for suffix in suffixes for case in (suffix, suffix.upper()))
    return next((path for path in paths if path.is_file()), folder / f"{name}.jpg")


_UNREAD: Final = _Told(Path(), Path(), None, [])


def _read(image: Path, path: Path, findings: Findings) -> _Told:
    """What an annotation says; _UNREAD with a fault where the file is missing or damaged."""
    if not path.is_file():
        findings.faults.append(Fault(str(path), "there is no annotation of this picture", "missing annotations"))
        return _UNREAD
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            message = f"it has more than {MAX_XML_BYTES} bytes"
            raise ValueError(message)
        tree = ElementTree.fromstring(path.read_bytes())
        size = _size(tree.find("size"))
    except (ElementTree.ParseError, ValueError, OSError) as error:
        findings.faults.append(Fault(str(path), f"it can't be read: {error}", "damaged annotations"))
        return _UNREAD
    objects = [_object(node, f"object {number}") for number, node in enumerate(tree.findall("object"), 1)]
    return _Told(image, path, size, objects)


def _size(node: ElementTree.Element | None) -> tuple[int, int] | None:
    """Width and height; None where they aren't said, or as 0 (which some programs write)."""
    wide, high = (_number(None if node is None else node.findtext(key) or "0") for key in ("width", "height"))
    return (int(wide), int(high)) if 0 < wide < math.inf and 0 < high < math.inf else None


def _object(node: ElementTree.Element, where: str) -> _Object:
    box = node.find("bndbox")
    left, top, right, bottom = (
        _number(None if box is None else box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    return _Object(where, (node.findtext("name") or "").strip(), (left, top, right, bottom))


def _number(text: str | None) -> float:
    """Not finite where it is no number: such a box is named as broken."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _annotated(told: _Told, numbers: Mapping[str, int], findings: Findings) -> Annotated:
    boxes = []
    for one in told.objects:
        if one.name not in numbers:
            fault = Fault(
                f"{told.path}, {one.where}", f"there is no class {one.name!r} to train on", "boxes of an unknown class"
            )
            findings.faults.append(fault)
            continue
        left, top, right, bottom = one.corners
        is_flat = right <= left or bottom <= top  # as written: such a box isn't one pixel's
        boxes.append(
            SaidBox(numbers[one.name], one.corners if is_flat else (left - 1, top - 1, right, bottom), one.where)
        )
    return Annotated(
        image=told.image, annotation=str(told.path), boxes=tuple(boxes), said_size=told.size,
        num_said=len(told.objects),
    )  # fmt: skip
