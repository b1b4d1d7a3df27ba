"""A bundle: what the person who puts a network on a device needs, and can check there, in a folder and a zip.

    README.md            ten lines to begin with
    model.*              the artifact, a file or a folder
    bundle.json          which runtime loads which file; the sample's files
    preprocessing.json   from bytes to the network's input;  labels.json  the classes' names
    postprocessing.json  from the network's outputs to boxes or classes of pixels
    parity.json          how near the artifact's outputs must be to the network's, and what the run found
    sample/              images.npy uint8 [N, H, W, C], input.npy float32 [N, C, H, W], expected_0.npy ...
                         expected_boxes.json or expected_classes.npy, what is made of these outputs
    python/              run.py, verify.py and what they load (a decode_*.py, too); need numpy and the runtime only
    cpp/ kotlin/ swift/  programs in the runtime's other languages, which fit pictures and decode outputs, too
    provenance.json      the sha256 of every other file, versions, and what the caller adds

The same input gives the same bytes: the zip's entries are sorted, undated and not compressed.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy
from torch import Tensor, nn

from deploy_prune import device
from deploy_prune.bundle import languages, meaning
from deploy_prune.bundle.meaning import NO_DECODING, Meaning
from deploy_prune.bundle.verify import verify
from deploy_prune.device import PAYLOAD
from deploy_prune.device.payload.picture import PAD
from deploy_prune.device.payload.run import PACKAGES, POSTPROCESSING
from deploy_prune.errors import ExportError
from deploy_prune.export import FORMATS
from deploy_prune.export.onnx_files import GRAPH
from deploy_prune.export.parity import Reference, compare_contents, reference
from deploy_prune.system.locks import one_at_a_time
from deploy_prune.system.outputs import require_outside_runs
from deploy_prune.system.shell import atomic, digest
from deploy_prune.types import Artifact
from deploy_prune.version import __version__

ABOUT: Final = "bundle.json"
MANIFEST: Final = "provenance.json"
VERSION: Final = 1
"""Of the bundle's layout, in bundle.json."""
ENGINE: Final = "engine.plan"
"""Left out: an engine belongs to the device that built it."""
RESIZES: Final = {
    "cut": "bilinear, so that the image covers the size; what is too much is cut off evenly on both sides",
    "letterbox": "bilinear, so that the whole image fits in; around it, evenly on both sides, is the byte pad",
    "stretch": "bilinear, height and width on their own",
}
"""How an image is brought to the network's size -> in words."""
SCRIPTS: Final = ("about", "answers", "boxes", "device", "picture", "run", "verify")
"""In every bundle's python/."""
NOTES: Final = {
    "tensorrt": "\n- An engine belongs to the device that builds it: `python3 model.tensorrt/build_engine.py` there. "
    "Until then\n  run.py takes the ONNX file that it is built from (`pip install onnxruntime`), as verify.py\n  "
    "does unless it is told `--engine`.",
    "coreml": "\n- Core ML, and with it run.py and the last part of verify.py, works on Apple's systems only.",
}
"""Format -> what the README adds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """What a bundle is made of. N sample images, C channels, H W height and width.

    ``about``: "run", "target" and "budget", in words. ``network``: what the artifact was made of. ``images``: uint8
    [N, C, H, W]; ``inputs``: float32 [N, C, H, W], what the network is trained on for those images. ``mean`` and
    ``std``: of values in 0..1, per channel. ``labels``: the outputs' names; ``are_names``: not just numbers.
    ``fit``: how an image is brought to the size (device/payload/picture.py). ``meaning``: what the outputs say.
    ``parity``, ``latency``, ``provenance``: what the files of these names say beside what is found here; the latency's
    ``in_words`` stands in the README too.
    """

    about: Mapping[str, str]
    artifact: Artifact
    network: nn.Module
    images: Tensor
    inputs: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    are_names: bool
    parity: Mapping[str, Any]
    latency: Mapping[str, Any]
    provenance: Mapping[str, Any]
    fit: str = "cut"
    meaning: Meaning = NO_DECODING

    @property
    def runtime(self) -> str:
        """The file of device/payload that runs the artifact, here or (Core ML) elsewhere."""
        return FORMATS[self.artifact.format].runtime or self.artifact.format


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A finished bundle: its folder, its zip, and what was checked, a line each."""

    folder: Path
    packed: Path
    checked: tuple[str, ...]


