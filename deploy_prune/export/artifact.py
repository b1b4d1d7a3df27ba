"""What a format is, and the description of a file that a format has written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from deploy_prune.errors import ExportError, MissingDependencyError
from deploy_prune.recipe import ExportPart
from deploy_prune.types import Artifact


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Packages that a format needs: the extra's name in pyproject.toml, and the modules that it brings."""

    name: str
    modules: tuple[str, ...]

    def require(self) -> None:
        """Check that all modules are there.

        Raises:
            MissingDependencyError: one is not; with the pip command.
        """
        missing = [module for module in self.modules if find_spec(module) is None]
        if missing:
            message = f"{' and '.join(missing)} not installed: run `pip install 'deploy-prune[{self.name}]'`."
            raise MissingDependencyError(message)


class Format(Protocol):
    """One file format: writes a network's artifact and runs it in the format's own runtime."""

    @property
    def suffix(self) -> str:
        """The file name's end, with its dot."""

    def write(self, network: nn.Module, example: Tensor, path: Path, precision: str, part: ExportPart) -> Artifact:
        """Write the network's artifact for inputs shaped as ``example`` [B, C, H, W] to ``path``."""

    def run(self, artifact: Artifact, x: Tensor) -> tuple[Tensor, ...]:
        """All outputs of the artifact, in the network's order, for inputs [N, C, H, W]; each output is [N, ...]."""


def describe(
    path: Path, *, format: str, precision: str, input_shape: Sequence[int], versions: Mapping[str, str]
) -> Artifact:
    """Describe a written file: its sha256 and what it was written with.

    Raises:
        ExportError: there is no such file.
    """
    if not path.exists():
        message = f"There is no artifact at {path}; export it again."
        raise ExportError(message)
    sha256 = _digest(path) if path.is_file() else _digest_folder(path)
    return Artifact(
        path=path,
        format=format,
        precision=precision,
        sha256=sha256,
        input_shape=tuple(input_shape),
        versions=dict(versions),
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_folder(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{_digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def flatten(outputs: Any) -> tuple[Tensor, ...]:
    """The tensors of a network's outputs (a tensor, or sequences and mappings of them) in order.

    Raises:
        ExportError: an output is neither a tensor, a sequence, a mapping nor None.
    """
    return tuple(_tensors(outputs))


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)
    elif outputs is not None:
        message = f"The network returns a {type(outputs).__name__}; only tensors, lists and dicts can be exported."
        raise ExportError(message)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards every module is in the mode it was in."""
    before = [(module, module.training) for module in network.modules()]
    with suppress(NotImplementedError):  # what torch.export made is in eval mode for good, and says so
        network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
