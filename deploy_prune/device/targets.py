"""Devices with their runtimes, read strictly from edge_targets/*.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeGuard, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml.comments import CommentedMap

from deploy_prune.device.address import parse
from deploy_prune.device.programs import runtime_of
from deploy_prune.errors import TargetError, perhaps
from deploy_prune.recipe.parts import EXPORT_FORMATS
from deploy_prune.system import strict_yaml
from deploy_prune.system.shipped import PACKAGE, shipped_folder
from deploy_prune.system.strict_json import is_file, shown
from deploy_prune.types import ErrorBand, Precision, Roofline, Target

Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Text = Annotated[str, Field(min_length=1)]
PRECISIONS: Final = get_args(Precision)


def _known_format(name: str) -> str:
    if name not in EXPORT_FORMATS:
        message = f"there is no format {name!r}; known: {', '.join(EXPORT_FORMATS)}.{perhaps(name, EXPORT_FORMATS)}"
        raise ValueError(message)
    return name


def _known_program(path: str) -> str:
    try:
        runtime_of(Path(path))
    except TargetError as error:
        raise ValueError(str(error)) from error
    return path


def _reachable(runner: str | list[str]) -> str | list[str]:
    devices = [runner] if isinstance(runner, str) else runner
    if "none" in devices[1:] or devices[0] == "none" != runner:
        message = "'none' can't stand beside devices"
        raise ValueError(message)
    if len(set(devices)) < len(devices):
        message = "a device is named twice"
        raise ValueError(message)
    for device in devices if runner != "none" else ():
        try:
            parse(device)
        except TargetError as error:
            raise ValueError(str(error)) from error
    return runner


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Number(_Part):
    """A number and where it comes from."""

    value: Positive
    source: Text


class _Fact(_Part):
    """What is known of a device, for the reader; nothing is computed from it."""

    value: Annotated[float, Field(ge=0)] | Text
    source: Text


class _Overhead(_Part):
    value: NotNegative
    source: Text


class _Granularity(_Part):
    value: Annotated[int, Field(ge=1, le=256)] | Literal["measure"]
    source: Text


class _Roofline(_Part):
    gmacs_per_s: _Number = Field(description="1e9 multiply-accumulates a second in plain convolutions.")
    depthwise_gmacs_per_s: _Number = Field(description="The same in depthwise convolutions.")
    gbytes_per_s: _Number = Field(description="1e9 bytes of weights and feature maps moved a second.")
    layer_overhead_ms: _Overhead = Field(
        description="Milliseconds per convolution or matrix product, whatever its size."
    )
    network_overhead_ms: _Overhead = Field(description="Milliseconds once an inference.")
    winograd: _Number | None = Field(
        default=None,
        description="How many times as fast as others 3x3 convolutions of stride 1 are per multiply-accumulate, for "
        "their kernel needs fewer of them; null: 2.0. 1.0: the runtime has no such kernel.",
    )
    matmul_gmacs_per_s: _Number | None = Field(
        default=None,
        description="1e9 multiply-accumulates a second in matrix products; null: as in plain convolutions.",
    )
    gfunctions_per_s: _Number | None = Field(
        default=None,
        description="1e9 transcendental functions (SiLU, sigmoid, GELU, exp, tanh) of an element a second; null: they "
        "take no time of their own, as on accelerators, which fuse them with the layer before.",
    )
    precision: Precision | None = Field(
        default=None, description="What the rates are of; null: the target's own precision. int8 has to be said."
    )


class _Error(_Part):
    median: float = Field(gt=0, le=10, description="The median of the relative errors: 0.11 is 11%.")
    low: float = Field(gt=0, le=1, description="Where the band of errors begins, see high.")
    high: float = Field(
        ge=1,
        le=100,
        description="For 80% of the networks, the true latency is from low to high times the predicted one.",
    )
    networks: int = Field(
        ge=0,
        le=10000,
        description="How many networks were predicted to find this out; 0: it is taken from other devices.",
    )
    source: Text = Field(description="How it was found out.")


class _Target(_Part):
    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        description="Small letters, digits, dots and dashes; names the results' folder.",
    )
    title: Text = Field(description="What tables and pages call it.")
    format: Annotated[str, AfterValidator(_known_format)] = Field(description="The file format, see Formats.")
    precision: Precision = Field(description="The precision of artifacts.")
    runtime: Text = Field(description="What loads the file on the device, as in onnxruntime.")
    granularity: _Granularity = Field(
        description="Channel counts are multiples of this, as many as the device computes at a time; measure: found by "
        "a measurement, once per device."
    )
    runner: Annotated[str | Annotated[list[str], Field(min_length=1, max_length=1024)], AfterValidator(_reachable)] = (
        Field(
            description="Where latency is measured: local, ssh://[USER@]HOST[:PORT] or adb://SERIAL, or a list of "
            "devices that are alike; none: nowhere, it is predicted from roofline."
        )
    )
    threads: int = Field(ge=1, le=1024, description="Threads that the runtime uses.")
    roofline: _Roofline | None = Field(default=None, description="The device's rates; needed with runner: none.")
    error: _Error | None = Field(default=None, description="How far off predictions from these rates are, if known.")
    program: Annotated[Text, AfterValidator(_known_program)] | None = Field(
        default=None,
        description="The runtime's own benchmark program, for a device without Python: its path on this machine, from "
        "the folder of this file.",
    )
    hardware: dict[str, _Fact] = Field(
        default={}, description="Facts for the reader, by name; nothing is computed from them."
    )
    notes: str = Field(default="", description="Text for the reader.")


_BRANCHES = ("constrained-int", "literal['measure']", "constrained-float", "float", "constrained-str", "str")
"""What pydantic adds to a location for the branches of a union."""


def file_schema() -> dict[str, Any]:
    """The JSON Schema of a target's file: every key with its type, its bounds and what it means."""
    return _Target.model_json_schema()


