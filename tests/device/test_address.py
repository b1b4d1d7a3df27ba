"""Names of devices: what is let through, and that nothing else is."""

import pytest

from deploy_prune.device import reach
from deploy_prune.device.address import parse
from deploy_prune.errors import TargetError


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ssh://board", (None, "board", None, "python3")),
        ("ssh://pi@raspberrypi.local", ("pi", "raspberrypi.local", None, "python3")),
        ("ssh://pi@10.0.0.7:2222", ("pi", "10.0.0.7", 2222, "python3")),
        ("ssh://pi@[fe80::1%eth0]:22", ("pi", "fe80::1%eth0", 22, "python3")),
        ("ssh://pi@board/home/pi/my env/bin/python3", ("pi", "board", None, "/home/pi/my env/bin/python3")),
        ("adb://R58M12ABCDE", (None, "R58M12ABCDE", None, "python3")),
        ("adb://emulator-5554", (None, "emulator-5554", None, "python3")),
        ("adb://192.168.1.5:5555", (None, "192.168.1.5:5555", None, "python3")),
        ("adb://x:1/data/data/com.termux/usr/python3", (None, "x:1", None, "/data/data/com.termux/usr/python3")),
    ],
)  # fmt: skip
def test_names_of_devices(name, parts):
    address = parse(name)
    assert (address.user, address.host, address.port, address.python) == parts
    assert name.startswith(str(address))


def test_this_machine_has_no_address():
    assert parse("local") is None


@pytest.mark.parametrize("scheme", ["ssh", "adb"])
@pytest.mark.parametrize(
    "rest",
    [
        "", "-oProxyCommand=touch canary", "--", "a b", "a;touch canary", "$(touch canary)", "`touch canary`", "a\nb",
        "a\n",
        "a'b", 'a"b', "a\\b", "a\0b", "a|b", "a&b", "a>b", "@board", "-l@board", "a@-board", "a@b@c", "board:",
        "board:0x1", "board:-1", "[::1", "../board", "board/\npython3", "board?x", "~", "*", "ünï",
    ],
)  # fmt: skip
def test_other_names_are_refused(scheme, rest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if scheme == "adb" and rest in {"board:", "board:0x1", "board:-1"}:
        return  # serial numbers may have these
    with pytest.raises(TargetError, match="write local, ssh://") as caught:
        reach(f"{scheme}://{rest}")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "host", "telnet://board", "ssh:board", "http://a", "SSH://board", "ssh:/board"])
def test_unknown_schemes(name):
    with pytest.raises(TargetError, match="can't be reached that way"):
        reach(name)


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_ports(port):
    with pytest.raises(TargetError, match=f"has the port {port}; ports are 1 to 65535"):
        reach(f"ssh://board:{port}")
