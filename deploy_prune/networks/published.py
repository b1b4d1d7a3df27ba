"""Published weights, by name: a library's own (``default``), or a file on the Hugging Face Hub (``hf://``).

They are fetched when a recipe asks for them, by the libraries' own downloaders into their own caches, and read as any
other file is: nothing in them is run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import torch

from deploy_prune.errors import WeightsError
from deploy_prune.networks.libraries import import_timm, import_torchvision
from deploy_prune.recipe.model import DEFAULT, HUB, ModelPart, is_published

PATIENCE_S: Final = 10.0
"""So long the hub is waited for, before what is in the cache is taken."""
_HASH_DIGITS: Final = 8
"""Torchvision's files have so many digits of their SHA-256 in their names (torch.hub's convention)."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that were fetched: the file, and which they are, in words (a revision is a commit of the hub's)."""

    path: Path
    told: str


def fetch(model: ModelPart) -> Published | None:
    """The file of published weights; None where the recipe names a file of its own, or none.

    Raises:
        WeightsError: the library has none for this network, or they are not in its cache and can't be fetched.
    """
    if model.weights is None or not is_published(model.weights):
        return None
    if model.weights != DEFAULT:
        return _from_hub(*_parts(model.weights))
    library, _, name = model.source.partition(":")
    return _DEFAULTS[library](name)


def _parts(name: str) -> tuple[str, str, str | None]:
    """Repository, file and revision of "hf://OWNER/NAME/FILE@REVISION"."""
    place, _, revision = name.removeprefix(HUB).partition("@")
    owner, repository, file = place.split("/", 2)
    return f"{owner}/{repository}", file, revision or None


def _from_hub(repository: str, file: str, revision: str | None = None) -> Published:
    hub = importlib.import_module("huggingface_hub")

    def load() -> Path:
        return Path(hub.hf_hub_download(repository, file, revision=revision, etag_timeout=PATIENCE_S))

    path = _fetched(load, f"{HUB}{repository}/{file}")
    above = path.parts[: -len(Path(file).parts)]  # .../snapshots/REVISION
    commit = above[-1] if above[-2:-1] == ("snapshots",) else revision or "an unknown revision"
    return Published(path=path, told=f"{HUB}{repository}/{file}@{commit}")


def _from_url(url: str, what: str) -> Published:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    digits = path.stem.rpartition("-")[2]

    def load() -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digits if len(digits) == _HASH_DIGITS else None)
        return path

    return Published(path=path if path.is_file() else _fetched(load, url), told=f"{what}, {url}")


def _fetched(load: Callable[[], Path], place: str) -> Path:
    try:
        return load()
    except Exception as error:  # of sockets, HTTP, certificates, disks
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        message = f"model.weights: {place} can't be fetched: {cause}. Where there is no network, fetch the file "
        message += "elsewhere and give its path as model.weights."
        raise WeightsError(message) from error


def _of_torchvision(name: str) -> Published:
    import_torchvision()
    try:
        weights: Any = importlib.import_module("torchvision.models").get_model_weights(name).DEFAULT
    except (ValueError, AttributeError) as error:
        message = f"model.weights: torchvision has no weights for {name}; leave model.weights out to train them here."
        raise WeightsError(message) from error
    return _from_url(weights.url, f"torchvision's {weights.name}")


def _of_timm(name: str) -> Published:
    found = import_timm().get_pretrained_cfg(name)
    if found is not None and found.hf_hub_id:
        return _from_hub(found.hf_hub_id, "model.safetensors")
    if found is not None and found.url:
        return _from_url(found.url, f"timm's {name}")
    message = f"model.weights: timm has no weights for {name}; leave model.weights out to train them here, or name a "
    message += "tag that has (timm.list_pretrained())."
    raise WeightsError(message)


_DEFAULTS: Final = {"torchvision": _of_torchvision, "timm": _of_timm}
