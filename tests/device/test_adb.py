"""What only adb can do wrong: devices that it doesn't see, or may not use."""

import os

import pytest

from deploy_prune.device import ABOUT, reach
from deploy_prune.errors import CommandError


def failure(name):
    with pytest.raises(CommandError) as caught:
        reach(name)(ABOUT, {}, 30)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.adb
def test_a_serial_number_that_adb_does_not_see(adb_server):
    told = failure("adb://R58M12ABCDE")
    assert told.startswith(
        "adb://R58M12ABCDE: adb does not see it: plug it in, allow USB debugging, or use `adb connect`"
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("error: device unauthorized.", "it has not allowed this computer yet: look at its screen"),
        ("error: device offline", "plug it in anew, or restart adb"),
        ("error: no permissions (user in plugdev group)", "see the udev rules"),
        ("error: target doesn't support PTY args -Tt", "its Android is too old: 7 or newer is needed"),
        ("error: closed", "the connection was lost (adb: error: closed)"),
        ("", "the connection was lost."),
    ],
)
def test_what_adb_says(said, words, tmp_path, monkeypatch):
    (tmp_path / "adb").write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert words in failure("adb://R58M12ABCDE")


def test_no_adb(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "The command 'adb' is not on this machine" in failure("adb://R58M12ABCDE")
