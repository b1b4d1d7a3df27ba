"""Run a bundle's network: on its sample, or on an image of your own.

    python python/run.py                  the sample that comes with the bundle
    python python/run.py cat.png          an image file (reading it takes Pillow)
    python python/run.py cat.npy          or its bytes, uint8 [H, W, C], of the network's size

A classifier's highest scores are printed. A detector's boxes are a line each: name, score, left, top, right, bottom, in
pixels of the image (of the sample, of the network's input). A segmenter's answer is the share of each class; for an
image it is also written as cat-classes.png: for each pixel its class's place in labels.json, from 0 on, or 255 where
the network doesn't see it.

Needs Python 3.10, numpy and the artifact's runtime only. What goes into the network is told by preprocessing.json, what
comes out by postprocessing.json and labels.json; they are read here, each time. B batch, C channels, H W height and
width.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

HERE = Path(__file__).resolve().parent
PACKAGES = {
    "coreml": "coremltools",
    "executorch": "executorch",
    "litert": "ai-edge-litert",
    "mnn": "MNN",
    "ncnn": "ncnn",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
}
"""What pip calls each runtime. A bundle may name no other."""
POSTPROCESSING = "postprocessing.json"
DECODED = ("boxes", "pixels")
"""Kinds of answers that a program makes of the outputs."""
MAX_JSON_BYTES = 4 * 2**20
MAX_ELEMENTS = 2**26
"""Of an array of the sample: 16 colour images of 1182 x 1182."""


class MissingError(Exception):
    """The runtime isn't installed, or this system can't have it; the message says what to do."""


def main() -> None:
    """Run the sample or the image, and print the highest outputs by name."""
    sys.dont_write_bytecode = True
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != HERE]
    parser = argparse.ArgumentParser(description="Run the bundle's network on its sample, or on an image.")
    parser.add_argument("image", nargs="?", type=Path, help="an image file, or .npy with uint8 [H, W, C]")
    parser.add_argument("--bundle", type=Path, default=HERE.parent, help="the bundle's folder (default: this one)")
    parser.add_argument("--out", type=Path, help="a segmenter's PNG for the image (default: IMAGE-classes.png)")
    options = parser.parse_args()
    out = options.out or (options.image and options.image.with_name(f"{options.image.stem}-classes.png"))
    try:
        for line in answers(options.bundle, options.image, out):
            print(line)
    except Exception as error:  # runtimes' exceptions have no common base but Exception
        sys.exit(f"run.py: {' '.join(str(error).split())}")


def answers(folder: Path, image: Path | None, out: Path | None) -> list[str]:
    """What the network says, line by line, about the sample or one image. ``out``: for the classes of its pixels."""
    made, told, post = beside("answers"), read_json(folder, "preprocessing.json"), read_json(folder, POSTPROCESSING)
    labels = read_json(folder, "labels.json")["labels"]
    found, size = run(folder, image)
    names = [str(image)] if image else [f"sample {number}" for number in range(len(found[0]))]
    if post["kind"] not in DECODED:
        return [f"{name}: {made.best(scores, labels)}" for name, scores in zip(names, found[0], strict=True)]
    decoded = made.decode(post, found, (told["height"], told["width"]))
    pairs = [(name, in_picture(one, size, told)) for name, one in zip(names, decoded, strict=True)]
    if post["kind"] == "boxes":
        return [line for name, one in pairs for line in of_boxes(name, made.box_lines(one, labels))]
    if image and out:
        write_png(out, pairs[0][1]["classes"])
    written = f"; {out} has the class of each pixel" if image else ""
    return [f"{name}: {made.pixel_shares(one['classes'], labels)}{written}" for name, one in pairs]


def of_boxes(name: str, lines: list[str]) -> list[str]:
    """The lines about one picture."""
    return [f"{name}: {len(lines)} boxes", *(f"  {line}" for line in lines)]


def in_picture(answer: dict[str, Any], size: tuple[int, int] | None, told: dict[str, Any]) -> dict[str, Any]:
    """Boxes or classes of pixels where they are in the picture (``size``: its width and height; None: as they are)."""
    if size is None:
        return answer
    picture = beside("picture")
    if "classes" in answer:
        return {"classes": picture.mask_to_picture(answer["classes"], size, told["fit"], beside("answers").VOID)}
    boxes = picture.to_picture(answer["boxes"], size, told["width"], told["height"], told["fit"])
    return {**answer, "boxes": boxes}


def write_png(path: Path, classes: numpy.ndarray) -> None:
    """Bytes [H, W] as a grey image.

    Raises:
        ValueError: Pillow isn't installed, or something is in the way.
    """
    if path.exists():
        message = f"{path} exists already; give another --out"
        raise ValueError(message)
    try:
        from PIL import Image
    except ModuleNotFoundError:
        message = "writing a PNG takes Pillow (pip install pillow)"
        raise ValueError(message) from None
    Image.fromarray(classes).save(path, format="PNG")


def run(folder: Path, image: Path | None) -> tuple[list[numpy.ndarray], tuple[int, int] | None]:
    """Every output [B, ...] of the bundle's network, for the sample (B images) or one image; and its width and height.

    The sample's are None: its images have the network's size.
    """
    import numpy

    told = read_json(folder, "preprocessing.json")
    if image is None:
        return outputs(folder, array(folder, read_json(folder, "bundle.json")["input"])), None
    pixels, size = picture(image, told)
    x = preprocess(pixels[None], told)
    batch = told["input_shape"][0]  # a file with a fixed batch takes no less: the same image so many times
    return [y[:1] for y in outputs(folder, numpy.repeat(x, batch, 0))], size


def preprocess(images: numpy.ndarray, told: dict[str, Any]) -> numpy.ndarray:
    """Bytes uint8 [B, H, W, C] as the network takes them: float32 [B, C, H, W], (byte / 255 - mean) / std.

    Files whose own layout is NHWC get their input turned when they are fed.
    """
    import numpy

    mean, std = numpy.array(told["mean"], "float32"), numpy.array(told["std"], "float32")
    if images.ndim != 4 or not mean.shape == std.shape == images.shape[-1:]:
        message = f"preprocessing.json has {mean.size} means and {std.size} deviations for images {list(images.shape)}"
        raise ValueError(message)
    x = (images.astype("float32") / numpy.float32(told["divide_by"]) - mean) / std
    return numpy.ascontiguousarray(x.transpose(0, 3, 1, 2))


def picture(path: Path, told: dict[str, Any]) -> tuple[numpy.ndarray, tuple[int, int]]:
    """An image's bytes, uint8 [H, W, C], upright and fitted to the network's size; and its own width and height.

    Raises:
        ValueError: an .npy file of another shape or type; no image that can be read; or Pillow isn't installed.
    """
    import numpy

    _, channels, height, width = told["input_shape"]
    if path.suffix == ".npy":
        found = numpy.load(path, allow_pickle=False)
        if found.shape != (height, width, channels) or found.dtype != "uint8":
            wanted = [height, width, channels]
            message = f"{path} has {found.dtype} {list(found.shape)}; the network takes uint8 {wanted}"
            raise ValueError(message)
        return numpy.asarray(found), (width, height)
    reader = beside("picture")
    try:
        found = reader.load(path, channels)
        fitted = reader.fitted(found, width, height, told["fit"], told["pad"])
    except ModuleNotFoundError:
        message = f"{path} can't be read without Pillow (pip install pillow); or give its bytes as .npy"
        raise ValueError(message) from None
    return fitted, (found.shape[1], found.shape[0])


def outputs(folder: Path, x: numpy.ndarray, engine: bool = True) -> list[numpy.ndarray]:
    """Every output [B, ...] of the bundle's artifact in its own runtime, on one thread, for inputs [B, C, H, W].

    ``engine``: as for ``model_of``.

    Raises:
        MissingError: the runtime isn't there.
    """
    model = model_of(folder, engine)
    if model["runtime"] == "coreml" and sys.platform != "darwin":
        message = "Core ML runs on Apple's systems only"
        raise MissingError(message)
    try:
        device = beside("device")
        loaded = device.load(model, 1)
    except ModuleNotFoundError as error:
        package = PACKAGES[model["runtime"]]
        message = f"{error.name} is not installed: pip install numpy {package}"
        raise MissingError(message) from error
    made: list[numpy.ndarray] = device.outputs(loaded, model["input_shape"][0], x)
    return made


def model_of(folder: Path, engine: bool = True) -> dict[str, Any]:
    """What device.py is to load.

    ``engine``: the TensorRT engine that was built here. Without one, or with False, the ONNX file that it is built
    from: loading an engine that came from elsewhere could do anything.

    Raises:
        ValueError: the bundle names a runtime that there isn't, a path outside, or an input that is none.
    """
    told, shape = read_json(folder, "bundle.json"), read_json(folder, "preprocessing.json")
    runtime, path = told["runtime"], inside(folder, told["artifact"])
    if runtime not in PACKAGES:
        message = f"there is no runtime {runtime!r}; known: {', '.join(PACKAGES)}"
        raise ValueError(message)
    if shape["layout"] not in ("NCHW", "NHWC") or not is_shape(shape["input_shape"]):
        message = "preprocessing.json tells no layout and input_shape that an artifact can have"
        raise ValueError(message)
    if runtime == "tensorrt" and not (engine and (path / "engine.plan").is_file()):
        runtime, path = "onnxruntime", path / "model.onnx"
    return {
        "runtime": runtime, "path": str(path), "layout": shape["layout"], "input_shape": shape["input_shape"],
    }  # fmt: skip


def is_shape(told: Any) -> bool:
    """Whether these are the sizes of an input that isn't too large."""
    if not isinstance(told, list) or not 0 < len(told) <= 8:
        return False
    return all(type(size) is int and 0 < size <= MAX_ELEMENTS for size in told) and math.prod(told) <= MAX_ELEMENTS


