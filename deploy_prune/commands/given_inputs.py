"""What ``--input`` says of a network's inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Final

from deploy_prune.architecture.json_file import Architecture
from deploy_prune.errors import ModelError, perhaps
from deploy_prune.export.examples import DTYPES
from deploy_prune.types import Input

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
    if kind not in DTYPES:
        message = f"--input {text!r}: there is no type {kind!r}; known: {', '.join(DTYPES)}.{perhaps(kind, DTYPES)}"
        raise ModelError(message)
    if not sizes or not 0 < prod(sizes) <= MOST:
        message = (
            f"--input {text!r} is not the size of one example: write channels, height and width, as in 3x224x224, "
            "or 1x16000 for sound and int64:77 for tokens. Repeat --input for each input of the network."
        )
        raise ModelError(message)
    return Input(shape=(1, *sizes), type=kind)


def or_own(inputs: Sequence[Input], described: Architecture) -> tuple[Input, ...]:
    """The given inputs, [1, ...]; without any, those that an architecture was made for.

    Raises:
        ModelError: they are more or fewer than the architecture's, or of other ranks or types.
    """
    own = tuple(replace(x, shape=(1, *x.shape[1:])) for x in described.inputs)
    if inputs and [(len(x.shape), x.type) for x in inputs] != [(len(x.shape), x.type) for x in own]:
        asked, there = (" ".join(f"--input {as_given(x)}" for x in each) for each in (inputs, own))
        message = f"This architecture's inputs are of another kind than {asked}: they are as in {there}."
        raise ModelError(message)
    return tuple(inputs) or own


def as_given(one: Input) -> str:
    """As ``--input`` takes it."""
    return ("" if one.type == "float32" else f"{one.type}:") + "x".join(map(str, one.shape[1:]))
