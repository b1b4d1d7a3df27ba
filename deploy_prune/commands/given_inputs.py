"""What ``--input`` says of a network's inputs, and examples of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import ModelError, perhaps
from deploy_prune.export.inputs import TYPES
from deploy_prune.types import Input

_DTYPES: Final = {name: dtype for dtype, name in TYPES.items()}
_FORM: Final = re.compile(r"(?:(?P<type>\w+):)?(?P<sizes>\d+(?:[,x]\d+)*)")
MOST: Final = 2**28
"""Elements of an input."""


def parse_inputs(texts: Sequence[str]) -> tuple[Input, ...]:
    """One example of each input, [1, ...], of texts such as "3x384x640", "1,16000" and "int64:77", one each in order.

    Raises:
        ModelError: a text can't be read.
    """
    return tuple(map(_parse, texts))


def _parse(text: str) -> Input:
    found = _FORM.fullmatch(text.replace(" ", ""))
    sizes = tuple(map(int, re.split("[,x]", found["sizes"]))) if found else ()
    kind = (found and found["type"]) or "float32"
    if kind not in _DTYPES:
        message = f"--input {text!r}: there is no type {kind!r}; known: {', '.join(_DTYPES)}.{perhaps(kind, _DTYPES)}"
        raise ModelError(message)
    if not sizes or not all(sizes) or torch.Size(sizes).numel() > MOST:
        message = (
            f"--input {text!r} is not the size of one example: write channels, height and width, as in 3x224x224, "
            "or 1x16000 for sound and int64:77 for tokens. Repeat --input for each input of the network."
        )
        raise ModelError(message)
    return Input(shape=(1, *sizes), type=kind)


def in_words(inputs: Sequence[Input]) -> str:
    """As ``--input`` takes them."""
    return ", ".join(("" if x.type == "float32" else f"{x.type}:") + "x".join(map(str, x.shape[1:])) for x in inputs)


def zeros(inputs: Sequence[Input]) -> tuple[Tensor, ...]:
    """An example of each, all zeros."""
    return tuple(torch.zeros(x.shape, dtype=_DTYPES[x.type]) for x in inputs)


def drawn(inputs: Sequence[Input], network: nn.Module, num: int) -> tuple[Tensor, ...]:
    """``num`` random examples of each, from torch's global generator.

    Whole numbers are below the length of the network's shortest table of embeddings (2 without any): they are tokens.
    """
    tables = [module.num_embeddings for module in network.modules() if isinstance(module, nn.Embedding)]

    def one(x: Input) -> Tensor:
        shape, dtype = (num, *x.shape[1:]), _DTYPES[x.type]
        if dtype.is_floating_point:
            return torch.randn(shape)
        return torch.randint(2 if dtype is torch.bool else min(tables, default=2), shape).to(dtype)

    return tuple(map(one, inputs))
