"""Check a bundle: is every file what was handed over, and does the artifact still compute what the network does?

    python python/verify.py                   the bundle that this file is in
    python python/verify.py BUNDLE            a folder or a zip; a zip is unpacked within bounds into a temporary folder
    python python/verify.py --hashes-only     the files alone, where the runtime isn't installed
    python python/verify.py --engine          run the engine.plan that you built here, and not the file it was built of

Needs Python 3.10; for more than the files, numpy and the artifact's runtime. In this order, and the first that fails
ends it with one sentence:

    files           those that provenance.json lists, no other, no links, each with the sha256 that is told there
    preprocessing   preprocessing.json turns the sample's images into the sample's inputs
    parity          the artifact, in its own runtime, turns those into what the network made of them
    answers         boxes, or the classes of pixels, that are made of the outputs are those of the network

Exit codes: 0 all is well, 21 the outputs differ, 22 the artifact can't be run, 23 its runtime isn't installed, 26 the
bundle is damaged, edited or unsafe. Nothing of the bundle's own code is run: what is run lies beside this file. What a
bundle says is counted before memory is asked for it, and the whole check has a limit of memory and of time.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import shutil
import stat
import sys
import threading
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import numpy

HERE = Path(__file__).resolve().parent
CODES = {"ParityError": 21, "MeasurementError": 22, "MissingDependencyError": 23, "BundleError": 26}
"""Kind of failure -> exit code."""
MANIFEST = "provenance.json"
MAX_FILES, MAX_BYTES, MAX_RATIO = 10_000, 8 * 2**30, 100
"""Of a zip: files, bytes unpacked, and those divided by its own size. Weights shrink to a half at best."""
MAX_DIRECTORY_BYTES = 4 * 2**20
"""Of a zip's list of what it holds: 400 for each of MAX_FILES."""
MAX_NAME, MAX_STEPS = 200, 16
"""Of a file's name in a zip: characters of a step, and steps."""
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those that unpack no more at a time than they are asked for."""
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
"""Names that are devices on Windows."""
MEMORY_GB, TIMEOUT_S = 4.0, 600.0
PREPROCESSING_TOLERANCE = 1e-5
"""Largest difference, of inputs whose standard deviation is about 1; float32 rounds at 1e-7."""


class FailureError(Exception):
    """The bundle fails a check; ``kind`` is one of CODES."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main() -> None:
    """Check, and tell: lines for people, or with --json one object. What runtimes print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.dont_write_bytecode = True
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != HERE]
    parser = argparse.ArgumentParser(description="Check a bundle's files, preprocessing and parity.")
    parser.add_argument("bundle", nargs="?", type=Path, default=HERE.parent, help="folder or zip (default: this one)")
    parser.add_argument("--hashes-only", action="store_true", help="check the files alone")
    parser.add_argument("--engine", action="store_true", help="run the engine.plan that you have built here")
    parser.add_argument("--json", action="store_true", help="answer {told, error, message}, with exit code 0")
    parser.add_argument("--memory-gb", type=float, default=MEMORY_GB, help="limit of memory (default: %(default)g)")
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S, help="limit of time (default: %(default)g)")
    options = parser.parse_args()
    bound(None if options.engine else options.memory_gb, options.timeout_s)
    told: list[str] = []
    failure = None
    try:
        for line in checked(options.bundle, options.hashes_only, options.engine):
            told.append(line)
            if not options.json:
                print(line, file=out, flush=True)
    except FailureError as error:
        failure = error
    if options.json:
        json.dump({"told": told, "error": failure and failure.kind, "message": str(failure or "")}, out)
    out.close()
    if failure is not None and not options.json:
        print(f"verify.py: {failure}", file=sys.stderr)
        sys.exit(CODES[failure.kind])


def bound(memory_gb: float | None, timeout_s: float) -> None:
    """Stop this process when its time is over; refuse it more memory, where the system can (not on Windows).

    A GPU's libraries ask for far more memory than they use: then there can be no such limit.
    """

    def stop() -> None:
        print(f"verify.py: The check was stopped after {timeout_s:g} s.", file=sys.stderr, flush=True)
        os._exit(CODES["MeasurementError"])

    watch = threading.Timer(timeout_s, stop)
    watch.daemon = True
    watch.start()
    if memory_gb is not None and importlib.util.find_spec("resource") is not None:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def checked(bundle: Path, hashes_only: bool = False, engine: bool = False) -> Iterator[str]:
    """What was found right, a sentence each. ``engine``: run the engine.plan that was built here, if there is one.

    Raises:
        FailureError: at the first thing that is wrong.
    """
    run = beside("run")
    try:
        with opened(bundle) as folder:
            yield one_line(check_files(folder, run, built_here=bundle.is_dir()))
            if not hashes_only:
                yield one_line(check_preprocessing(folder, run))
                yield from map(one_line, check_parity(folder, run, engine))
    except FailureError:
        raise
    except (ModuleNotFoundError, run.MissingError) as error:
        reason = "numpy is not installed: pip install numpy" if isinstance(error, ModuleNotFoundError) else error
        message = f"The files are right, but parity was not checked: {reason} (or check with --hashes-only)."
        fail("MissingDependencyError", message)
    except Exception as error:  # a file may be wrong in any way, and libraries raise all kinds
        fail("BundleError", f"{bundle} is not what deploy-prune writes: {type(error).__name__}: {one_line(error)}")


@contextmanager
def opened(bundle: Path) -> Iterator[Path]:
    """The bundle's folder; of a zip, for as long as it is looked at.

    Raises:
        FailureError: there is none, or the zip is damaged or unsafe.
    """
    if bundle.is_dir():
        yield bundle
        return
    if not bundle.is_file():
        refuse(f"There is no bundle at {bundle}: neither a folder nor a file.")
    with TemporaryDirectory(prefix="deploy-prune-") as scratch:
        yield unpack(bundle, Path(scratch))


def unpack(bundle: Path, into: Path) -> Path:
    """Unpack a zip after a look at what it holds; the folder with provenance.json.

    Raises:
        FailureError: it can't be read, or an entry is a link, leads out of the folder, is there twice, or is too large.
    """
    try:
        with Bounded(bundle) as raw, zipfile.ZipFile(raw) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            refuse_unsafe(bundle, entries)
            for entry in entries:
                path = into / entry.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(entry) as source, path.open("xb") as file:
                    shutil.copyfileobj(source, file)
    except FailureError:
        raise
    except Exception as error:  # zipfile and what it unpacks with raise many kinds
        refuse(f"{bundle} can't be unpacked: {type(error).__name__}: {one_line(error)}")
    found = [place for place in (into, *into.iterdir()) if (place / MANIFEST).is_file()]
    if len(found) != 1:
        refuse(f"{bundle} is no bundle: it holds {len(found)} files {MANIFEST}, not one.")
    beside_it = [place.name for place in into.iterdir() if found[0] not in (into, place)]
    if beside_it:
        refuse(f"{bundle} holds {beside_it[0]!r}, which {MANIFEST} does not list.")
    return found[0]


class Bounded(io.FileIO):
    """A file that isn't read in large pieces: a zip says itself how long the list of what it holds is."""

    def read(self, size: int | None = -1) -> bytes:
        """As every file's.

        Raises:
            ValueError: more is asked for than an honest zip's list has.
        """
        wanted = MAX_DIRECTORY_BYTES + 1 if size is None or size < 0 else size
        found = super().read(wanted) or b"" if wanted <= MAX_DIRECTORY_BYTES + 1 else None
        if found is None or len(found) > MAX_DIRECTORY_BYTES:
            message = f"its list of files is larger than {MAX_DIRECTORY_BYTES} bytes"
            raise ValueError(message)
        return found


