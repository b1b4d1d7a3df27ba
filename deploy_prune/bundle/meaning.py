"""What a network's outputs say, as a bundle tells it: by which program boxes or classes of pixels are made of them.

N images, B batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy
from torch import Tensor

from deploy_prune.device.payload import answers
from deploy_prune.export.parity import Reference
from deploy_prune.families.raw_form import Decode, Prediction

Kind = Literal["classes", "boxes", "pixels", "outputs"]
ABOUT: Final[dict[Kind, str]] = {
    "classes": "the outputs are scores in the order of labels.json; the highest is the answer",
    "boxes": "python/PROGRAM.py makes boxes of the outputs: left, top, right, bottom in pixels of the network's input",
    "pixels": "python/PROGRAM.py gives each pixel of the network's input the class of its highest output",
    "outputs": "how these outputs are decoded is not a part of this bundle",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Meaning:
    """``kind``: what the outputs say (device/payload/answers.py); ``decode``: what makes boxes or pixels of them."""

    kind: Kind
    decode: Decode | None = None


NO_DECODING: Final = Meaning(kind="classes")


def postprocessing(meaning: Meaning) -> dict[str, Any]:
    """What postprocessing.json has."""
    if meaning.decode is None:
        return {"kind": meaning.kind, "about": ABOUT[meaning.kind]}
    program, settings = meaning.decode.program, dict(meaning.decode.settings)
    about = ABOUT[meaning.kind].replace("PROGRAM", program)
    return {"kind": meaning.kind, "about": about, "program": program, "settings": settings}


def programs(meaning: Meaning) -> tuple[str, ...]:
    """The files of device/payload that decoding takes."""
    return () if meaning.decode is None else (meaning.decode.program,)


def write_expected(sample: Path, meaning: Meaning, outputs: Sequence[Tensor]) -> str | None:
    """What is made of the network's outputs [N, ...]: the file's name in the bundle; None where nothing is."""
    if meaning.decode is None:
        return None
    made: list[Prediction] = meaning.decode(tuple(outputs))
    if meaning.kind == "boxes":
        path = sample / "expected_boxes.json"
        path.write_text(json.dumps(answers.as_json(made)) + "\n", encoding="utf-8")
    else:
        path = sample / "expected_classes.npy"
        numpy.save(path, numpy.stack([one["classes"] for one in made]))
    return f"sample/{path.name}"


def allowed(meaning: Meaning, precision: str, held_to: Reference) -> dict[str, float] | None:
    """How far an artifact's boxes or pixels may be from the network's (device/payload/answers.py).

    In int8 the network in 8 bits loses some, too: so much is allowed beside.
    """
    if meaning.decode is None:
        return None
    found = dict(answers.ALLOWED[precision])
    if held_to.rounded is not None:
        wanted, rounded = meaning.decode(held_to.outputs), meaning.decode(held_to.rounded)
        share = answers.lost(meaning.kind, wanted, rounded, found)
        key = "missed" if meaning.kind == "boxes" else "pixels"
        found[key] = min(1.0, found[key] + share)
    return found


def words(meaning: Meaning, outputs: Sequence[Tensor], labels: Sequence[str], are_names: bool) -> dict[str, str]:
    """What the README says of the outputs, and of the sample's first answer."""
    note = "named in `labels.json`" + ("" if are_names else " (the data set has only numbers)")
    if meaning.decode is None:
        scores = outputs[0][0]
        named = scores.shape == (len(labels),)
        first = labels[int(scores.argmax())] if named else "of expected_0.npy"
        other = "" if meaning.kind == "classes" else " How they are decoded is not a part of this bundle."
        text = f"{scores.numel()} scores, {note}.{other}"
        return {"output_words": text, "first_answer": f"The sample's first answer should be `{first}`."}
    what, file = (
        ("boxes", "expected_boxes.json")
        if meaning.kind == "boxes"
        else ("a class for each pixel", "expected_classes.npy")
    )
    text = f"raw numbers, of which `python/{meaning.decode.program}.py` makes {what}, with the settings in\n  "
    text += f"`postprocessing.json`; classes are {note}. The programs in other languages do the same."
    if _has_parts(meaning.decode):
        text += "\n  Masks and key points are decoded in Python alone."
    return {"output_words": text, "first_answer": f"`sample/{file}` has what the sample should give."}


def _has_parts(decode: Decode) -> bool:
    """Whether a detector gives masks or key points, too."""
    return any(decode.settings.get(name) for name in ("parts", "masks", "keypoints"))
