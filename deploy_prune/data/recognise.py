"""Which task and data set a folder or file can be read as, by the names that are in it; nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from deploy_prune.data.mask_folders import IMAGES, MASKS
from deploy_prune.errors import DataError
from deploy_prune.system.shell import shown

DEPTH: Final = 3
"""So many folders deep, what a data set is known by is looked for: archives unpack into folders of their own."""
_PARTS: Final = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


class Reading(NamedTuple):
    """One way to read it: a recipe's task and data.source, data.root, and the kind in words."""

    task: str
    source: str
    root: Path
    words: str


def readings(root: Path) -> tuple[Reading, ...]:
    """Every way to read it, the likeliest first.

    Raises:
        DataError: there is no such folder or file, or nothing in it is known.
    """
    if not root.exists():
        message = f"There is no folder or file {shown(root)} with data."
        raise DataError(message)
    if root.is_file():
        known = {".npz": "npz"}.get(root.suffix.lower())
        if known is None:
            message = f"{shown(root)} is no folder and no .npz, so it can't be read as data."
            raise DataError(message)
        return (Reading("classification", known, root, "arrays of images and classes"),)
    folders = [root, *_below(root)]
    found = [
        Reading(task, source, folder, words)
        for task, source, words, is_such in _KINDS
        if (folder := next(filter(is_such, folders), None)) is not None
    ]
    if not found and _has_classes(root):
        found.append(Reading("classification", "folder", root, "a folder of images for each class"))
    if not found:
        message = f"Nothing in {shown(root)} is known: no folders of classes, no boxes (YOLO, VOC, COCO) and no masks."
        raise DataError(message)
    return tuple(found)


def _below(root: Path) -> list[Path]:
    """Folders below it, those that lie higher first; folders of many files are not looked into."""
    level, found = [root], list[Path]()
    for _ in range(DEPTH - 1):
        level = [child for folder in level for child in sorted(folder.iterdir()) if _is_folder(child)][:256]
        found += level
    return found


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def _names(folder: Path) -> set[str]:
    return {child.name.lower() for child in folder.iterdir() if _is_folder(child)}


def _any(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _is_yolo(folder: Path) -> bool:
    if {"images", "labels"} <= _names(folder):
        return _any(folder, "labels/*.txt", "labels/*/*.txt")
    listed = [*folder.glob("data.yaml"), *folder.glob("data.yml")]
    return bool(listed) and any("names" in file.read_text(encoding="utf-8", errors="replace") for file in listed)


def _has_voc_boxes(folder: Path) -> bool:
    whole = {"annotations", "jpegimages"} <= _names(folder) and _any(folder, "Annotations/*.xml")
    return whole or any(_any(folder, f"{part}/*.xml") for part in _PARTS & _names(folder))


def _has_voc_masks(folder: Path) -> bool:
    return {"segmentationclass", "jpegimages"} <= _names(folder) and _any(folder, "SegmentationClass/*.png")


def _is_coco(folder: Path) -> bool:
    return _any(folder, "annotations/*.json", "*/_annotations.coco.json")


def _has_mask_folders(folder: Path) -> bool:
    parts = [child for child in folder.iterdir() if _is_folder(child) and child.name.lower() in _PARTS]
    return any(IMAGES & _names(each) and _has_png(each) for each in (folder, *parts))


def _has_png(folder: Path) -> bool:
    """Whether a folder of masks in it has pictures: YOLO's and VOC's folders have the same names, and text in them."""
    masks = [child for child in folder.iterdir() if _is_folder(child) and child.name.lower() in MASKS]
    return any(_any(each, "*.png", "*/*.png") for each in masks)


def _has_classes(root: Path) -> bool:
    """Whether folders in it (or in its parts) have images, at least two of them."""
    parts = [child for child in root.iterdir() if _is_folder(child) and child.name.lower() in _PARTS]
    classes = [child for folder in parts or [root] for child in folder.iterdir() if _is_folder(child)]
    return len({child.name for child in classes}) > 1


_KINDS: Final[tuple[tuple[str, str, str, Callable[[Path], bool]], ...]] = (
    ("detection", "yolo", "boxes in YOLO's files", _is_yolo),
    ("detection", "voc", "boxes in VOC's XML", _has_voc_boxes),
    ("detection", "coco", "boxes in COCO's JSON", _is_coco),
    ("segmentation", "voc", "masks in VOC's folders", _has_voc_masks),
    ("segmentation", "folders", "masks beside pictures", _has_mask_folders),
    ("segmentation", "coco", "masks drawn from COCO's outlines", _is_coco),
)
"""Task, source, in words, and what a folder is known by."""
