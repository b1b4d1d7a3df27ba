"""Read boxes, outlines and key points of objects in YOLO's text files.

    ROOT/data.yaml                  names, and where train, val and test are: folders, or lists of pictures
    ROOT/images/train/NAME.jpg      ROOT/labels/train/NAME.txt: lines of "class x y width height"

x and y are the middle's, and all four are shares of the upright picture's width and height. An outline is written as
"class x y x y ...", key points follow the box. A picture without a file of labels shows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy_prune.data.annotated import Annotated, Fault, Findings, Listed, SaidBox
from deploy_prune.data.folders import TEST, TRAIN, VALIDATION, walk
from deploy_prune.data.images import SUFFIXES
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import BoxesPart, Objects
from deploy_prune.system import strict_yaml

MAX_LABELS_BYTES: Final = 2**23
"""Of one picture's labels."""
_PARTS: Final = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}
_FOLDERS: Final = {"train": TRAIN, "test": TEST, "validation": VALIDATION}


@dataclass(frozen=True, kw_only=True)
class _Set:
    """What data.yaml says. ``places``: part -> folders and lists; ``num_points``, ``point_size``: kpt_shape."""

    file: Path | None
    base: Path
    names: tuple[str, ...]
    places: dict[str, list[str]]
    num_points: int = 0
    point_size: int = 3
    mirror: tuple[int, ...] | None = None


def list_boxes(root: Path, part: BoxesPart, findings: Findings) -> Listed:
    """The pictures to train and to score on (of test, if any of these has a box, else of val), and their objects.

    Raises:
        DataError: there is no data.yaml or it is damaged, nor folders images and labels; a folder or list is missing.
    """
    told = _told(root, part)
    listed = {name: _pictures(told, places, findings) for name, places in told.places.items()}
    if "train" not in listed and len(listed) == 1:
        listed = {"train": next(iter(listed.values()))}
    if not listed.get("train"):
        message = f"data.root: {told.file or root} names no pictures to train on (train: ...)."
        raise DataError(message)
    said = {
        name: tuple(_annotated(path, told, part.objects, findings) for path in paths)
        for name, paths in listed.items()
        if name == "train" or any(labels_of(path).is_file() for path in paths)
    }
    scored = next((name for name in ("test", "validation") if name in said), None)
    for name in listed.keys() - {"train", scored}:
        findings.notes["pictures of other parts, which are not read"] += len(listed[name])
    return Listed(
        names=told.names, train=said["train"], test=None if scored is None else said[scored],
        num_points=told.num_points, mirror=told.mirror,
    )  # fmt: skip