def write(contents: Contents, out: Path) -> Bundle:
    """Write the folder ``out`` and ``out``.zip. They get these names only after they have passed ``verify``.

    A bundle that was there before is replaced.

    Raises:
        ExportError: something that is no bundle is in the way.
        RunFolderError: it would be in a run folder, or the place can't be written to.
        MeasurementError: the artifact isn't there or has changed since it was written, or can't be run.
        ParityError: the artifact doesn't compute what the network does, or comparing them would prove nothing.
        MissingDependencyError: the artifact's runtime isn't installed.
    """
    packed = out.with_name(f"{out.name}.zip")
    _refuse_others(out, packed)
    require_outside_runs(out)
    device.entry(contents.artifact, contents.runtime)
    with one_at_a_time("output", str(out.resolve())), atomic(packed) as zipped, atomic(out) as folder:
        folder.mkdir()
        _fill(folder, contents)
        checked = verify(folder, hashes_only=not _runs_here(contents))
        pack(folder, zipped)
    return Bundle(folder=out, packed=packed, checked=checked)


def pack(folder: Path, path: Path) -> None:
    """A zip of the folder, under the folder's name, whose bytes depend on names and contents alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
        for name in files_of(folder):
            entry = zipfile.ZipInfo(f"{folder.name}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix, rw-r--r--
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, packed.open(entry, "w") as target:
                shutil.copyfileobj(source, target)


def files_of(folder: Path) -> list[str]:
    """The names of all files below a folder, sorted, with slashes."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _refuse_others(out: Path, packed: Path) -> None:
    """Only a bundle is ever replaced."""
    if out.suffix == ".zip":
        message = f"{out} is a zip; give a folder's name, and a zip of that name is written beside it."
        raise ExportError(message)
    for there, is_bundle in ((out, (out / ABOUT).is_file), (packed, lambda: _is_packed_bundle(packed))):
        if there.exists() and not is_bundle():
            message = f"{there} exists already and is not a bundle; choose another --out."
            raise ExportError(message)


