"""Find a network's tensors in a weights file: they are saved under many names, and often more than once.

A state dict may be the whole file or an entry of it (`state_dict`, `model`, `net`, ...), and its names may begin with
what wrapped the network (`module.`, `model.`, `_orig_mod.`). An entry is taken if it has every tensor of the network in
the right shape. Where an entry and an average of it (`state_dict_ema`, `model_ema`) both fit, the average is taken, as
timm's ``load_checkpoint`` does by default; any other choice is the user's.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deploy_prune.errors import WeightsError
from deploy_prune.networks.torch_files import Content, Stored, opened, stored
from deploy_prune.system import pickles

_LOG = logging.getLogger(__name__)
_MAX_DEPTH: Final = 4  # entries within entries
_OPTIONAL: Final = "num_batches_tracked"  # counts steps; no result depends on it
_COUNTERS: Final = ("total_ops", "total_params", _OPTIONAL, "n_averaged")
"""What tools leave in networks: thop counts operations, torch's averaged networks their steps."""
_BESIDE: Final = frozenset({"criterion", "loss", "loss_fn", "loss_func", "loss_function", "metric", "metrics"})
"""What training programs hold beside the network, by the first part of its name."""
_COMPILED: Final = "_orig_mod."


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What was taken of a file. ``key``: the entry ("" the whole file) and what its names began with.

    ``others``: entries that would have fitted too. ``left``: tensors of the entry that are not the network's.
    """

    key: str
    why: str
    others: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """Tensors of an entry whose names begin with a prefix, by the names without it, and the entry's other tensors."""

    entry: str
    prefix: str
    tensors: Mapping[str, Stored]
    beside: tuple[str, ...]

    @property
    def key(self) -> str:
        return ".".join(part for part in (self.entry, self.prefix.rstrip(".")) if part)


def read_for(
    wanted: Mapping[str, Tensor], path: Path, key: str | None = None, fresh: Collection[str] = ()
) -> tuple[dict[str, Tensor], Taken]:
    """The network's tensors in a file, by the network's names, and what was taken.

    Args:
        wanted: the network's state dict.
        path: a .safetensors file, or what torch.save wrote.
        key: the entry to take, where several fit: its name, with names in it joined by dots.
        fresh: tensors that need not be there, and are not taken.

    Raises:
        WeightsError: missing, damaged, pickled code, or not this network's; the first tensor that differs is named.
    """
    with _entries(path) as entries:
        candidates = [found for entry, tensors in entries.items() for found in _parts(entry, tensors, wanted)]
        if key is not None:
            candidates = _named(candidates, entries, key, path)
        fitting = [found for found in candidates if not _misfit(wanted, found, fresh)]
        if not fitting:
            best = max(candidates, key=lambda found: len(found.tensors.keys() & wanted.keys()))
            message = f"model.weights: {path} does not fit the network: {_misfit(wanted, best, fresh)}."
            raise WeightsError(message)
        chosen, why = _chosen(fitting, wanted, path)
        state = _read(chosen, [name for name in wanted if name in chosen.tensors and name not in fresh], path)
    taken = Taken(
        key=chosen.key, why=why, others=tuple(found.key for found in fitting if found is not chosen),
        left=(*chosen.beside, *(name for name in chosen.tensors if name not in wanted)),
    )  # fmt: skip
    _tell(taken, path)
    return state, taken


def read_all(path: Path) -> dict[str, Tensor]:
    """The tensors of a file's one state dict (of several: the largest, an average first), without what wrapped them.

    Raises:
        WeightsError: missing, damaged, or pickled code.
    """
    with _entries(path) as entries:
        entry = max(entries, key=lambda name: (len(entries[name]), _is_average(name)))
        tensors = entries[entry]
        while tensors and len(first := {name.split(".")[0] for name in tensors}) == 1 and first & _WRAPPERS:
            tensors = {name.partition(".")[2]: found for name, found in tensors.items()}
        whole = _Candidate(entry=entry, prefix="", tensors=tensors, beside=())
        return _read(whole, list(tensors), path)


_WRAPPERS: Final = frozenset({"module", "model", "net", "network", "_orig_mod"})


