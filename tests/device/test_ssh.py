"""What only ssh can do wrong: keys, hosts, ports, and its connections."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy_prune.device import ABOUT, reach
from deploy_prune.device.ssh import OPTIONS
from deploy_prune.errors import CommandError

pytestmark = pytest.mark.ssh


def options(monkeypatch, *changes):
    """More options in front of the others: ssh takes the first value of each."""
    monkeypatch.setenv(OPTIONS, f"{' '.join(changes)} {os.environ[OPTIONS]} -o ControlPath=none")


def failure(name):
    with pytest.raises(CommandError) as caught:
        reach(name)(ABOUT, {}, 30)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(name)
    return str(caught.value)


@pytest.fixture
def keys(ssh_server):
    return ssh_server.bin.parent


def test_a_key_that_the_device_does_not_know(ssh_server, keys, monkeypatch):
    monkeypatch.setenv(
        OPTIONS, os.environ[OPTIONS].replace(f"{keys}/user", f"{keys}/stranger") + " -o ControlPath=none"
    )
    assert "does not accept this user's key: add it there with ssh-copy-id" in failure(ssh_server.name)


def test_a_host_key_that_nobody_has_compared(ssh_server, monkeypatch, tmp_path):
    options(monkeypatch, f"-o UserKnownHostsFile={tmp_path}/none", "-o StrictHostKeyChecking=no")
    assert "its host key is not in known_hosts: connect once by hand" in failure(ssh_server.name)
    assert not (tmp_path / "none").exists()


def test_a_host_key_that_has_changed(ssh_server, keys, monkeypatch, tmp_path):
    known, other = (keys / "known_hosts").read_text().split(), (keys / "stranger.pub").read_text().split()
    (tmp_path / "changed").write_text(f"{known[0]} {other[0]} {other[1]}\n")
    options(monkeypatch, f"-o UserKnownHostsFile={tmp_path}/changed")
    assert "is it the same device?" in failure(ssh_server.name)


def test_nobody_listens(ssh_server, monkeypatch):
    options(monkeypatch)
    assert "no ssh server listens on this port" in failure("ssh://127.0.0.1:1")


def test_no_such_host(ssh_server):
    assert "there is no host of this name" in failure("ssh://nobody@no-such-host.invalid")


def test_options_that_ssh_does_not_know(ssh_server, monkeypatch):
    options(monkeypatch, "-o NoSuchOption=1")
    assert "ssh's options are wrong" in failure(ssh_server.name)
    monkeypatch.setenv(OPTIONS, "-i 'unclosed")
    with pytest.raises(CommandError, match="DEPLOY_PRUNE_SSH_OPTIONS can't be read: No closing quotation"):
        reach(ssh_server.name)(ABOUT, {}, 30)


def test_an_alias_from_the_users_configuration(ssh_server, keys, monkeypatch, tmp_path):
    port = ssh_server.name.rpartition(":")[2]
    config = tmp_path / "config"
    config.write_text(
        f"Host board\n  HostName 127.0.0.1\n  HostKeyAlias [127.0.0.1]:{port}\n  Port {port}\n"
        f"  IdentityFile {keys}/user\n  UserKnownHostsFile {keys}/known_hosts\n"
    )
    monkeypatch.setenv(OPTIONS, f"-F {config}")
    assert reach("ssh://board")(ABOUT, {}, 30)["about"]["cores"]


def test_one_connection_serves_many_commands_and_ends_with_the_program(ssh_server):
    """In a program of its own, whose end is seen from outside."""
    log = ssh_server.bin.parent / "log"
    before = log.read_text().count("Accepted publickey")
    code = """
import sys
from deploy_prune.device import ABOUT, reach
from deploy_prune.device.ssh import _control_folder
for _ in range(3):
    reach(sys.argv[1])(ABOUT, {}, 60)
print(_control_folder(), len(list(_control_folder().iterdir())), _control_folder().stat().st_mode & 0o777)
"""
    command = [sys.executable, "-c", code, ssh_server.name]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    folder, sockets, mode = done.stdout.split()
    assert (sockets, int(mode)) == ("1", 0o700)
    assert not Path(folder).exists()
    assert log.read_text().count("Accepted publickey") == before + 1
