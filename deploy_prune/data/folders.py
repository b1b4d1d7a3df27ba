"""List a folder's images and their classes. No image is opened, and every file that is left out is reported.

    ROOT/train/CLASS/**.jpg  ROOT/test/CLASS/**.jpg     training, and what is scored
    ROOT/CLASS/**.jpg                                   without a training folder: one set, to be split

Names of the parts count in any case (`Train`, `VALID`). Where there are both a test and a validation folder, the test
folder is scored, if it has folders of classes. Images lie at any depth below their class. Hidden files and folders, and
what systems leave behind (`__MACOSX`, `Thumbs.db`), are no images.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy_prune.data.images import SUFFIXES
from deploy_prune.errors import DataError

TRAIN: Final = frozenset({"train", "training", "trainset", "train_set", "training_set"})
TEST: Final = frozenset({"test", "testing", "testset", "test_set"})
VALIDATION: Final = frozenset(
    {"val", "valid", "validation", "valset", "val_set", "valid_set", "validation_set", "dev", "eval", "evaluation"}
)
_CLUTTER: Final = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"})

Images = tuple[tuple[Path, int], ...]
"""Files, class by class, each with its class's number."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a folder. ``test`` is None where there is none but the one set.

    ``ignored``: how many files are not read, by what they are.
    """

    classes: tuple[str, ...]
    train: Images
    test: Images | None
    ignored: Mapping[str, int]


def find(root: Path) -> Listing:
    """The images below a folder.

    Raises:
        DataError: fewer than 2 classes, a class without images, a class to score that isn't trained, two folders for
            the same part or class, the same folder for both parts, or a folder that can't be read.
    """
    ignored: Counter[str] = Counter()
    try:
        return _find(root, ignored)
    except OSError as error:
        message = f"data.root: {shown(error.filename or root)} can't be read: {error.strerror or error}."
        raise DataError(message) from error


def shown(path: Path | str | bytes) -> str:
    """A path as text that can be written anywhere: bytes that are no UTF-8 as their numbers."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _find(root: Path, ignored: Counter[str]) -> Listing:
    parts = _parts(root)
    if "train" not in parts:
        return _one_set(root, parts, ignored)
    train = parts["train"]
    classes = _classes(train)
    found = _images(train, classes, ignored)
    _require_all(train, classes, found)
    scored, others = _scored(parts)
    if scored is not None and scored.samefile(train):
        message = f"data.root: {shown(train)} and {shown(scored)} are the same folder; score on other images."
        raise DataError(message)
    test = None if scored is None else _test_images(scored, classes, ignored)
    for folder, why in others:
        ignored[f"in {shown(folder.name)}/, {why}"] += _count(folder)
    _count_beside(root, {*parts.values()}, ignored)
    return Listing(classes=classes, train=found, test=test, ignored=dict(+ignored))


def _parts(root: Path) -> dict[str, Path]:
    """The folders for training, testing and validation that there are."""
    found: dict[str, Path] = {}
    for folder in _folders(root):
        for part, names in (("train", TRAIN), ("test", TEST), ("validation", VALIDATION)):
            if folder.name.lower().replace("-", "_").replace(" ", "_") not in names:
                continue
            if part in found:
                message = f"data.root: {shown(root)} has two folders for the same part, {shown(found[part].name)} and "
                message += f"{shown(folder.name)}; keep one."
                raise DataError(message)
            found[part] = folder
    return found


def _one_set(root: Path, parts: Mapping[str, Path], ignored: Counter[str]) -> Listing:
    """ROOT/CLASS/**.jpg."""
    if parts:
        name = shown(next(iter(parts.values())).name)
        message = f"data.root: {shown(root)} has a folder {name}, which would be scored, and none for training; call "
        message += f"that one train, or give {name} another name if it is a class."
        raise DataError(message)
    for folder in _folders(root):
        if "train" in (below := _parts(folder)):
            message = f"data.root: {shown(folder)} has a folder {shown(below['train'].name)}; set data.root to the "
            message += "folder that has train, with the folders of the classes in it."
            raise DataError(message)
    classes = _classes(root)
    found = _images(root, classes, ignored)
    _require_all(root, classes, found)
    return Listing(classes=classes, train=found, test=None, ignored=dict(+ignored))