@contextmanager
def _entries(path: Path) -> Iterator[dict[str, dict[str, Stored]]]:
    """Every state dict of a file, by its key, while the file is open."""
    if not path.is_file():
        message = f"model.weights: there is no file {path}."
        raise WeightsError(message)
    if path.suffix == ".safetensors":
        yield {"": _safetensors(path)}
        return
    try:
        with opened(path) as content:
            yield _state_dicts(content)
    except (ValueError, OSError) as error:
        hint = "; save network.state_dict(), best as .safetensors" if "pickled Python" in str(error) else ""
        message = f"model.weights: {path} can't be read: {error}{hint}."
        raise WeightsError(message) from error


def _safetensors(path: Path) -> dict[str, Stored]:
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        message = f"model.weights: {path} is not a whole .safetensors file: {error}"
        raise WeightsError(message) from error
    return {name: _held(name, tensor) for name, tensor in found.items()}


def _held(name: str, tensor: Tensor) -> Stored:
    return Stored(shape=tuple(tensor.shape), dtype=tensor.dtype, place=(name,), read=lambda: tensor)


def _state_dicts(content: Content) -> dict[str, dict[str, Stored]]:
    """All dicts of names and tensors."""
    found = dict[str, dict[str, Stored]]()
    todo, seen = deque([("", content.value, 0)]), set[int]()
    while todo:
        key, value, depth = todo.popleft()
        items = pickles.mapping(value)
        if items is None or id(value) in seen:
            continue
        seen.add(id(value))
        tensors = {name: tensor for name, item in items.items() if (tensor := stored(item, content)) is not None}
        if tensors:
            found[key] = tensors
        if depth < _MAX_DEPTH:
            todo += [(f"{key}.{name}".lstrip("."), item, depth + 1) for name, item in items.items()]
    if found or pickles.mapping(content.value) == {} and not _is_object(content.value):
        return found or {"": {}}
    message = "it is not a state dict (names and tensors, at the top or in an entry)"
    if any(map(_is_object, [content.value, *(pickles.mapping(content.value) or {}).values()])):
        message = "it holds pickled Python objects, a whole network maybe, which could run code when loaded"
    raise ValueError(message)


def _is_object(value: Any) -> bool:
    return isinstance(value, pickles.Made) and not pickles.is_call(value, {("collections", "OrderedDict")})


def _parts(entry: str, tensors: Mapping[str, Stored], wanted: Mapping[str, Tensor]) -> list[_Candidate]:
    """The entry's tensors under each prefix that the network's names have there, the most names first."""
    plain = {name.replace(_COMPILED, ""): found for name, found in tensors.items()}
    votes: Counter[str] = Counter()
    for name in plain:
        for at in (0, *(i + 1 for i, letter in enumerate(name) if letter == ".")):
            if name[at:] in wanted:
                votes[name[:at]] += 1
    most = max(votes.values(), default=0)
    prefixes = [prefix for prefix, count in votes.most_common() if 2 * count > most] or [""]
    return [
        _Candidate(
            entry=entry,
            prefix=prefix,
            tensors={name.removeprefix(prefix): found for name, found in plain.items() if name.startswith(prefix)},
            beside=tuple(name for name in plain if not name.startswith(prefix)),
        )
        for prefix in prefixes
    ]


def _named(candidates: Sequence[_Candidate], entries: Mapping[str, Any], key: str, path: Path) -> list[_Candidate]:
    found = [c for c in candidates if key in {c.key, c.entry}]
    if not found:
        keys = sorted({c.key for c in candidates} | {name for name in entries if name})
        message = f"model.weights_key: {path} has no state dict {key!r}; it has {_listed(keys, 20)}."
        raise WeightsError(message)
    return found


