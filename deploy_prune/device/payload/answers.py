"""What a network's outputs say: scores by name, boxes, or a class for each pixel; and whether two say the same.

postprocessing.json tells which, by its ``kind``:

    classes   scores, in the order of labels.json
    boxes     what ``program`` makes of the outputs with its ``settings``: a dictionary a picture, with boxes float32
              [N, 4] (left, top, right, bottom in pixels of the input), scores float32 [N] and labels int64 [N]
    pixels    likewise, with classes uint8 [H, W], of the input's size
    outputs   nothing that is known here

B batch, N boxes of a picture, H W height and width of the network's input. Needs numpy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

HERE = Path(__file__).resolve().parent
PROGRAMS = ("decode_detr", "decode_grid", "decode_pixels", "decode_rcnn", "decode_retina", "decode_ssd", "decode_yolo")
"""Those that a bundle may name: files beside this one."""
BEST = 3
SURE = 0.3
"""Boxes with this score are shown and compared; of a network that is never so sure, those above half of its best."""
SHOWN_SHARE = 0.005
VOID = 255
"""A pixel of the picture that the input doesn't show."""
ALLOWED = {
    "fp32": {"overlap": 0.9, "score": 0.02, "missed": 0.02, "pixels": 0.002},
    "fp16": {"overlap": 0.8, "score": 0.05, "missed": 0.1, "pixels": 0.02},
    "int8": {"overlap": 0.5, "score": 0.25, "missed": 0.15, "pixels": 0.05},
}
"""Precision -> what an artifact's answers may have. Of boxes of one class: the least overlap (intersection over union),
the largest difference of scores, and the share that has no such partner; of pixels: the share with another class. In
int8 the shares come on top of what the network itself loses with 8 bits."""
SAME = {"overlap": 0.99, "score": 1e-3, "missed": 0.0, "pixels": 1e-4}
"""The same for the same outputs, decoded again: machines differ in the last bits of exponentials."""

Answer = dict[str, numpy.ndarray]


def decode(post: Mapping[str, Any], outputs: Sequence[numpy.ndarray], size: Sequence[int]) -> list[Answer]:
    """Boxes or classes of pixels, a dictionary a picture, of outputs [B, ...] for inputs of ``size`` [H, W].

    Raises:
        ValueError: postprocessing.json names no program that there is, or settings for inputs of another size.
    """
    program, settings = post["program"], post["settings"]
    if program not in PROGRAMS:
        message = f"postprocessing.json names the program {str(program)[:50]!r}; known: {', '.join(PROGRAMS)}"
        raise ValueError(message)
    if list(settings["size"]) != list(size):
        message = f"postprocessing.json is for inputs of {settings['size']} pixels; the network's have {list(size)}"
        raise ValueError(message)
    found: list[Answer] = beside(program).decode([numpy.asarray(y) for y in outputs], settings)
    return found


def best(scores: numpy.ndarray, labels: Sequence[str]) -> str:
    """The names of the highest outputs, the highest first; what else is computed as its shape."""
    if scores.shape != (len(labels),):
        return f"an output of shape {list(scores.shape)}"
    order = scores.argsort()[::-1][:BEST]
    return ", ".join(f"{labels[i]} ({scores[i]:.4g})" for i in order)


def box_lines(answer: Answer, labels: Sequence[str]) -> list[str]:
    """A line for each box that is sure enough: name, score, left, top, right, bottom."""
    lines = []
    for box, score, label in zip(answer["boxes"], answer["scores"], answer["labels"], strict=True):
        if score >= SURE:
            lines.append(f"{labels[label]} {score:.3f} {' '.join(f'{edge:.1f}' for edge in box)}")
    return lines


def pixel_shares(classes: numpy.ndarray, labels: Sequence[str]) -> str:
    """How much of a picture each class has, the largest first."""
    counts = numpy.bincount(classes.reshape(-1), minlength=VOID + 1)[: len(labels)] / classes.size
    order = [i for i in counts.argsort(kind="stable")[::-1] if counts[i] >= SHOWN_SHARE]
    return ", ".join(f"{labels[i]} {counts[i]:.0%}" for i in order) or "no class"