def refuse_unsafe(bundle: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Stop at an entry that must not be written."""
    seen: set[str] = set()
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or any(letter in entry.orig_filename for letter in "\\:\0"):
            refuse(f"{bundle} holds {entry.orig_filename[:MAX_NAME]!r}, which could lead out of its folder.")
        if kind not in (0, stat.S_IFREG):
            refuse(f"{bundle} holds {name[:MAX_NAME]!r}, which is a link or a device and not a file.")
        if len(parts) > MAX_STEPS or not all(is_plain(step) for step in parts):
            refuse(f"{bundle} holds {name[:MAX_NAME]!r}, which can't be a file's name on every system.")
        if entry.compress_type not in PACKINGS:
            refuse(f"{bundle} holds {name!r}, which is neither stored nor deflated: pack it again, with zip.")
        same = unicodedata.normalize("NFC", "/".join(parts)).casefold()
        if same in seen:
            refuse(f"{bundle} holds {name!r} twice.")
        seen.add(same)
    size = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_FILES or size > min(MAX_BYTES, MAX_RATIO * bundle.stat().st_size):
        refuse(f"{bundle} would unpack to {len(entries)} files of {size} bytes, which is no honest bundle.")


def is_plain(step: str) -> bool:
    """Whether a step of a path means the same file on every system, and can be shown."""
    stem = step.partition(".")[0].rstrip().lower()
    return step.isprintable() and len(step) <= MAX_NAME and step[-1:] not in (".", " ") and stem not in RESERVED


def check_files(folder: Path, run: Any, built_here: bool = False) -> str:
    """Every file that provenance.json lists is there with its sha256, and no other is.

    ``built_here``: an engine that TensorRT's build_engine.py has made in the artifact's folder may be there.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        refuse(f"{folder} is no bundle: it has no {MANIFEST}.")
    try:
        listed = run.read_json(folder, MANIFEST)["files"]
        listed_names = set(listed)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        refuse(f"{manifest} is not what deploy-prune writes: {one_line(error)}.")
    if not isinstance(listed, dict):
        refuse(f"{manifest} is not what deploy-prune writes: its files are no mapping of names to sums.")
    found = files_of(folder) - {MANIFEST}
    script = "/build_engine.py"
    built = {f"{name.removesuffix(script)}/engine.plan" for name in listed if name.endswith(script)} - listed_names
    for name in sorted(listed_names - found):
        refuse(f"{folder / name} is missing.")
    for name in sorted(found - listed_names - (built if built_here else set())):
        refuse(f"{folder / name} is not listed in {MANIFEST}: it was added later.")
    for name in sorted(listed):
        if sha256(folder / name) != listed[name]:
            refuse(f"{folder / name} was changed: its sha256 is not the one in {MANIFEST}.")
    more = "".join(f"; {name} was built later and is not checked" for name in sorted(found & built))
    return f"files: {len(listed)} with the sha256 listed in {MANIFEST}, whose own is {sha256(manifest)}{more}"


def files_of(folder: Path) -> set[str]:
    """The names of all files below a folder, with slashes.

    Raises:
        FailureError: there is a link among them, something that is neither file nor folder, or far too many.
    """
    names: set[str] = set()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                refuse(f"{path} is a link or a device and not a file.")
        names |= {(Path(place) / name).relative_to(folder).as_posix() for name in files}
        if len(names) > MAX_FILES:
            refuse(f"{folder} holds more than {MAX_FILES} files, which is no honest bundle.")
    return names


def check_preprocessing(folder: Path, run: Any) -> str:
    """preprocessing.json turns the sample's images into the inputs that the network was given."""
    import numpy

    told, bundle = run.read_json(folder, "preprocessing.json"), run.read_json(folder, "bundle.json")
    images, wanted = run.array(folder, bundle["images"]), run.array(folder, bundle["input"])
    off = 0.0 if len(images) == len(wanted) > 0 else float("inf")
    for image, x in zip(images, wanted, strict=False):  # one by one: the bytes take four times the memory as floats
        made = run.preprocess(image[None], told)[0]
        off = max(off, float(numpy.abs(made - x).max()) if made.shape == x.shape else float("inf"), key=worst)
    if not off <= PREPROCESSING_TOLERANCE:
        message = f"preprocessing.json does not turn {bundle['images']} into {bundle['input']}: off by {off:.2g}."
        fail("ParityError", message)
    return f"preprocessing: turns {len(images)} sample images into the sample's inputs (off by at most {off:.1g})"


def worst(off: float) -> float:
    """A key to find the largest difference by; what is no number is larger than all."""
    return off if off == off else float("inf")


def check_parity(folder: Path, run: Any, engine: bool = False) -> Iterator[str]:
    """The artifact's outputs for the sample, and what they say, against the network's; parity.json has the limits."""
    bundle, allowed = run.read_json(folder, "bundle.json"), run.read_json(folder, "parity.json")["allowed"]
    x, wanted = run.array(folder, bundle["input"]), [run.array(folder, name) for name in bundle["expected"]]
    model = run.model_of(folder, engine)
    name = Path(model["path"]).relative_to(folder).as_posix()
    try:
        found = run.outputs(folder, x, engine)
    except run.MissingError:
        raise
    except Exception as error:  # runtimes' exceptions have no common base but Exception
        message = f"{name} can't be run in {model['runtime']}: {type(error).__name__}: {one_line(error)}"
        fail("MeasurementError", message)
    if [a.shape for a in wanted] != [b.shape for b in found]:
        message = f"{name} has outputs {[list(b.shape) for b in found]}, the network {[list(a.shape) for a in wanted]}."
        fail("ParityError", message)
    told = [compare(name, *each) for each in zip(wanted, found, limits(allowed, len(wanted)), strict=True)]
    yield f"parity: {name} in {model['runtime']}, {len(x)} inputs: {', '.join(told)}"
    if (post := run.read_json(folder, run.POSTPROCESSING))["kind"] in run.DECODED:
        words, agrees = beside("answers").checked(folder, run, post, (wanted, found))
        yield words if agrees else fail("ParityError", words)


def limits(allowed: dict[str, Any], count: int) -> list[tuple[float | None, float | None]]:
    """(largest relative difference, least signal over noise in dB) per output; None: not held to it."""
    if allowed["tolerance"] is not None:
        return [(float(allowed["tolerance"]), None)] * count
    return [(None, None if least is None else float(least)) for least in allowed["least_db"]]


def compare(name: str, a: numpy.ndarray, b: numpy.ndarray, limit: tuple[float | None, float | None]) -> str:
    """One output [B, ...] of the artifact (b) against the network's (a): max|a - b| / max|a|, or the ratio in dB.

    The ratio is 10 log10(sum (a - mean_B a)**2 / sum (a - b)**2): changes from input to input over the differences.
    """
    import numpy

    a, b, (tolerance, least_db) = a.astype("float64"), b.astype("float64"), limit
    off = float(numpy.abs(a - b).max() / max(float(numpy.abs(a).max()), 1e-30))
    ratio = decibels(((a - a.mean(0)) ** 2).sum(), ((a - b) ** 2).sum())
    problem = None
    if not numpy.isfinite(b).all():
        problem = "its outputs are not finite"
    elif tolerance is not None and not off <= tolerance:
        problem = f"by {off:.2g} relative (allowed: {tolerance:g})"
    elif least_db is not None and not ratio >= least_db:
        problem = f"signal over noise is {ratio:.1f} dB (at least {least_db:.1f} dB are asked for)"
    if problem:
        fail("ParityError", f"{name} differs from the network: {problem}.")
    return f"off by {off:.2g} relative" if least_db is None else f"signal over noise is {ratio:.1f} dB"


def decibels(signal: float, noise: float) -> float:
    """Ten times the logarithm of the ratio; infinite without noise."""
    import numpy

    return float("inf") if noise == 0 else float(10 * numpy.log10(max(signal, 1e-300) / noise))


def sha256(path: Path) -> str:
    """A file's sha256, hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def refuse(message: str) -> NoReturn:
    """Stop: the bundle is not whole, not as it was, or not safe."""
    fail("BundleError", message)


def fail(kind: str, message: str) -> NoReturn:
    """Stop with a failure of this kind."""
    raise FailureError(kind, one_line(message, 2000))


def one_line(told: object, limit: int = 300) -> str:
    """A message without line breaks and control characters, and no longer than this."""
    words = " ".join(str(told)[: 2 * limit].split())
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:limit]


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
