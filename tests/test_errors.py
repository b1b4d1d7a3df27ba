"""What files and devices say is shown without what steers a terminal or a spreadsheet."""

from __future__ import annotations

import pytest

from deploy_prune.errors import MAX_MESSAGE, RunFolderError, printable
from deploy_prune.run.folder import cell


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain, größer 50%", "plain, größer 50%"),
        ("\x1b[31mred", "?[31mred"),
        ("a\nb\tc\r", "a b c "),
        ("\u202egnp.exe", "?gnp.exe"),
        ("\x9b2J", "?2J"),
        ("\udcff", "?"),
        ("a\u2028b\x85c", "a b c"),
    ],
    ids=ascii,
)
def test_control_characters_go(text: str, clean: str) -> None:
    assert printable(text) == clean


def test_long_text_is_cut() -> None:
    assert printable("x" * 10, 4) == "xxxx..."
    assert printable("xxxx", 4) == "xxxx"


def test_an_error_quotes_nothing_that_steers_a_terminal() -> None:
    told = str(RunFolderError("\x1b]0;title\x07" + "x" * 10**6))
    assert told.isprintable()
    assert len(told) == MAX_MESSAGE + 3


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert str(cell(text)).startswith("'")


def test_numbers_stay_numbers() -> None:
    assert [cell(value) for value in (-1.5, None, 3, "50% macs")] == [-1.5, None, 3, "50% macs"]