def targets_folder() -> Path:
    """The folder of the shipped targets: inside the installed package, or beside it in a source tree.

    Raises:
        TargetError: there is neither.
    """
    folder = shipped_folder("edge_targets")
    if folder.is_dir():
        return folder
    message = f"The shipped targets are missing: there is no edge_targets folder in or beside {PACKAGE}."
    raise TargetError(message)


def list_targets() -> tuple[Target, ...]:
    """Every shipped target, by name.

    Raises:
        TargetError: one of the files is wrong.
    """
    return tuple(_read(path) for path in sorted(targets_folder().glob("*.yaml")))


def load_target(name: str) -> Target:
    """A shipped target by its name, or a file of the user's own by its path (with a slash or ending in .yaml).

    NAME@FORMAT, NAME@PRECISION or NAME@FORMAT:PRECISION is the same device with another format or precision.

    Raises:
        TargetError: there is no such target, format or precision (the nearest names are given), or its file is wrong
            (with file and line).
    """
    base, setting = split(name)
    found = _found(base)
    return _varied(found, name, setting) if setting else found


def load_targets(names: Sequence[str], precisions: Sequence[Precision] = ()) -> tuple[Target, ...]:
    """The targets of these names, each in each of the precisions; one whose name has a precision is as it says.

    Raises:
        TargetError: as `load_target`.
    """
    wanted = []
    for name in names:
        base, setting = split(name)
        fixed = not precisions or ":" in setting or setting in PRECISIONS
        each = [setting] if fixed else [f"{setting}:{p}" if setting else p for p in precisions]
        wanted += [with_setting(base, one) for one in each]
    return tuple(load_target(name) for name in wanted)


def split(name: str) -> tuple[str, str]:
    """A target's name or path, and what follows it with "@": another format or precision, "" if there is none."""
    base, at, setting = name.rpartition("@")
    is_name = not setting or "/" in setting or setting.endswith((".yaml", ".yml"))  # of a file with @ in its path
    return (name, "") if not at or is_name else (base, setting)


def with_setting(base: str, setting: str) -> str:
    """The name that ``split`` takes apart."""
    return f"{base}@{setting}" if setting else base


def is_path(name: str) -> bool:
    """Whether a target is named by the path of its file."""
    base, _ = split(name)
    return "/" in base or Path(base).suffix in {".yaml", ".yml"}


def _found(name_or_path: str) -> Target:
    path = Path(name_or_path)
    if is_path(name_or_path):
        if not is_file(path):
            message = f"There is no target file {shown(name_or_path, 200)}."
            raise TargetError(message)
        return _read(path)
    shipped = {file.stem: file for file in sorted(targets_folder().glob("*.yaml"))}
    if name_or_path not in shipped:
        message = f"There is no target '{shown(name_or_path)}'.{_perhaps(name_or_path, list(shipped))}"
        raise TargetError(message)
    return _read(shipped[name_or_path])


def _is_precision(text: str) -> TypeGuard[Precision]:
    return text in PRECISIONS


def _varied(found: Target, name: str, setting: str) -> Target:
    """The same device with another format or precision: its own benchmark program and known errors don't hold there.

    Without a device attached, latency is still predicted from its rates, which are of the format and precision of its
    file: ``rates_of`` says so.
    """
    first, colon, second = setting.partition(":")
    form, precision = (found.format, first) if not colon and first in PRECISIONS else (first, second or found.precision)
    if form not in EXPORT_FORMATS or not _is_precision(precision) or (colon and not second):
        known = (*EXPORT_FORMATS, *PRECISIONS)
        wrong = first if first not in known else second
        message = (
            f"There is no target '{shown(name)}': after @ stands a format ({', '.join(EXPORT_FORMATS)}), a precision "
            f"({', '.join(PRECISIONS)}) or both, as in {found.name}@litert:int8.{perhaps(wrong, known)}"
        )
        raise TargetError(message)
    same = (form, precision) == (found.format, found.precision)
    return replace(
        found, name=f"{found.name}-{setting.replace(':', '-')}", format=form, precision=precision,
        runtime=found.runtime if form == found.format else EXPORT_FORMATS[form],
        granularity=found.granularity if same or found.runner is None else None,
        program=found.program if form == found.format else None, error=found.error if same else None,
        rates_of=None if same or found.roofline is None else f"{found.format} in {found.precision}",
    )  # fmt: skip


