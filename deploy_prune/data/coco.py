"""Read boxes, masks and key points of objects in COCO's JSON, and masks of pixels.

    ROOT/annotations/instances_train2017.json, instances_val2017.json    ROOT/train2017/*.jpg, val2017/*.jpg
    ROOT/train/_annotations.coco.json, valid/, test/                     with the pictures beside it

What part a file is of is said by its name, else by its folder's. Pictures are looked for beside the file and in folders
of the part's name, also below ROOT/images. ROOT may be a JSON file: one set, which is to be split.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy_prune.data.annotated import Annotated, Corners, Fault, Findings, Listed, SaidBox
from deploy_prune.data.folders import TEST, TRAIN, VALIDATION
from deploy_prune.data.object_masks import VOID
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import BoxesPart, MasksPart

_PARTS: Final = {"train": TRAIN, "test": TEST, "validation": VALIDATION}
_KINDS: Final = ("instances", "person_keypoints", "captions", "stuff", "panoptic", "image_info")
"""What COCO's files of other content begin with."""
_SIDES: Final = re.compile(r"(^|_)(left|right)(?=_|$)")
BACKGROUND: Final = "background"
"""The class of pixels that no object covers."""
Json = dict[str, Any]
HUGE: Final = 1e9
"""Pixels that no picture has."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """One JSON file, read. ``names``: category id -> name; ``points``: names of an object's key points."""

    path: Path
    part: str
    images: list[Any]
    annotations: list[Any]
    names: Mapping[int, str]
    points: tuple[str, ...]


def list_boxes(root: Path, part: BoxesPart, findings: Findings) -> Listed:
    """The pictures to train and to score on (of test, else of validation), and their objects.

    Raises:
        DataError: there is no such file, or several for one part; one is damaged; a part has other classes.
    """
    train, scored = _parts(root, part.objects, findings)
    names = part.classes or list(train.names.values())
    numbers = {name: number for number, name in enumerate(names)}
    folder = _folder(root)
    return Listed(
        names=tuple(names), train=_annotated(train, folder, numbers, findings), num_points=len(train.points),
        test=None if scored is None else _annotated(scored, folder, numbers, findings), mirror=_mirror(train.points),
    )  # fmt: skip


def list_masks(root: Path, part: MasksPart, findings: Findings) -> Listed:
    """The same for masks, with the objects that each one is drawn of. Class 0 is what none of them covers.

    Raises:
        DataError: as `list_boxes`; ``data.values`` is given; there are more classes than a mask can have.
    """
    if part.values is not None:
        message = "data.values: it says what masks in files mean; in COCO's JSON an object's category is its class."
        raise DataError(message)
    train, scored = _parts(root, "masks", findings)
    categories = part.classes or list(train.names.values())
    names = [BACKGROUND, *(name for name in categories if name != BACKGROUND)]
    if len(names) > VOID:
        message = f"data.classes: there are {len(names)} with the background; masks can have {VOID}."
        raise DataError(message)
    numbers = {name: number for number, name in enumerate(names)}
    folder = _folder(root)
    return Listed(
        names=tuple(names), train=_masked(train, folder, numbers, findings),
        test=None if scored is None else _masked(scored, folder, numbers, findings),
    )  # fmt: skip


def _parts(root: Path, objects: str, findings: Findings) -> tuple[_File, _File | None]:
    """What is trained on, and what is scored (test, else validation), if there is such a file.

    Raises:
        DataError: as `list_boxes`.
    """
    files = {name: _read(path, name) for name, path in _files(root, objects).items()}
    if "train" not in files and len(files) == 1:
        files = {"train": next(iter(files.values()))}
    if "train" not in files:
        message = f"data.root: {root} has no JSON of annotations to train on, as annotations/instances_train.json or "
        message += "train/_annotations.coco.json."
        raise DataError(message)
    scored = next((name for name in ("test", "validation") if name in files and files[name].annotations), None)
    for name in files.keys() - {"train", scored}:
        findings.notes["pictures of other parts, which are not read"] += len(files[name].images)
    return files["train"], None if scored is None else files[scored]


def _folder(root: Path) -> Path:
    """Where the pictures' folders are."""
    beside = root.parent.parent if root.parent.name == "annotations" else root.parent
    return root if root.is_dir() else beside


def _files(root: Path, objects: str) -> dict[str, Path]:
    """Part -> its file; a file of no part is "all"."""
    if root.is_file():
        return {"all": root}
    folders = [root, root / "annotations", *(sub for sub in sorted(root.iterdir()) if sub.is_dir() and _part(sub.name))]
    order = [*(["person_keypoints"] if objects == "keypoints" else []), "instances", ""]
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        kind = next((kind for kind in _KINDS if path.stem.startswith(kind)), "")
        if kind in order:
            name = _part(path.stem) or _part(path.parent.name) or "all"
            found.setdefault(name, []).append((order.index(kind), path))
    for of_part in found.values():
        best = sorted(path for rank, path in of_part if rank == min(of_part)[0])
        if len(best) > 1:
            message = f"data.root: there are {best[0]} and {best[1]} for the same part; set data.root to one of them, "
            message += "or take one away."
            raise DataError(message)
    if len(found) > 1:
        found.pop("all", None)
    return {name: min(of_part)[1] for name, of_part in found.items()}


