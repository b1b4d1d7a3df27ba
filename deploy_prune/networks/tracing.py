"""Run and trace a network's own code: it is left as it was, torch stays quiet, and what fails is named by its place."""

from __future__ import annotations

import linecache
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.networks.copies import compiled_code
from deploy_prune.networks.unchanged import unchanged

_TORCH: Final = Path(torch.__file__).parent
_PACKAGE: Final = Path(__file__).parents[1]
_STANDARD: Final = Path(linecache.__file__).parent
_BY_VALUES: Final = ("data-dependent", "data dependent", "DataDependent", "on traced Tensors", "unbacked")
_CODE: Final = 100
"""Characters of a line of code that a message quotes."""


@contextmanager
def tracing(network: nn.Module) -> Iterator[None]:
    """Inside, torch may trace the network: nothing is printed or warned of, and the network is as before afterwards.

    What is compiled in place runs as plain PyTorch inside.
    """
    before = logging.root.manager.disable
    with unchanged(network), warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")  # of an error, torch prints the whole graph
        for module in network.modules():
            vars(module).update(compiled_code(module))
            if module._compiled_call_impl is not None:
                module._compiled_call_impl = None
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def why_not_traced(network: nn.Module, inputs: Sequence[Tensor], error: BaseException) -> str:
    """Sentences for an error of tracing: what torch says, in which module, file and line, and what to change.

    The network is run on the inputs in eval mode, to see whether it fails without tracing, too.
    """
    failure = _failure(network, inputs)
    if failure is None:
        return f"The network can't be traced by torch.export: {told(network, error)}{_advice(error)}"
    shapes = " and ".join(str(list(x.shape)) for x in inputs)
    message = f"The network fails on inputs {shapes}: {told(network, failure)}"
    if all(len(x) > 1 for x in inputs) and _failure(network, [x[:1] for x in inputs]) is None:
        message += " It takes one example; let it take several, along dimension 0 of its inputs and its outputs."
    return message


def _failure(network: nn.Module, inputs: Sequence[Tensor]) -> Exception | None:
    """What the network raises when it is run in eval mode, or None."""
    try:
        with tracing(network), torch.no_grad():
            with suppress(NotImplementedError):  # the module of an exported program has no modes
                network.eval()
            network(*inputs)
    except Exception as error:  # noqa: BLE001  whatever its own code raises
        return error
    return None


def told(network: nn.Module, error: BaseException) -> str:
    """An error of the network's code as a sentence: type, first line, and the place where there is one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = (lines or [""])[0][:300].rstrip(".")
    if first.startswith("Constraints violated") and len(lines) > 1:
        first = lines[1].removeprefix("- ")[:300].rstrip(".")
    where = place(network, error)
    return f"{type(error).__name__}: {first}{', in ' + where if where else ''}."


def _advice(error: BaseException) -> str:
    text = f"{type(error).__name__} {error}"
    if any(words in text for words in _BY_VALUES):
        return " What runs must not depend on a tensor's values: use torch.where, or do it outside the network."
    if "Constraints violated" in text:
        return " The code takes the batch size for a constant: take it from the input's shape each time."
    return ""


def place(network: nn.Module, error: BaseException) -> str:
    """Where in the network's code an error came from: "head.cls (Conv2d), /x/net.py:12: `y = self.cls(x)`"; or ""."""
    names = {id(module): name for name, module in network.named_modules()}
    for link in _chain(error):
        owner = _owners(names, link)[-1:]
        lines = [(frame, number) for frame, number in _frames(link) if _is_users(frame)]
        methods = [(frame, number) for frame, number in lines if id(frame.f_locals.get("self")) in names]
        if lines and (owner or link is error):
            frame, number = (methods or lines)[-1]
            file = frame.f_code.co_filename
            code = linecache.getline(file, number).strip()[:_CODE]
            module = "".join(f"{names[id(m)] or 'the network'} ({type(m).__name__}), " for m in owner)
            return f"{module}{file}:{number}{f': `{code}`' if code else ''}"
    return ""


def failed_module(network: nn.Module, error: BaseException) -> str:
    """The name of the innermost module that holds others and whose code an error came from; "" if none is known."""
    names = {id(module): name for name, module in network.named_modules()}
    owners = [owner for link in _chain(error) for owner in _owners(names, link) if any(True for _ in owner.children())]
    return names[id(owners[-1])] if owners else ""


def _owners(names: Mapping[int, str], error: BaseException) -> list[nn.Module]:
    """The modules whose methods an error came through, the innermost last."""
    return [
        m for frame, _ in _frames(error) if id(m := frame.f_locals.get("self")) in names and isinstance(m, nn.Module)
    ]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came of."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Frames and line numbers, the outermost first."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _is_users(frame: FrameType) -> bool:
    """Whether code is neither torch's, nor Python's, nor ours."""
    file = Path(frame.f_code.co_filename)
    return not (file.is_relative_to(_TORCH) or file.is_relative_to(_PACKAGE) or _is_standard(file))


def _is_standard(file: Path) -> bool:
    return file.parent == _STANDARD or str(file).startswith("<") or file.stem in ("contextlib", "functools")


def module_path(node: torch.fx.Node) -> str:
    """The name of the module whose code made a node of a program, as in ``named_modules``; "" of the network itself."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(next(reversed(stack.values()))[0])
    return path.removeprefix("L['self'].").removeprefix("L['self']")