def read_json(folder: Path, name: str) -> Any:
    """A JSON file of the bundle.

    Raises:
        ValueError: it isn't JSON, or is too large.
    """
    path = folder / name
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        message = f"{name} is missing, no file, or larger than {MAX_JSON_BYTES} bytes"
        raise ValueError(message)
    return json.loads(path.read_text(encoding="utf-8"))


def array(folder: Path, name: str) -> numpy.ndarray:
    """An .npy file of the bundle. It is mapped, so that a header can't ask for more memory than the file has bytes."""
    import numpy

    found = numpy.asarray(numpy.load(inside(folder, name), mmap_mode="r", allow_pickle=False))
    if found.dtype.kind not in "biuf" or found.size > MAX_ELEMENTS:
        message = f"{name} has {found.size} values of the kind {found.dtype}, which can't be a sample"
        raise ValueError(message)
    return found


def inside(folder: Path, name: str) -> Path:
    """A path of the bundle.

    Raises:
        ValueError: it leads out of it.
    """
    steps = PurePosixPath(name)
    if steps.is_absolute() or ".." in steps.parts or "\\" in name:
        message = f"the path {name!r} leads out of the bundle"
        raise ValueError(message)
    return folder / steps


def beside(name: str) -> Any:
    """The Python file of this name in this folder, loaded by its path: the folder itself stays off sys.path."""
    spec = importlib.util.spec_from_file_location(f"bundle_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