def _part(name: str) -> str | None:
    """The part that a file's or folder's name speaks of."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((part for part, known in _PARTS.items() if words & known), None)


def _read(path: Path, part: str) -> _File:
    """The file's three lists.

    Raises:
        DataError: it can't be read, is damaged or no such file.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8-sig"))
        lists = [told[key] for key in ("images", "annotations", "categories")]
        if not all(isinstance(one, list) for one in lists):
            message = "images, annotations and categories must be lists"
            raise ValueError(message)
        names, points = _categories(lists[2], lists[1])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        cause = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        message = f"data.root: {path} can't be read as COCO's JSON: {cause}."
        raise DataError(message) from error
    return _File(path=path, part=part, images=lists[0], annotations=lists[1], names=names, points=points)


def _categories(listed: list[Any], annotations: list[Any]) -> tuple[dict[int, str], tuple[str, ...]]:
    """Classes' names by their ids, ascending, and the names of an object's key points.

    A heading for others (their supercategory) without boxes of its own is no class: some programs write one.

    Raises:
        ValueError, KeyError, TypeError: it is no such list.
    """
    names = {int(one["id"]): str(one["name"]) for one in sorted(listed, key=lambda one: int(one["id"]))}
    if not names:
        message = "there are no categories"
        raise ValueError(message)
    if len(names) < len(listed) or len({*names.values()}) < len(names):
        message = "an id or a name of categories appears twice"
        raise ValueError(message)
    used = {_hashed(one.get("category_id")) for one in annotations if isinstance(one, dict)}
    above = {str(one.get("supercategory")) for one in listed}
    heads = {number for number, name in names.items() if name in above and number not in used}
    classes = {number: name for number, name in names.items() if number not in heads}
    points = max((tuple(map(str, one.get("keypoints") or ())) for one in listed), key=len, default=())
    return classes or names, points


def _annotated(file: _File, root: Path, numbers: Mapping[str, int], findings: Findings) -> tuple[Annotated, ...]:
    """The file's pictures with their boxes."""
    images = _images(file, findings)
    boxes: dict[Any, list[SaidBox]] = {number: [] for number in images}
    said, crowds, ids = Counter[Any](), set[Any](), set[Any]()
    for place, one in enumerate(file.annotations):
        where = f"annotations[{place}]"
        fault = _fault_of_box(one) or _fault_of(one, images, ids, file) or _fault_of_name(one, file, numbers)
        number = _hashed(one.get("image_id")) if isinstance(one, dict) else None
        if fault is None and one.get("iscrowd"):
            crowds.add(number)
            findings.notes["crowds, which are left out"] += 1
            continue
        said[number] += 1
        if fault is not None:
            findings.faults.append(Fault(f"{file.path}, {where}", *fault))
            continue
        ids.add(_hashed(one.get("id")))
        boxes[number].append(_box(one, numbers[file.names[one["category_id"]]], where, len(file.points)))
    only = {number for number in crowds if not said[number]}
    findings.notes["pictures left out, for they show crowds only"] += len(only)
    places = _Places(file, root)
    return tuple(
        Annotated(
            image=places.of(image["file_name"]), annotation=str(file.path), boxes=tuple(boxes[number]),
            said_size=_size(image), num_said=said[number],
        )
        for number, image in images.items() if number not in only
    )  # fmt: skip


def _masked(file: _File, root: Path, numbers: Mapping[str, int], findings: Findings) -> tuple[Annotated, ...]:
    """The file's pictures with all their objects. Crowds and objects that a fault is named of are VOID."""
    images = _images(file, findings)
    objects: dict[Any, list[SaidBox]] = {number: [] for number in images}
    ids = set[Any]()
    for place, one in enumerate(file.annotations):
        where = f"annotations[{place}]"
        fault = _fault_of(one, images, ids, file) or _fault_of_name(one, file, numbers)
        is_crowd = fault is None and bool(one.get("iscrowd"))
        findings.notes["crowds, whose pixels don't count"] += is_crowd
        if fault is not None:
            what, kind = fault
            findings.faults.append(Fault(f"{file.path}, {where}", what, kind.replace("boxes", "objects")))
            if not isinstance(one, dict) or _hashed(one.get("image_id")) not in images:
                continue
        ids.add(_hashed(one.get("id")))
        label = VOID if fault is not None or is_crowd else numbers[file.names[one["category_id"]]]
        objects[one["image_id"]].append(SaidBox(label, _corners(one), where, one.get("segmentation")))
    places = _Places(file, root)
    return tuple(
        Annotated(
            image=places.of(image["file_name"]), annotation=str(file.path), boxes=tuple(objects[number]),
            said_size=_size(image),
        )
        for number, image in images.items()
    )  # fmt: skip


