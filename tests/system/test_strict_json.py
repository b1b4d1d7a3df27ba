"""JSON from anywhere is counted before it is read, and has the shape asked for, or the error says where not."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from deploy_prune.errors import MeasurementError, RunFolderError
from deploy_prune.system import strict_json


def parse(text: str) -> object:
    return strict_json.parse(text, RunFolderError, "x.json")


@pytest.mark.parametrize("value", [None, {"a": [1, 2.5, "b", True]}, [], "[{", '"\\[', -(2**62), 1e-300])
def test_json_is_read(value: object) -> None:
    assert parse(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000 + "]" * 5000, "nested more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ("9" * 5000, "a whole number of 5000 digits"),
        ("1e999", "not finite"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"\u202ea": 1, "\u202ea": 2}', "'?a' appears twice"),
        ("[1", "it is not JSON"),
        ("", "it is not JSON"),
        ('"' + '\\"' * 200_000, "it is not JSON"),
    ],
    ids=lambda text: text[:20],
)
def test_what_no_honest_file_has_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(RunFolderError) as caught:
        parse(text)
    assert str(caught.value).startswith("x.json: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_file_is_plain_and_small(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b" " * 11)
    (tmp_path / "latin").write_bytes(b'"\xe9"')
    for name, words in {"fifo": "no file", ".": "no file", "none": "can't be read", "large": "10 bytes"}.items():
        with pytest.raises(RunFolderError, match=words):
            strict_json.read(tmp_path / name, RunFolderError, max_bytes=10)
    with pytest.raises(RunFolderError, match="can't be read"):
        strict_json.read(tmp_path / "latin", RunFolderError)


@dataclass(frozen=True, kw_only=True)
class Sample:
    times: tuple[Annotated[float, Field(gt=0)], ...]
    name: str = ""


def test_a_value_has_its_shape() -> None:
    found = strict_json.conform(Sample, {"times": [1, 2.5]}, MeasurementError, "the answer")
    assert found == Sample(times=(1.0, 2.5))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "the answer: "),
        ({}, "'times' is missing"),
        ({"times": 3}, "'times' is 3"),
        ({"times": ["3"]}, "'times.0' is '3'"),
        ({"times": [True]}, "'times.0' is True"),
        ({"times": [-1]}, "'times.0' is -1"),
        ({"times": [1], "name": ["\x1b[31m" * 1000]}, "'name' is ['"),
    ],
)
def test_or_the_sentence_says_where_not(value: object, words: str) -> None:
    with pytest.raises(MeasurementError) as caught:
        strict_json.conform(Sample, value, MeasurementError, "the answer")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("number", [1e-320, -1e-31, 1e19, 1e308])
def test_a_figure_is_one_that_can_be_computed_with(number: float) -> None:
    honest = {"a": [0, 0.0, 1e-30, 2**59, "1e308", None, True]}
    assert strict_json.figures(honest, RunFolderError, "it") == honest
    with pytest.raises(RunFolderError, match="no figure"):
        strict_json.figures({"a": [{"b": number}]}, RunFolderError, "it")
