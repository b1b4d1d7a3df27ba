"""Progress on a terminal and elsewhere."""

import io
import re
import sys

import pytest
import rich.console
from rich.table import Table
from rich.text import Text

from deploy_prune import types
from deploy_prune.commands import frame
from deploy_prune.report import terminal
from deploy_prune.report.terminal import (
    PLAIN_EVERY_S,
    PlainLines,
    in_words,
    rich_progress,
    targets_table,
    written_to,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_elsewhere_there_are_plain_lines_now_and_then():
    stream, now = io.StringIO(), [0.0]
    progress = PlainLines(written_to(stream), clock=lambda: now[0])
    for step in range(1, 101):
        now[0] = step * 0.1
        progress("train", step, 100, loss=1 / 3)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train: 1/100 loss=0.333"
    assert lines[-1] == "train: 100/100 loss=0.333"
    assert len(lines) == 10 / PLAIN_EVERY_S + 1


def test_lines_say_how_long_it_will_take():
    stream, now = io.StringIO(), [0.0]
    progress = PlainLines(written_to(stream), clock=lambda: now[0])
    for step in (1, 11, 31, 41):
        now[0] = step * 6.0
        progress("train", step, 41)
    now[0] = 300.0
    progress("train", 1, 41)
    assert stream.getvalue().splitlines() == [
        "train: 1/41", "train: 11/41, 3 min left", "train: 31/41, 60 s left", "train: 41/41", "train: 1/41",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.2, "1 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (9000, "2.5 h")]
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_narrow_terminal_shows_all_numbers(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with rich_progress(stream) as progress:
        progress("whole run", 3, 11)
        for step in range(1, 100):
            progress("pixel-8 50%: retrain with 1437 of 1437 examples", step, 300, loss=0.1234, cost=1.2e7)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue().split("whole run")[-1])
    assert "3/11" in last
    assert "99/300" in last
    assert re.search(r"99/300 \d+ s left", last)
    assert max(map(len, last.splitlines())) <= columns


def test_a_bar_says_how_long_is_left_of_parts_that_take_minutes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stream, now = Terminal(), [0.0]
    with rich_progress(stream) as progress:
        progress._bars.get_time = lambda: now[0]
        for part in range(8):
            now[0] = part * 90.0
            progress("whole run", part, 11)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue().split("whole run")[-1])
    assert "7/11" in last
    assert "6 min left" in last


def test_a_notebook_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(terminal.PrintableConsole, "is_interactive", True, raising=False)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    stream = io.StringIO()
    with rich_progress(stream) as progress:
        progress("whole run", 0, 2)
        progress("whole run", 2, 2)
    assert stream.getvalue() == "whole run: 0/2\nwhole run: 2/2\n"


def test_each_work_has_its_own_first_line():
    stream = io.StringIO()
    progress = PlainLines(written_to(stream), clock=lambda: 0.0)
    for work in ("search", "retrain host/50%"):
        progress(work, 1, 9)
        progress(work, 2, 9)
    assert stream.getvalue() == "search: 1/9\nretrain host/50%: 1/9\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.013541234, "0.0135"),
        (2.4749999, "2.47"),
        (32.351, "32.4"),
        (1234.56, "1235"),
        (1234, "1234"),
        (12.0, "12"),
        (48123456.7, "4.81e+07"),
        (0.0, "0"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_figures_have_three_significant_digits(value, shown):
    stream = io.StringIO()
    PlainLines(written_to(stream))("check", 1, 1, seconds=value)
    assert stream.getvalue() == f"check: 1/1 seconds={shown}\n"


def test_no_control_characters_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with rich_progress(stream) as progress:
        for step in range(1, 4):
            progress("train", step, 3, loss=2.0)
    assert stream.getvalue() == "train: 1/3 loss=2\ntrain: 3/3 loss=2\n"


class Cell:
    """Stands for IPython.display and for the output that it makes."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, told, *, raw, display_id):
        assert raw
        assert display_id
        assert not self.shown, "a second output"
        self.shown.append(told["text/plain"])
        return self

    def update(self, told, *, raw):
        assert raw
        self.shown.append(told["text/plain"])


def test_a_notebook_gets_one_output_with_a_line_for_every_work(monkeypatch, capsys):
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython.display", cell := Cell())
    with rich_progress() as progress:
        for work, done in (("search", 1), ("search", 2), ("export", 1), ("search", 2), ("export\x1b[2J", 2)):
            progress(work, done, 2, loss=0.5)
    assert cell.shown[:2] == ["search: 1/2 loss=0.5", "search: 2/2 loss=0.5"]
    assert cell.shown[-1].splitlines()[:2] == ["search: 2/2 loss=0.5", "export: 1/2 loss=0.5"]
    assert "\x1b" not in cell.shown[-1]
    assert capsys.readouterr() == ("", "")
    with rich_progress(stream := io.StringIO()) as progress:
        progress("train", 1, 2)
    assert stream.getvalue() == "train: 1/2\n"


def test_a_dumb_terminal_gets_plain_lines_too(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with rich_progress(stream) as progress:
        progress("train", 1, 2)
    assert stream.getvalue() == "train: 1/2\n"


def test_a_terminal_gets_a_bar_and_keeps_one_line_of_what_is_done(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with rich_progress(stream) as progress:
        progress("retrain [50%]", 1, 2, loss=0.25)
        progress("retrain [50%]", 2, 2, loss=0.125)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "\x1b[" in stream.getvalue()
    assert "retrain [50%]: 2/2 loss=0.125" in text


def test_targets_say_whether_they_are_measured():
    common = {"format": "onnx", "precision": "fp32", "runtime": "r", "granularity": 8, "threads": 1, "roofline": None}
    error = types.ErrorBand(median=0.12, low=0.8, high=1.2, networks=7, source="s")
    rows = [
        types.Target(name="host", title="this machine", runner="local", **common),
        types.Target(name="far", title="a phone", runner=None, **common),
        types.Target(name="known", title="a board", runner=None, error=error, **common),
    ]
    table = targets_table(rows)
    assert [str(cell) for cell in table.columns[0].cells] == ["host", "far", "known"]
    assert [str(cell) for cell in table.columns[-1].cells] == ["measured", "predicted", "predicted ±12% (7 networks)"]


def test_what_is_kept_of_each_group_is_a_row_of_blocks():
    stream = io.StringIO()
    progress = PlainLines(written_to(stream), clock=lambda: 0.0)
    progress("search", 1, 1, loss=1.5, **{"kept/stem": 1.0, "kept/block": 0.5, "kept/head": 0.0})
    assert stream.getvalue() == "search: 1/1 loss=1.5 █▅▁\n"


def test_many_groups_share_blocks():
    stream = io.StringIO()
    shares = {f"kept/{i}": float(i >= 50) for i in range(100)}
    PlainLines(written_to(stream), clock=lambda: 0.0)("search", 1, 1, **shares)
    blocks = stream.getvalue().strip().removeprefix("search: 1/1 ")
    assert len(blocks) <= 32
    assert blocks[0] == "▁"
    assert blocks[-1] == "█"


HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\u202ed\x9be\rf"
SHOWN = "a?]0;title?b?[2Jc?d?e f"
IN_A_TABLE = "a?]0;titleb?[2Jc?d?ef"  # rich leaves some out itself


def test_a_table_shows_no_control_characters(capsys):
    table = Table(HOSTILE)
    table.add_row(Text(HOSTILE))
    terminal.output().print(table, HOSTILE, markup=False)
    shown = capsys.readouterr().out
    assert shown.count(IN_A_TABLE) == 3
    assert not set(shown) & set("\x1b\x07\u202e\x9b\r")


def test_a_terminals_own_controls_stay():
    stream = io.StringIO()
    printing = terminal.PrintableConsole(
        file=stream, force_terminal=True, color_system="standard", legacy_windows=False
    )
    printing.print(Text(HOSTILE, style="red"))
    printing.clear()
    assert stream.getvalue() == f"\x1b[31m{IN_A_TABLE}\x1b[0m\n\x1b[2J\x1b[H"


def test_plain_progress_shows_no_control_characters():
    stream = io.StringIO()
    terminal.PlainLines(written_to(stream))(HOSTILE, 1, 1)
    assert stream.getvalue() == f"{SHOWN}: 1/1\n"


def test_what_a_command_says_has_no_control_characters(capsys):
    frame.say(f"{HOSTILE}\nnext")
    assert capsys.readouterr().out == f"{SHOWN}\nnext\n"