def as_json(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Boxes for a JSON file: pixels to 4 places, scores to 6."""
    return [
        {
            "boxes": [[round(float(edge), 4) for edge in box] for box in one["boxes"]],
            "scores": [round(float(score), 6) for score in one["scores"]],
            "labels": one["labels"].tolist(),
        }
        for one in answers
    ]


def from_json(told: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """What `as_json` has made."""
    return [
        {
            "boxes": numpy.array(one["boxes"], "float32").reshape(-1, 4),
            "scores": numpy.array(one["scores"], "float32"),
            "labels": numpy.array(one["labels"], "int64"),
        }
        for one in told
    ]


def lost(kind: str, wanted: Sequence[Answer], found: Sequence[Answer], allowed: Mapping[str, float]) -> float:
    """The share of boxes without a partner, or of pixels with another class, 0 to 1. No boxes at all: 0.

    Raises:
        ValueError: answers of different numbers or sizes.
    """
    if kind == "pixels":
        pairs = [(a["classes"] != b["classes"]).mean() for a, b in zip(wanted, found, strict=True)]
        return float(numpy.mean(pairs))
    least, missed, count = sure(wanted), 0, 0
    for a, b in zip(wanted, found, strict=True):
        for these, others in ((a, b), (b, a)):  # none is missing, and none is added
            count += int((these["scores"] >= least).sum())
            missed += alone(these, others, least, allowed)
    return missed / max(1, count)


def sure(answers: Sequence[Answer]) -> float:
    """The score from which boxes are compared."""
    highest = max((float(one["scores"].max()) for one in answers if len(one["scores"])), default=0.0)
    return min(SURE, highest / 2) if highest else SURE


def alone(these: Answer, others: Answer, least: float, allowed: Mapping[str, float]) -> int:
    """How many of a picture's boxes above a score have no partner of the same class among others, each taken once."""
    overlap = beside("boxes").overlap
    free, missed = numpy.ones(len(others["scores"]), bool), 0
    for box, score, label in zip(these["boxes"], these["scores"], these["labels"], strict=True):
        if score < least:
            continue
        near = free & (others["labels"] == label) & (abs(others["scores"] - score) <= allowed["score"])
        shares = numpy.where(near, overlap(box, others["boxes"]), -1)
        if len(shares) and shares.max() >= allowed["overlap"]:
            free[shares.argmax()] = False
        else:
            missed += 1
    return missed


def checked(folder: Path, run: Any, post: Mapping[str, Any], outputs: tuple[Any, Any]) -> tuple[str, bool]:
    """Whether the network's outputs give what the bundle expects, and the artifact's nearly so; and in what words.

    ``run``: the module run.py. ``outputs``: the network's and the artifact's, [B, ...] each, for the sample.
    """
    bundle, kind = run.read_json(folder, "bundle.json"), post["kind"]
    size, name = [run.read_json(folder, "preprocessing.json")[key] for key in ("height", "width")], bundle["answers"]
    if kind == "boxes":
        wanted = from_json(run.read_json(folder, name))
    else:
        wanted = [{"classes": one} for one in run.array(folder, name)]
    allowed, words = run.read_json(folder, "parity.json")["allowed"]["answers"], ""
    for source, limit, each in zip(("network", "artifact"), (SAME, allowed), outputs, strict=True):
        words, agrees = compared(kind, wanted, decode(post, each, size), limit)
        if not agrees:
            return f"{kind} that are made of the {source}'s outputs are not those of {name}: {words}", False
    return f"{kind}: {name} is what is made of the network's outputs and of the artifact's: {words}", True


def compared(
    kind: str, wanted: Sequence[Answer], found: Sequence[Answer], allowed: Mapping[str, float]
) -> tuple[str, bool]:
    """In words, and whether as much agrees as must."""
    share = lost(kind, wanted, found, allowed)
    if kind == "pixels":
        return f"{share:.2%} of the pixels have another class (allowed: {allowed['pixels']:.2%})", (
            share <= allowed["pixels"]
        )
    least = sure(wanted)
    count = sum(int((one["scores"] >= least).sum()) for one in wanted)
    words = f"of {count} boxes with scores of {least:.2g} or more, and as many found, {share:.1%} have no partner of "
    words += f"their class, IoU >= {allowed['overlap']:g} and a score within {allowed['score']:g} "
    words += f"(allowed: {allowed['missed']:.1%})"
    return words if count else "the network finds no boxes in the sample", share <= allowed["missed"]


def beside(name: str) -> Any:
    """The Python file of this name in this folder, loaded by its path: the folder itself stays off sys.path."""
    spec = importlib.util.spec_from_file_location(f"bundle_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