def labels_of(image: Path) -> Path:
    """The file of a picture's labels: below labels instead of the last folder images, else beside the picture."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _told(root: Path, part: BoxesPart) -> _Set:
    file = root if root.is_file() else _yaml_in(root)
    if file is None:
        return _without_yaml(root, part)
    told = strict_yaml.read(file, DataError)
    if not isinstance(told, dict):
        message = f"data.root: {file} is no mapping of keys to values, as data.yaml must be."
        raise DataError(message)
    names = tuple(part.classes) if part.classes else _names(told, file)
    places = {name: _listed(told[key]) for name, keys in _PARTS.items() for key in keys if told.get(key)}
    path = told.get("path")
    base = file.parent / str(path) if path else file.parent
    points = told.get("kpt_shape") or [0, 3]
    if not (isinstance(points, list) and len(points) == 2 and all(isinstance(x, int) for x in points)):
        message = f"data.root: {file}: kpt_shape should be [number of points, 2 or 3], not {points!r}."
        raise DataError(message)
    mirror = told.get("flip_idx")
    whole = isinstance(mirror, list) and sorted(map(str, mirror)) == sorted(map(str, range(points[0])))
    return _Set(
        file=file, base=base if base.is_dir() else file.parent, names=names, places=places, num_points=points[0],
        point_size=points[1], mirror=tuple(map(int, mirror)) if isinstance(mirror, list) and whole else None,
    )  # fmt: skip


def _yaml_in(root: Path) -> Path | None:
    found = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    named = [path for path in found if path.stem.lower() in {"data", "dataset"}]
    if len(named or found) > 1:
        message = (
            f"data.root: {root} has {found[0].name} and {found[1].name}; set data.root to the file of the data set."
        )
        raise DataError(message)
    return next(iter(named or found), None)


def _without_yaml(root: Path, part: BoxesPart) -> _Set:
    """Folders images/PART and labels/PART, or PART/images and PART/labels; or images and labels, one set."""
    if not part.classes:
        message = f"data.root: {root} has no data.yaml, which names the classes; write one, or give data.classes."
        raise DataError(message)
    places: dict[str, list[str]] = {}
    for base in (root / "images", root):
        for sub in sorted(base.iterdir()) if base.is_dir() else []:
            name = next((n for n, known in _FOLDERS.items() if sub.name.lower() in known and sub.is_dir()), None)
            if name and name not in places:
                places[name] = [str(sub / "images" if (sub / "images").is_dir() else sub)]
    if not places and (root / "images").is_dir():
        places = {"train": [str(root / "images")]}
    return _Set(file=None, base=root, names=tuple(part.classes), places=places)


def _names(told: dict[str, Any], file: Path) -> tuple[str, ...]:
    """A list, or a mapping of numbers 0, 1, ... to names."""
    names, problem = told.get("names"), None
    if isinstance(names, dict):
        numbers = {str(number): name for number, name in names.items()}
        names = [numbers.get(str(number)) for number in range(len(numbers))]
        problem = "it should have the numbers 0, 1, ... without a gap" if None in names else None
    if not isinstance(names, list) or not names:
        problem = "it should be a list of the classes' names"
    elif told.get("nc") not in {None, len(names)}:
        problem = f"it has {len(names)} names, and nc is {told['nc']}"
    elif len({str(name) for name in names}) < len(names):
        problem = "a name appears twice"
    if problem or names is None:
        message = f"data.root: {file}: names: {problem}."
        raise DataError(message)
    return tuple(map(str, names))


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _pictures(told: _Set, places: Sequence[str], findings: Findings) -> list[Path]:
    """The files of a part, each once.

    Raises:
        DataError: there is no such folder or list.
    """
    found: dict[Path, None] = {}
    for place in places:
        path = _located(told, place)
        if path.is_dir():
            found |= dict.fromkeys(walk(path, findings.notes))
        else:
            found |= dict.fromkeys(_in_list(path))
    findings.notes.pop(".txt files", None)
    return list(found)


def _located(told: _Set, place: str) -> Path:
    """A folder or list: from the data set's folder, or from data.yaml's, also where it leads out of it by mistake."""
    inner = place
    while inner.startswith("../"):
        inner = inner[3:]
    beside = told.file.parent if told.file else told.base
    tried = [told.base / place, beside / place, told.base / inner, beside / inner]
    found = next((path for path in tried if path.is_dir() or path.is_file()), None)
    if found is None:
        message = f"data.root: {told.file} names {place}, and there is no {tried[0]}."
        raise DataError(message)
    return found


def _in_list(path: Path) -> list[Path]:
    """The pictures that a text file names, from its own folder on."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        message = f"data.root: {path} can't be read as a list of pictures: {error}"
        raise DataError(message) from error
    if path.suffix.lower() in SUFFIXES:
        message = f"data.root: {path} is a picture; name a folder or a list of pictures."
        raise DataError(message)
    return [path.parent / line for line in lines if line]


def _annotated(image: Path, told: _Set, objects: Objects, findings: Findings) -> Annotated:
    path = labels_of(image)
    lines = _lines(path, findings)
    boxes = []
    for number, line in lines:
        found = _box(line.split(), told, objects, f"line {number}")
        if isinstance(found, SaidBox):
            boxes.append(found)
        else:
            findings.faults.append(Fault(f"{path}, line {number}", *found))
    return Annotated(image=image, annotation=str(path), boxes=tuple(boxes), shares=True, num_said=len(lines))


def _lines(path: Path, findings: Findings) -> list[tuple[int, str]]:
    """Lines that aren't empty, with their numbers from 1; one that can't be read where the file can't."""
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > MAX_LABELS_BYTES:
            message = f"it has more than {MAX_LABELS_BYTES} bytes"
            raise ValueError(message)
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        return [(1, f"? {error}")]
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _box(words: list[str], told: _Set, objects: Objects, where: str) -> SaidBox | tuple[str, str]:
    """A line's box; or what is wrong with it, in words and as what it is counted."""
    try:
        label, values = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        return f"{' '.join(words)[:60]!r} is no line of numbers", "damaged annotations"
    if not label.is_integer() or not 0 <= label < len(told.names):
        return f"there is no class {words[0]}, only 0 to {len(told.names) - 1}", "boxes of an unknown class"
    points = told.num_points * told.point_size
    if len(values) == 4 + points and (points or objects != "masks"):
        x, y, wide, high = values[:4]
        corners = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
        return SaidBox(int(label), corners, where, None, _points(values[4:], told.point_size) if points else None)
    if len(values) == 4:
        x, y, wide, high = values
        return SaidBox(int(label), (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2), where)
    if len(values) >= 6 and len(values) % 2 == 0:
        across, down = values[::2], values[1::2]
        return SaidBox(int(label), (min(across), min(down), max(across), max(down)), where, [values])
    return f"it has {len(values)} numbers after the class, not 4, or pairs of an outline", "damaged annotations"


def _points(values: Sequence[float], size: int) -> tuple[float, ...]:
    """x, y, seen of each; where that isn't said, those at 0, 0 are not."""
    rows = [values[i : i + size] for i in range(0, len(values), size)]
    return tuple(
        v for row in rows for v in (row[0], row[1], row[2] if size == 3 else 2.0 * (row[0] != 0 or row[1] != 0))
    )
