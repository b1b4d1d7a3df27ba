"""The programs of a bundle in C++, Kotlin and Swift: which there are, and what stands in their templates (handover/).

A language has one program for each runtime, and two files that all of them share: one brings a picture to the network's
input, one says what the outputs mean. What is the network's own stands in these as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any, Final

from deploy_prune.bundle.decoding import Field, Level, Plan, plan
from deploy_prune.bundle.meaning import Kind, Meaning
from deploy_prune.device.payload.answers import SURE, VOID

TEMPLATES: Final = Path(__file__).parent / "handover"
SNIPPETS: Final[dict[str, tuple[str, ...]]] = {
    "onnx": ("onnxruntime.cpp", "onnxruntime.kt"),
    "ort": ("onnxruntime.kt", "onnxruntime.cpp"),
    "tensorrt": ("tensorrt.cpp",),
    "litert": ("litert.kt",),
    "executorch": ("executorch.kt", "executorch.swift"),
    "ncnn": ("ncnn.cpp",),
    "coreml": ("coreml.swift",),
    "openvino": ("openvino.cpp",),
    "mnn": ("mnn.cpp",),
}
"""Format -> templates of what a program needs, the most usual first."""
PLACES: Final = {
    ".cpp": ("cpp/main.cpp", "cpp/preprocess.hpp", "cpp/decode.hpp"),
    ".kt": ("kotlin/Network.kt", "kotlin/Preprocess.kt", "kotlin/Decode.kt"),
    ".swift": ("swift/Network.swift", "swift/Preprocess.swift", "swift/Decode.swift"),
}
"""A template's suffix -> where a bundle has it, and the files that it shares with those of other runtimes."""
DECODING: Final[dict[Kind, str]] = {"classes": "classes", "outputs": "classes", "boxes": "boxes", "pixels": "pixels"}
"""What outputs say -> the template that decodes them, without its suffix."""


def places(format: str, kind: Kind) -> dict[str, str]:
    """Template -> where it goes in a bundle, for a format, and outputs that say this."""
    found: dict[str, str] = {}
    for template in SNIPPETS[format]:
        suffix = Path(template).suffix
        shared = ".hpp" if suffix == ".cpp" else suffix
        templates = (template, f"preprocess{shared}", f"{DECODING[kind]}{shared}")
        found |= dict(zip(templates, PLACES[suffix], strict=True))
    return found


def suffixes(format: str) -> list[str]:
    """Of a format's templates."""
    return [Path(template).suffix for template in SNIPPETS[format]]


def filled(template: str, words: Mapping[str, Any]) -> str:
    """A template's text with these words, of which lists are written as its language has them."""
    suffix, found = Path(template).suffix, Template((TEMPLATES / template).read_text(encoding="utf-8"))
    words = {**words, **{f"{name}_upper": word.upper() for name, word in words.items() if isinstance(word, str)}}
    asked = {name: words[name] for name in found.get_identifiers()}
    return found.substitute(
        {n: _listed(word, suffix) if isinstance(word, tuple) else word for n, word in asked.items()}
    )


def decoding_words(meaning: Meaning, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What the templates that decode ask for. ``shapes``: of the outputs for one picture, without the batch."""
    if meaning.kind == "boxes":
        assert meaning.decode is not None
        return _of_boxes(plan(meaning.decode.program, meaning.decode.settings, shapes))
    if meaning.kind == "pixels":
        classes, height, width = shapes[0]
        return {"map_classes": classes, "map_height": height, "map_width": width, "unseen": VOID}
    return {}


def _of_boxes(made: Plan) -> dict[str, Any]:
    words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in vars(made).items()}
    return {**words, "weights": numbers(made.weights), "weights_f": numbers(made.weights, "f"), "sure": SURE}


def numbers(values: Sequence[float], suffix: str = "") -> str:
    """Numbers as they are written in a list, each with a suffix."""
    return ", ".join(f"{value!r}{suffix}" for value in values)


def _listed(values: tuple[Any, ...], suffix: str) -> str:
    """Levels, or boxes, one after the other on lines of their own."""
    return ",\n".join(_level(x, suffix) if isinstance(x, Level) else _box(x, suffix) for x in values)


def _level(level: Level, suffix: str) -> str:
    grid = (level.rows, level.width, level.per_place, level.first, level.step_y, level.step_x)
    fields = [_record("Field", tuple(asdict(x).values()), suffix) for x in _fields(level)]
    return _record("Level", (*grid, f"\n     {', '.join(fields)}"), suffix, "    ")


def _fields(level: Level) -> tuple[Field, ...]:
    return level.scores, level.codes, level.more, level.anchors


def _record(name: str, values: Sequence[Any], suffix: str, indent: str = "") -> str:
    text = ", ".join(map(str, values)).replace(", \n", ",\n")
    return f"{indent}{{{text}}}" if suffix == ".hpp" else f"{indent}{name}({text})"


def _box(box: Any, suffix: str) -> str:
    opened, closed = {".hpp": ("{{", "}}"), ".kt": ("doubleArrayOf(", ")"), ".swift": ("[", "]")}[suffix]
    return f"    {opened}{numbers(box)}{closed}"
