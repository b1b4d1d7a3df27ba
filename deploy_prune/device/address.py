"""Names of devices: ``local``, ``ssh://[USER@]HOST[:PORT][/PYTHON]`` and ``adb://SERIAL[/PYTHON]``, read strictly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from deploy_prune.errors import TargetError

LOCAL: Final = "local"
FORMS: Final = "local, ssh://[USER@]HOST[:PORT] or adb://SERIAL (each with /path/to/python3 behind it, if need be)"
_PYTHON: Final = r"(?P<python>/[^\x00-\x1f\x7f]+)?"
_HOST: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_SSH: Final = re.compile(
    rf"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?P<host>{_HOST}|\[[0-9A-Fa-f:.]+(?:%{_HOST})?\])"
    rf"(?::(?P<port>[0-9]{{1,5}}))?{_PYTHON}"
)
_ADB: Final = re.compile(rf"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:-]*|\[[0-9A-Fa-f:.]+\]:[0-9]{{1,5}}){_PYTHON}")
_FORMS_BY_SCHEME: Final = {"ssh": _SSH, "adb": _ADB}


@dataclass(frozen=True, kw_only=True)
class Address:
    """A device that is not this machine. ``host``: its name or number, or for adb the serial number.

    ``python``: the interpreter to run there.
    """

    scheme: str
    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"

    def __str__(self) -> str:
        """As it is shown, without the interpreter."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if self.scheme == "ssh" and ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{user}{host}{port}"


def parse(device: str) -> Address | None:
    """The address of a device, or None for ``local``.

    Nothing else is let through, so that no part of a name can be taken for an option or for a command.

    Raises:
        TargetError: it is no device's name.
    """
    if device == LOCAL:
        return None
    scheme, separator, rest = device.partition("://")
    if not separator or scheme not in _FORMS_BY_SCHEME:
        message = f"The device {device!r} can't be reached that way; write {FORMS}."
        raise TargetError(message)
    found = _FORMS_BY_SCHEME[scheme].fullmatch(rest)
    if found is None:
        message = f"{device!r} is not the name of a device; write {FORMS}, in letters, digits, '.', '_' and '-'."
        raise TargetError(message)
    parts = found.groupdict()
    port = int(parts["port"]) if parts.get("port") else None
    if port is not None and not 0 < port < 2**16:
        message = f"{device!r} has the port {port}; ports are 1 to 65535."
        raise TargetError(message)
    host = parts["host"].strip("[]") if scheme == "ssh" else parts["host"]
    return Address(
        scheme=scheme, host=host, user=parts.get("user"), port=port, python=parts["python"] or Address.python
    )