def _images(file: _File, findings: Findings) -> dict[Any, Json]:
    """The pictures by their ids, each once."""
    found: dict[Any, Json] = {}
    seen: set[str] = set()
    for place, image in enumerate(file.images):
        if problem := _fault_of_image(image, found, seen):
            findings.faults.append(Fault(f"{file.path}, images[{place}]", f"it {problem}", "damaged annotations"))
            continue
        found[image["id"]] = image
        seen.add(image["file_name"])
    return found


def _hashed(value: Any) -> Any:
    """The value, if it can be an id."""
    return value if isinstance(value, int | str) else None


def _fault_of_image(image: Any, images: Mapping[Any, Json], seen: set[str]) -> str | None:
    if not isinstance(image, dict) or _hashed(image.get("id")) is None:
        return "has no id"
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        return "has no file_name"
    if image["id"] in images:
        return f"has the id {image['id']!r} that another one has"
    return f"has the file_name {image['file_name']!r} that another one has" if image["file_name"] in seen else None


def _fault_of_box(one: Any) -> tuple[str, str] | None:
    """What is wrong with an annotation's box, in words and as what it is counted."""
    box = one.get("bbox") if isinstance(one, dict) else None
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(x, int | float) for x in box):
        return "it has no bbox of four numbers", "damaged annotations"
    return None


def _fault_of(one: Any, images: Mapping[Any, Json], ids: set[Any], file: _File) -> tuple[str, str] | None:
    """What is wrong with an annotation beside its box."""
    if not isinstance(one, dict):
        return "it is no annotation", "damaged annotations"
    if _hashed(one.get("image_id")) not in images:
        return f"there is no picture with the id {one.get('image_id')!r}", "boxes of an unknown picture"
    if _hashed(one.get("category_id")) not in file.names:
        return f"there is no class with the id {one.get('category_id')!r}", "boxes of an unknown class"
    if one.get("id") is not None and _hashed(one["id"]) in ids:
        return f"it has the id {one['id']!r} that another one has", "damaged annotations"
    return None


def _fault_of_name(one: Json, file: _File, numbers: Mapping[str, int]) -> tuple[str, str] | None:
    name = file.names[one["category_id"]]
    return None if name in numbers else (f"there is no class {name!r} to train on", "boxes of an unknown class")


def _box(one: Json, label: int, where: str, num_points: int) -> SaidBox:
    left, top, wide, high = (_number(value) for value in one["bbox"])
    told, points = one.get("keypoints"), None
    if isinstance(told, list) and len(told) == 3 * num_points:
        points = tuple(_number(value) for value in told)
    return SaidBox(label, (left, top, left + wide, top + high), where, one.get("segmentation"), points)


def _corners(one: Json) -> Corners:
    """Of an object's box; of one that has no whole box, all of the picture."""
    left, top, wide, high = map(_number, one["bbox"]) if _fault_of_box(one) is None else [math.inf] * 4
    whole = all(map(math.isfinite, (left, top, wide, high))) and wide > 0 and high > 0
    return (left, top, left + wide, top + high) if whole else (0.0, 0.0, math.inf, math.inf)


def _number(value: Any) -> float:
    """Infinite where it is none: such a box is named as broken."""
    return float(value) if isinstance(value, int | float) and abs(value) < HUGE else math.inf


def _size(image: Json) -> tuple[int, int] | None:
    wide, high = image.get("width"), image.get("height")
    return (wide, high) if isinstance(wide, int) and isinstance(high, int) and wide > 0 and high > 0 else None


class _Places:
    """Where a file's pictures lie: the folder where the last one was is tried first."""

    def __init__(self, file: _File, root: Path) -> None:
        bare = next((file.path.stem.removeprefix(f"{kind}_") for kind in _KINDS if file.path.stem.startswith(kind)), "")
        names = [name for name in (bare, file.path.stem, file.part) if name]
        named = [folder / name for name in names for folder in (root, root / "images", file.path.parent)]
        parts = [f for base in (root, root / "images") if base.is_dir() for f in sorted(base.iterdir())]
        of_part = [f for f in parts if f.is_dir() and _part(f.name) == file.part]
        here = file.path.parent
        others = [here, here / "images", here / "data", root / "images", root]
        self.folders = list(dict.fromkeys([*named, *of_part, *(f / "images" for f in of_part), *others]))
        self.last = here

    def of(self, name: str) -> Path:
        """The picture's file; where it should be, if it isn't anywhere."""
        for folder in (self.last, *self.folders):
            if (folder / name).is_file():
                self.last = folder
                return folder / name
        return self.last / name


def _mirror(points: Sequence[str]) -> tuple[int, ...] | None:
    """For each key point, which one it is in a mirror: of names with left and right. None if no name has them."""
    swapped = {"left": "right", "right": "left"}
    names = [_SIDES.sub(lambda m: m[1] + swapped[m[2]], str(name)) for name in points]
    if names == list(points) or not set(names) <= set(points):
        return None
    return tuple(list(points).index(name) for name in names)