def _read(path: Path) -> Target:
    raw = _parse(path)
    if (odd := strict_yaml.odd(raw)) is not None:
        key, problem = odd
        message = f"{path}:{_line(raw, key)}: {shown('.'.join(map(str, key)))} {problem}."
        raise TargetError(message)
    try:
        part = _Target.model_validate(strict_yaml.plain(raw), strict=True)
    except ValidationError as error:
        raise TargetError(_explain(path, raw, error)) from error
    if part.runner == "none" and part.roofline is None:
        message = f"{path}: a target with 'runner: none' needs a 'roofline:' to predict its latency from."
        raise TargetError(message)
    _require_rates_of_its_own(path, part)
    return _target(part, path.parent)


def _parse(path: Path) -> CommentedMap:
    raw = strict_yaml.read(path, TargetError)
    if not isinstance(raw, CommentedMap):
        message = f"{path}:1: a target is a mapping with the keys {', '.join(_Target.model_fields)}."
        raise TargetError(message)
    return raw


def _target(part: _Target, folder: Path) -> Target:
    step, devices = part.granularity.value, [part.runner] if isinstance(part.runner, str) else part.runner
    return Target(
        name=part.name,
        title=part.title,
        format=part.format,
        precision=part.precision,
        runtime=part.runtime,
        granularity=None if step == "measure" else step,
        runner=None if devices == ["none"] else devices[0],
        alike=tuple(devices[1:]),
        threads=part.threads,
        roofline=None if part.roofline is None else _roofline(part.roofline, part.precision),
        error=None if part.error is None else ErrorBand(**part.error.model_dump()),
        notes=part.notes.strip(),
        program=None if part.program is None else str(folder / Path(part.program).expanduser()),
    )


def _require_rates_of_its_own(path: Path, part: _Target) -> None:
    """Rates hold in the precision that they are of; those of int8 are so far from others that a file has to say so."""
    rates = part.roofline
    if rates is None or rates.precision == part.precision or (rates.precision is None and part.precision != "int8"):
        return
    told = f"are of {rates.precision}" if rates.precision else "aren't said to be of int8"
    message = (
        f"{path}: its precision is {part.precision}, and the rates under 'roofline:' {told}. Give rates of "
        f"{part.precision}, with 'precision: {part.precision}' among them."
    )
    raise TargetError(message)


def _roofline(part: _Roofline, precision: Precision) -> Roofline:
    given = {key: number for key, number in part if isinstance(number, _Number | _Overhead)}
    source = " ".join(f"{key}: {number.source}." for key, number in given.items())
    return Roofline(**{key: number.value for key, number in given.items()}, source=source, precision=precision)


def _explain(path: Path, raw: CommentedMap, error: ValidationError) -> str:
    """One sentence on the first thing that is wrong, with the file's line."""
    found = error.errors(include_url=False)
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    where = [str(step) for step in first["loc"] if step not in _BRANCHES]
    line = _line(raw, where)
    key = shown(".".join(where))
    if first["type"] == "extra_forbidden":
        known = _known_keys(where[:-1])
        return f"{path}:{line}: unknown key '{key}'.{_perhaps(where[-1], known)}"
    if first["type"] == "missing":
        return f"{path}:{line}: the key '{key}' is missing."
    told = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    return f"{path}:{line}: '{key}' is {shown(repr(first['input']))}: {told[0].lower()}{told[1:]}."


def _line(raw: CommentedMap, where: Sequence[Any]) -> int:
    """The line, from 1, of the deepest key on the way that the file has."""
    line, node = 1, raw
    for key in where:
        if not isinstance(node, CommentedMap) or key not in node:
            break
        line, node = node.lc.key(key)[0] + 1, node[key]
    return line


def _known_keys(where: list[str]) -> list[str]:
    model: Any = _Target
    for key in where:
        options = [model.model_fields[key].annotation, *getattr(model.model_fields[key].annotation, "__args__", ())]
        model = next((each for each in options if isinstance(each, type) and issubclass(each, BaseModel)), _Fact)
    return list(model.model_fields)


def _perhaps(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Perhaps you meant '{near[0]}'?" if near else f" Known: {', '.join(known)}."