def _is_packed_bundle(packed: Path) -> bool:
    try:
        with zipfile.ZipFile(packed) as found:
            return any(name.endswith(f"/{ABOUT}") for name in found.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _runs_here(contents: Contents) -> bool:
    """All but Core ML packages, whose contents are compared instead."""
    return FORMATS[contents.artifact.format].runtime is not None


def _fill(folder: Path, contents: Contents) -> None:
    """Everything, the list of everything last."""
    artifact = contents.artifact
    held_to = reference(contents.network, artifact, contents.inputs)
    _copy_artifact(artifact.path, folder)
    expected = _write_sample(folder / "sample", contents, held_to)
    answers = meaning.write_expected(folder / "sample", contents.meaning, held_to.outputs)
    _json(folder / ABOUT, {
        "bundle": VERSION, "name": folder.name, **contents.about, "format": artifact.format,
        "precision": artifact.precision, "runtime": contents.runtime, "artifact": artifact.path.name,
        "images": "sample/images.npy", "input": "sample/input.npy", "expected": expected,
        "answers": answers,
    })  # fmt: skip
    _json(folder / "preprocessing.json", _preprocessing(contents))
    _json(folder / POSTPROCESSING, meaning.postprocessing(contents.meaning))
    note = "the data set's names" if contents.are_names else "the data set has no names: these are its class numbers"
    _json(folder / "labels.json", {"labels": contents.labels, "about": note})
    allowed = {
        "tolerance": held_to.tolerance, "least_db": held_to.least_db,
        "answers": meaning.allowed(contents.meaning, artifact.precision, held_to),
    }  # fmt: skip
    _json(folder / "parity.json", {"allowed": allowed, "run": contents.parity, **_compared(contents)})
    _json(folder / "latency.json", contents.latency)
    _write_code(folder, contents, _words(folder.name, contents, held_to))
    sums = {name: digest(folder / name) for name in files_of(folder)}
    versions = {"deploy-prune": __version__, **artifact.versions}
    _json(folder / MANIFEST, {"files": sums, "artifact_versions": versions, **contents.provenance})


def _copy_artifact(path: Path, folder: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns(ENGINE))
    else:
        shutil.copyfile(path, folder / path.name)


def _write_sample(sample: Path, contents: Contents, held_to: Reference) -> list[str]:
    """sample/; the names of the expected outputs' files, in the network's order."""
    sample.mkdir()
    numpy.save(sample / "images.npy", contents.images.permute(0, 2, 3, 1).contiguous().numpy())
    numpy.save(sample / "input.npy", contents.inputs.numpy())
    names = [f"expected_{number}.npy" for number in range(len(held_to.outputs))]
    for name, output in zip(names, held_to.outputs, strict=True):
        numpy.save(sample / name, output.contiguous().numpy())
    return [f"sample/{name}" for name in names]


def _preprocessing(contents: Contents) -> dict[str, Any]:
    height, width = contents.images.shape[2:]
    return {
        "formula": "input = (byte / divide_by - mean) / std, per channel",
        "divide_by": 255, "mean": contents.mean, "std": contents.std, "colour": _colour(contents),
        "height": height, "width": width,
        "decode": "turned upright as its EXIF orientation says; transparency laid on white; the first frame",
        "fit": contents.fit, "pad": PAD if contents.fit == "letterbox" else None, "resize": RESIZES[contents.fit],
        "input_type": "float32", "layout": contents.artifact.layout, "input_shape": contents.artifact.input_shape,
        "about_input_shape": "[batch, channels, height, width]; a file whose layout is NHWC has the channels last",
    }  # fmt: skip


def _compared(contents: Contents) -> dict[str, Any]:
    """What is inside an artifact that can't be run here, beside the network's layers."""
    if _runs_here(contents):
        return {}
    return {"contents": compare_contents(contents.network, contents.artifact, contents.inputs)}


def _write_code(folder: Path, contents: Contents, words: Mapping[str, Any]) -> None:
    """python/, the same files that run here, and the templates, filled in."""
    runtimes = {contents.runtime, "onnxruntime"} if contents.runtime == "tensorrt" else {contents.runtime}
    (folder / "python").mkdir()
    for name in sorted({*SCRIPTS, *meaning.programs(contents.meaning)} | runtimes):
        shutil.copyfile(PAYLOAD / f"{name}.py", folder / "python" / f"{name}.py")
    for template, place in {"README.md": "README.md", **_places(contents)}.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(languages.filled(template, words), encoding="utf-8")


def _places(contents: Contents) -> dict[str, str]:
    return languages.places(contents.artifact.format, contents.meaning.kind)


def _words(name: str, contents: Contents, held_to: Reference) -> dict[str, Any]:
    """What the templates ask for."""
    artifact, (_, channels, height, width) = contents.artifact, contents.images.shape
    axes, steps = ("channels", "height", "width"), (height * width, 1)
    if artifact.layout == "NHWC":
        axes, steps = ("height", "width", "channels"), (1, channels)
    return {
        **contents.about, "name": name, "artifact": artifact.path.name, "loaded": _loaded(artifact),
        "format": artifact.format,
        "precision": artifact.precision, "layout": artifact.layout, "package": PACKAGES[contents.runtime],
        "axes": f"[{', '.join(('batch', *axes))}]", "channels": channels, "height": height, "width": width,
        "channel_step": steps[0], "pixel_step": steps[1],
        "colour": _colour(contents), "half": str(artifact.precision == "fp16").lower(),
        "mean": languages.numbers(contents.mean), "std": languages.numbers(contents.std),
        "mean_f": languages.numbers(contents.mean, "f"), "std_f": languages.numbers(contents.std, "f"),
        "resize": RESIZES[contents.fit], "fit": contents.fit, "pad": PAD if contents.fit == "letterbox" else 0,
        "output_sizes": ", ".join(str(y[0].numel()) for y in held_to.outputs),
        **languages.decoding_words(contents.meaning, [y.shape[1:] for y in held_to.outputs]),
        **meaning.words(contents.meaning, held_to.outputs, contents.labels, contents.are_names),
        "snippets": ", ".join(f"`{languages.PLACES[x][0]}`" for x in languages.suffixes(artifact.format)),
        "latency": contents.latency["in_words"] or "not known",
        "note": NOTES.get(artifact.format, ""), "output_names": _output_names(artifact),
    }  # fmt: skip


def _loaded(artifact: Artifact) -> str:
    """What the runtime is told to load, from the bundle on: a large ONNX artifact is a folder with its graph."""
    within = (GRAPH,) if artifact.format == "onnx" and artifact.path.is_dir() else ()
    return "/".join((artifact.path.name, *within))


def _output_names(artifact: Artifact) -> str:
    """What a TensorRT engine calls the network's outputs; other runtimes go by number."""
    about = artifact.path / "model.json"
    if artifact.format != "tensorrt":
        return ""
    return ", ".join(map(json.dumps, json.loads(about.read_text(encoding="utf-8"))["outputs"]))


def _colour(contents: Contents) -> str:
    return {1: "grey", 3: "RGB"}.get(contents.images.shape[1], f"{contents.images.shape[1]} channels")


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
