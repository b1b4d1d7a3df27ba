"""What a format is, and the description of a file that a format has written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import torch
from torch import nn
from torch.export import ExportedProgram

from deploy_prune.errors import ExportError, MissingDependencyError, SurgeryError
from deploy_prune.export.inputs import Flat, Given, count, several
from deploy_prune.export.inputs import flatten as flatten
from deploy_prune.export.rewrite import rewritten
from deploy_prune.networks.copies import require_plain
from deploy_prune.networks.tracing import tracing, why_not_traced
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.shell import digest
from deploy_prune.types import Artifact

_PROGRAM: Final = "_deploy_prune_program"


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Packages that a format needs beside the core dependencies: an extra of this package, and what is imported."""

    name: str
    modules: tuple[str, ...]

    def require(self) -> None:
        """Raise MissingDependencyError, with the pip command, if one of the packages isn't installed."""
        missing = [module for module in self.modules if find_spec(module) is None]
        if missing:
            message = (
                f"This needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
                f"pip install 'deploy-prune[{self.name}]'"
            )
            raise MissingDependencyError(message)


class Format(Protocol):
    """One file format: writes a network's artifact. A module of this package with these attributes."""

    @property
    def suffix(self) -> str:
        """The end of the artifact's path, with its dot."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that ``write`` can really write, of fp32, fp16 and int8."""

    @property
    def runtime(self) -> str | None:
        """What runs it: a file of ``device/payload``; None: it can't be run here."""

    @property
    def extra(self) -> Extra | None:
        """What it needs to be installed; None: the core dependencies are enough."""

    @property
    def packages(self) -> tuple[str, ...]:
        """What a file's content and its check depend on, by pip's names: converters, and the runtime."""

    def write(
        self,
        network: nn.Module,
        example: Given,
        path: Path,
        precision: str,
        part: ExportPart,
        calibration: Given | None = None,
    ) -> Artifact:
        """Write the network's artifact for inputs shaped as ``example`` [B, ...], several in order, to ``path``.

        The file's inputs and outputs are float32 whatever the precision.

        Args:
            network: an nn.Module, or the module of a torch.export program; its mode is put back afterwards.
            example: fixes the input's shape.
            path: a file or a folder; it appears under this name only when complete.
            precision: one of ``precisions``.
            part: how artifacts are written.
            calibration: [N, ...] for each input, real ones, normalised as in training; needed for int8.

        Raises:
            ExportError: it can't be written.
        """


def require(name: str, kind: Format, precision: str) -> None:
    """Raise if the format's packages aren't there (MissingDependencyError) or it can't write the precision.

    Raises:
        MissingDependencyError: with the pip command.
        ExportError: with the precisions that there are.
    """
    if precision not in kind.precisions:
        message = f"The format {name} can't be written in {precision}; it has {', '.join(kind.precisions)}."
        raise ExportError(message)
    if kind.extra is not None:
        kind.extra.require()


def require_fixed(
    what: str, precisions: Sequence[str], precision: str, part: ExportPart, example: Given, calibration: Given | None
) -> None:
    """Raise if a file of a fixed batch size can't be written so: precision, open batch, or calibration inputs for int8.

    Raises:
        ExportError: with what there is instead.
    """
    if precision not in precisions:
        message = f"{what} can't be written in {precision}, only in {', '.join(precisions)}."
        raise ExportError(message)
    if part.dynamic_batch:
        message = f"{what} has a fixed batch size: set export.dynamic_batch to false."
        raise ExportError(message)
    shapes = [x.shape for x in several(example)]
    if precision == "int8" and (calibration is None or count(several(calibration), shapes) < 1):
        found = "none were given" if calibration is None else f"{len(several(calibration)[0])} were given"
        message = f"An int8 file needs at least {shapes[0][0]} calibration inputs (real training inputs); {found}."
        raise ExportError(message)


def describe(
    path: Path,
    *,
    format: str,
    precision: str,
    input_shape: Sequence[int],
    versions: Mapping[str, str],
    layout: Literal["NCHW", "NHWC"] = "NCHW",
) -> Artifact:
    """Describe a written file or folder: its sha256 (see ``shell.digest``) and what it was written with.

    Raises:
        ExportError: there is no such file.
    """
    if not path.exists():
        message = f"There is no artifact at {path}; export it again."
        raise ExportError(message)
    return Artifact(
        path=path,
        format=format,
        precision=precision,
        sha256=digest(path),
        input_shape=tuple(input_shape),
        versions=dict(versions),
        layout=layout,
    )


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards every module is in the mode it was in.

    The module of a torch.export program is as it was exported: it has no modes.
    """
    before = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
    except NotImplementedError:
        yield
        return
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def quiet() -> Iterator[None]:
    """Keep converters' own warnings, which no user can act on, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def export_program(network: nn.Module, example: Given, part: ExportPart) -> ExportedProgram:
    """The network's torch.export program, for inputs shaped as ``example`` [B, ...]; B is free if the part says so.

    For a module that ``as_module`` has made, the program that it was made of.

    Raises:
        ExportError: torch.export can't trace it.
    """
    known = vars(network).get(_PROGRAM)
    if known is not None:
        assert isinstance(known, ExportedProgram)
        return known
    try:
        require_plain(network)
    except SurgeryError as error:
        raise ExportError(str(error)) from error
    shapes: Any = None
    inputs = several(example)
    if part.dynamic_batch:  # a batch of 1 would be taken for a constant
        inputs, batch = tuple(torch.cat([x[:1]] * 2) for x in inputs), torch.export.Dim("batch")
        shapes = tuple({0: batch} for _ in inputs)
        shapes = (shapes,) if isinstance(network, Flat) else shapes
    try:
        with tracing(network), torch.no_grad():  # with gradients, attention with a learned bias is traced another way
            program = torch.export.export(network, inputs, dynamic_shapes=shapes, strict=False)
            return rewritten(program)
    except Exception as error:  # torch passes on whatever the network's own code raises
        raise ExportError(why_not_traced(network, inputs, error)) from error


def as_module(program: ExportedProgram) -> nn.Module:
    """The program as a module; ``export_program`` gives the program back."""
    module = program.module()
    vars(module)[_PROGRAM] = program
    return module


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or its type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