def _misfit(wanted: Mapping[str, Tensor], found: _Candidate, fresh: Collection[str]) -> str | None:
    """Why these tensors are not the network's; None if they are."""
    tensors = found.tensors
    for name, tensor in tensors.items():
        if tensor.problem and name in wanted and name not in fresh:
            return f"{name} {tensor.problem}"
    missing = [n for n in wanted if n not in tensors and not n.endswith(_OPTIONAL) and n not in fresh]
    unknown = [name for name in tensors if name not in wanted and not _is_beside(name, found.prefix)]
    if any(name.endswith("zero_point") for name in unknown):
        return "it is a quantised network's; give the weights of the float one"
    modules = {name.rpartition(".")[0] for name in missing}
    if len(modules) == 1 and not unknown:
        return f"it lacks {_listed(missing)}; if these are the class layers, model.head: new trains new ones"
    if missing or unknown:
        return f"it lacks {_listed(missing)} and has {_listed(unknown)} that the network has not"
    taken = {name: tensors[name] for name in wanted if name in tensors and name not in fresh}
    other = {name: tensor for name, tensor in taken.items() if tensor.shape != tuple(wanted[name].shape)}
    if other:
        name, tensor = next(iter(other.items()))
        said = f"{name} is {[*tensor.shape]} in the file and {[*wanted[name].shape]} in the network"
        return said + _offer(wanted, other)
    for name, tensor in taken.items():
        if tensor.dtype.is_floating_point != wanted[name].is_floating_point():
            return f"{name} is {tensor.dtype} in the file and {wanted[name].dtype} in the network"
    return None


def _offer(wanted: Mapping[str, Tensor], other: Mapping[str, Stored]) -> str:
    """What to do where only the numbers of outputs differ, by the same in all: the classes are others."""
    pairs = {(*found.shape[:1], *wanted[name].shape[:1]) for name, found in other.items()}
    alike = all(found.shape[1:] == tuple(wanted[name].shape[1:]) for name, found in other.items())
    if len(pairs) != 1 or not alike:
        return ""
    (there, here) = next(iter(pairs))
    return (
        f"; if these are {there} classes and you have {here}, model.head: new leaves {_listed(list(other))} out and "
        "trains new ones"
    )


def _is_beside(name: str, prefix: str) -> bool:
    """A tensor that is no part of a network, by its name."""
    return name.rpartition(".")[2] in _COUNTERS or (not prefix and name.split(".")[0] in _BESIDE)


def _chosen(fitting: Sequence[_Candidate], wanted: Mapping[str, Tensor], path: Path) -> tuple[_Candidate, str]:
    """One of the state dicts that fit, and why this one."""
    different: dict[tuple[Any, ...], _Candidate] = {}
    for found in fitting:
        different.setdefault(tuple(t.place for name, t in sorted(found.tensors.items()) if name in wanted), found)
    left = list(different.values())
    if len(left) == 1:
        return left[0], "the only one that fits" if len(
            fitting
        ) == 1 else "the first of those that fit, which are equal"
    averages = [found for found in left if _is_average(found.key)]
    if len(left) == 2 and len(averages) == 1:
        return averages[0], "the average of the weights, which fits as well as the last ones"
    keys = _listed([found.key or "the top" for found in left], 20)
    message = f"model.weights_key: {path} has several state dicts that fit the network, {keys}; write which."
    raise WeightsError(message)


def _is_average(key: str) -> bool:
    return any(part in {"ema", "averaged", "swa"} for part in key.lower().replace(".", "_").split("_"))


def _read(chosen: _Candidate, names: Sequence[str], path: Path) -> dict[str, Tensor]:
    state = {}
    for name in names:
        found = chosen.tensors[name]
        problem = found.problem
        if found.read is not None and problem is None:
            state[name] = found.read()
            if state[name].is_floating_point() and not bool(state[name].isfinite().all()):
                problem = "has values that are not finite"
        if problem:
            message = f"model.weights: {path} does not fit the network: {name} {problem}."
            raise WeightsError(message)
    return state


def _tell(taken: Taken, path: Path) -> None:
    """One line: a warning where there was a choice, or something else is in the file."""
    say: Callable[..., None] = partial(_LOG.log, logging.WARNING if taken.others else logging.INFO)
    others = f" (model.weights_key takes another: {_listed(list(taken.others))})" if taken.others else ""
    left = f"; not the network's, and left out: {_listed(list(taken.left))}" if taken.left else ""
    say("model.weights: %s: %s is taken, %s%s%s", path, taken.key or "the whole file", taken.why, others, left)


def _listed(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit]) or "nothing"
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