def _scored(parts: Mapping[str, Path]) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The folder that is scored, if there is one, and the others, with the reason why not."""
    found = [parts[part] for part in ("test", "validation") if part in parts]
    sorted_ = [folder for folder in found if any(_has_images(sub) for sub in _folders(folder))]
    scored = sorted_[0] if sorted_ else None
    others = []
    for folder in found:
        if folder not in sorted_:
            others.append((folder, "which has no folders of classes with images"))
        elif folder is not scored and scored is not None:
            others.append((folder, f"for {shown(scored.name)}/ is what is scored"))
    return scored, others


def _classes(folder: Path) -> tuple[str, ...]:
    """The names of its folders in alphabetical order.

    Raises:
        DataError: there are fewer than 2, or a name that is no UTF-8, or two that differ by case only.
    """
    names = sorted(sub.name for sub in _folders(folder))
    alike: dict[str, str] = {}
    for name in names:
        if shown(name) != name:
            message = f"data.root: the name of the folder {shown(folder / name)} is no UTF-8; rename it."
            raise DataError(message)
        if _folded(name) in alike:
            message = f"data.root: {shown(folder)} has the classes {alike[_folded(name)]!r} and {name!r}, which differ "
            message += "by case or Unicode form only; rename one, or put them together."
            raise DataError(message)
        alike[_folded(name)] = name
    problem = None
    if not names or (len(names) == 1 and not _has_images(folder / names[0])):
        problem = f"has no images ({', '.join(sorted(SUFFIXES))}) in folders of classes; "
        problem += "put a folder for each class into it, or into its folder train"
    elif len(names) < 2:
        problem = f"has one class only, {names[0]!r}; a task needs at least 2"
    if problem:
        message = f"data.root: {shown(folder)} {problem}."
        raise DataError(message)
    return tuple(names)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _images(folder: Path, classes: tuple[str, ...], ignored: Counter[str]) -> Images:
    """The images of these classes, class by class, by name; what lies beside the classes is counted."""
    folders = {name: folder / name for name in classes if (folder / name).is_dir()}
    _count_beside(folder, set(folders.values()), ignored)
    return tuple((path, classes.index(name)) for name, sub in folders.items() for path in walk(sub, ignored))


def _require_all(folder: Path, classes: tuple[str, ...], found: Images) -> None:
    """Every class has images to train on."""
    without = sorted(set(range(len(classes))) - {number for _, number in found})
    if without:
        name = classes[without[0]]
        files = Counter[str]()
        list(walk(folder / name, files))
        message = f"data.root: {shown(folder)} has no images ({', '.join(sorted(SUFFIXES))}) of the class {name!r}"
        message += f", only {listed(files)}" if files else ""
        message += "; add some, or remove its folder."
        raise DataError(message)


def _test_images(folder: Path, classes: tuple[str, ...], ignored: Counter[str]) -> Images:
    for sub in _folders(folder):
        if sub.name not in classes and _has_images(sub):
            near = [name for name in classes if _folded(name) == _folded(sub.name)]
            message = f"data.root: {shown(folder)} has a class {shown(sub.name)!r} that the training folder has not"
            message += f" (it has {near[0]!r})." if near else "."
            raise DataError(message)
    return _images(folder, classes, ignored)


def _folders(folder: Path) -> list[Path]:
    """Its folders by name, without the hidden."""
    return sorted(sub for sub in folder.iterdir() if not is_clutter(sub.name) and sub.is_dir())


def is_clutter(name: str) -> bool:
    """Hidden, or left behind by a system: no one put it there as an image."""
    return name.startswith((".", "~$")) or name.lower() in _CLUTTER


def _has_images(folder: Path) -> bool:
    return next(walk(folder, Counter()), None) is not None


def walk(folder: Path, ignored: Counter[str]) -> Iterator[Path]:
    """All images below a folder by path, links followed; a folder that links lead to again is read once."""
    todo, seen = [folder], set[tuple[int, int]]()
    while todo:
        here = todo.pop()
        about = here.stat()
        if (about.st_dev, about.st_ino) in seen:
            ignored["links to a folder that is read already"] += 1
            continue
        seen.add((about.st_dev, about.st_ino))
        below = []
        for path in sorted(here.iterdir()):
            kind = _kind(path)
            if kind == "folder":
                below.append(path)
            elif kind is None:
                yield path
            else:
                ignored[kind] += _count(path)
        todo += reversed(below)


def _kind(path: Path) -> str | None:
    """Why a path is no image by its name and type; "folder" for one to look into, None for an image."""
    if is_clutter(path.name):
        return "hidden"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "links to nothing"
    except OSError:  # links in a circle
        return "links in a circle"
    if stat.S_ISDIR(mode):
        # A folder called like an image is one that something went wrong with: reading it says so.
        return None if path.suffix.lower() in SUFFIXES else "folder"
    if not stat.S_ISREG(mode):
        return "no regular file"
    suffix = path.suffix.lower()
    return None if suffix in SUFFIXES else f"{shown(suffix)} files" if suffix else "files without a suffix"


def _count(path: Path) -> int:
    """1 for a file; for a folder all files below, links not followed."""
    return sum(len(files) for _, _, files in os.walk(path)) if path.is_dir() else 1


def _count_beside(folder: Path, known: set[Path], ignored: Counter[str]) -> None:
    """Add what lies in a folder beside those that are read."""
    seen = [path.stat() for path in known]
    for path in sorted(folder.iterdir()):
        if path not in known and not (path.is_dir() and any(os.path.samestat(path.stat(), about) for about in seen)):
            kind = _kind(path) or "images outside the folders of classes"
            ignored[f"in {shown(path.name)}/" if kind == "folder" else kind] += _count(path)


def listed(ignored: Mapping[str, int]) -> str:
    """In words: "3 hidden, 12 .heic files"."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
