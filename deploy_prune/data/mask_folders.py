"""List folders of pictures and folders of their masks.

    ROOT/train/images/**.jpg    ROOT/train/masks/**.png      and the same in val or test
    ROOT/images/train/**.jpg    ROOT/masks/train/**.png      and the same in val or test
    ROOT/images/**.jpg          ROOT/masks/**.png            one set, which is to be split

Names count in any case, `annotations` and `labels` as `masks`, and parts as in `data.folders`. A mask has its picture's
name, or that with an ending such as _mask.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from deploy_prune.data.annotated import Annotated, Fault, Findings, Listed
from deploy_prune.data.folders import TEST, TRAIN, VALIDATION, is_clutter, shown, walk
from deploy_prune.errors import DataError

IMAGES: Final = frozenset({"images", "image", "imgs", "img", "jpegimages", "pictures", "leftimg8bit"})
MASKS: Final = frozenset({"masks", "mask", "labels", "label", "annotations", "segmentationclass", "gt", "gtfine"})
ENDINGS: Final = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_l", "_gtfine_labeltrainids")
"""Of masks' names."""
_IMAGE_ENDINGS: Final = ("_leftimg8bit",)
_PARTS: Final = (("train", TRAIN), ("test", TEST), ("validation", VALIDATION))
Folders = tuple[Path, Path]


def list_masks(root: Path, findings: Findings) -> Listed:
    """The pictures to train and to score on (of test, else of validation), and their masks.

    Raises:
        DataError: it has no such folders, or two for the same part.
    """
    parts = _parts(root)
    if "train" not in parts:
        message = f"data.root: {shown(root)} has no folders of pictures (images) and of masks (masks), directly or "
        message += "below train and val or test."
        raise DataError(message)
    listed = {name: _pairs(folders, findings) for name, folders in parts.items()}
    scored = next((name for name in ("test", "validation") if listed.get(name)), None)
    for name in listed.keys() - {"train", scored}:
        findings.notes["pictures of other parts, which are not read"] += len(listed[name])
    return Listed(names=None, train=listed["train"], test=None if scored is None else listed[scored])


def _parts(root: Path) -> dict[str, Folders]:
    """The folders of pictures and of masks of each part; one set alone is called "train"."""
    found = {}
    for name, words in _PARTS:
        part = _one(root, words)
        if part is not None and (both := _both(part)):
            found[name] = both
    both = _both(root)
    if found or both is None:
        return found
    for name, words in _PARTS:
        images, masks = (_one(folder, words) for folder in both)
        if images is not None and masks is not None:
            found[name] = (images, masks)
    return found or {"train": both}


def _both(folder: Path) -> Folders | None:
    images, masks = _one(folder, IMAGES), _one(folder, MASKS)
    return None if images is None or masks is None else (images, masks)


def _one(folder: Path, words: frozenset[str]) -> Path | None:
    """The folder in this one that has one of these names."""
    found = sorted(sub for sub in folder.iterdir() if _folded(sub.name) in words and sub.is_dir())
    if len(found) > 1:
        message = f"data.root: {shown(folder)} has two folders for the same, {shown(found[0].name)} and "
        message += f"{shown(found[1].name)}; keep one."
        raise DataError(message)
    return found[0] if found else None


def _folded(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _pairs(folders: Folders, findings: Findings) -> tuple[Annotated, ...]:
    """Every picture with its mask."""
    images, masks = folders
    ignored: Counter[str] = Counter()
    mask_of = _by_key(masks, ENDINGS, ignored)
    found = []
    for key, image in _by_key(images, _IMAGE_ENDINGS, ignored).items():
        mask = mask_of.pop(key, None)
        if mask is None:
            findings.faults.append(Fault(str(image), f"there is no mask of it in {masks}", "missing masks"))
        else:
            found.append(Annotated(image=image, annotation=str(mask), mask=mask))
    findings.notes["masks without a picture"] += len(mask_of)
    findings.notes.update(ignored)
    return tuple(found)


def _by_key(folder: Path, endings: tuple[str, ...], ignored: Counter[str]) -> dict[str, Path]:
    """Files by their path below the folder, without suffix and ending."""
    found: dict[str, Path] = {}
    for path in walk(folder, ignored):
        if is_clutter(path.name):
            continue
        key = path.relative_to(folder).with_suffix("").as_posix()
        ending = max((e for e in endings if key.lower().endswith(e) and len(path.stem) > len(e)), key=len, default="")
        key = key[: len(key) - len(ending)]
        if key in found:
            message = f"data.root: {shown(found[key])} and {shown(path)} have the same name but for their endings; "
            message += "keep one."
            raise DataError(message)
        found[key] = path
    return found
