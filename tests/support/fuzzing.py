"""Hostile input made of honest input: strategies that edit structure and bytes, and a watch on what reading it does."""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

from deploy_prune.errors import MAX_MESSAGE, DeployPruneError

MAX_S: Final = 20.0
"""One input may take so long, on a busy machine; honest ones take a hundredth of it."""
MAX_MEMORY_KB: Final = 2**20
"""All inputs of a kind may take 1 GiB above what the process has before."""


@dataclass(frozen=True)
class Raw:
    """JSON text that json.dumps would not write."""

    text: str


ODD: Final = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**30,
    -0.5,
    1e308,
    1e-320,
    0.1,
    "",
    " ",
    "x",
    "\x1b[2J",
    "\u202etxt",
    "a\nb",
    "\x00",
    "../../x",
    "/etc/passwd",
    "x/../../y",
    "evil:make",
    "evil",
    "torchvision:resnet18",
    "timm:nothing",
    "conv4",
    "nan",
    "1e9",
    "50%",
    "2001-99-99",
    "<<",
    "=cmd()",
    "local",
    "ssh://-oProxyCommand=x",
    "ssh://a@b:22/bin/sh",
    "adb://x",
    "q" * 5000,
    "w" * 200_000,
    [],
    {},
    [[]],
    {"": None},
    {"evil": [1]},
    [0] * 1000,
    [None] * 50_000,
    ["x"] * 7,
    Raw("9" * 5000),
    Raw("NaN"),
    Raw("-Infinity"),
    Raw("1e999"),
    Raw("[" * 5000 + "]" * 5000),
    Raw('{"a":' * 200 + "1" + "}" * 200),
    Raw('{"a": 1, "a": 2}'),
    Raw('"\\ud800"'),
    Raw("-"),
    Raw("!!python/name:os.system"),
)
"""Values that no honest file has where they are put."""
CHUNKS: Final = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x1b[31m",
    b'"',
    b"{",
    b"[",
    b"}",
    b"]",
    b",",
    b"\n",
    b"\n\t",
    b": ",
    b"- ",
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"!!binary ",
    b"!!python/object/apply:os.system [true]",
    b"%YAML 1.1\n---\n",
    b"---\n",
    b"...\n",
    b"? ",
    b"0x7fffffffffffffffffff",
    b"2001-12-14",
    b".inf",
    b"1_000",
    b"|\n",
    b"#",
    b"\xe2\x80\xae",
    b"9" * 400,
    b"[" * 400,
)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a JSON value."""
    yield here
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*here, key))


@st.composite
def edited(draw: st.DrawFn, honest: Any, most: int = 3) -> Any:
    """An honest value with some parts gone, replaced, repeated, renamed, moved into each other's places."""
    value: Any = [copy.deepcopy(honest)]
    for _ in range(draw(st.integers(0, most))):
        ways = [way for way in places(value) if way]
        if not ways:
            break
        way = draw(st.sampled_from(ways))
        holder = value
        for step in way[:-1]:
            holder = holder[step]
        _edit(draw, holder, way[-1], value, ways)
    return value[0] if value else None


def _edit(draw: st.DrawFn, holder: Any, key: Any, value: Any, ways: list[tuple[Any, ...]]) -> None:
    kind = draw(st.sampled_from(("replace", "replace", "remove", "rename", "repeat", "wrap", "take")))
    if kind == "replace":
        holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    elif kind == "remove":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from([odd for odd in ODD if isinstance(odd, str)]))] = holder.pop(key)
    elif kind == "repeat":
        holder[key] = [holder[key]] * draw(st.sampled_from((2, 50)))
    elif kind == "wrap":
        holder[key] = {"x": holder[key]}
    elif kind == "take":
        other: Any = value
        for step in draw(st.sampled_from(ways)):
            other = other[step] if isinstance(other, dict | list) else other
        holder[key] = copy.deepcopy(other)


def text_of(value: Any) -> str:
    """A value as JSON, with what json.dumps would not write."""
    raws: list[str] = []

    def marked(part: Any) -> str:
        raws.append(part.text)
        return f"@raw {len(raws) - 1}@"

    text = json.dumps(value, default=marked)
    for number, raw in enumerate(raws):
        text = text.replace(f'"@raw {number}@"', raw)
    return text


@st.composite
def damaged(draw: st.DrawFn, honest: bytes, most: int = 2) -> bytes:
    """Bytes with some cut off, flipped, put in, or there twice."""
    data = honest
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.sampled_from((1, 2, 8, 100))))
        kind = draw(st.sampled_from(("cut", "flip", "put", "drop", "twice")))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        elif kind == "put":
            data = data[:at] + draw(st.sampled_from(CHUNKS)) + data[at:]
        elif kind == "drop":
            data = data[:at] + data[to:]
        elif kind == "twice":
            data = data[:to] + data[at:]
    return data


@st.composite
def files(draw: st.DrawFn, honest: Any) -> bytes:
    """A JSON file, hostile in its structure, its bytes, or both."""
    data = text_of(draw(edited(honest))).encode("utf-8", "surrogatepass")
    return draw(damaged(data)) if draw(st.booleans()) else data


@dataclass
class Watch:
    """What reading hostile input does: outcomes by name, and what it must not do."""

    folder: Path
    outcomes: Counter[str] = field(default_factory=Counter)
    seen: list[str] = field(default_factory=list)
    armed: bool = False

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit event of Python."""
        if not self.armed:
            return
        if event in _PROCESSES or event.startswith(("socket.connect", "socket.bind", "ctypes.dlopen")):
            self.seen.append(f"{event} {args!r:.200}")
        elif event in _CHANGES or (event == "open" and not isinstance(args[0], int) and _writes(args[1], args[2])):
            self._place(event, args[0])

    def _place(self, event: str, path: Any) -> None:
        place = Path(os.fsdecode(path)).resolve() if isinstance(path, str | bytes | os.PathLike) else self.folder
        if not place.is_relative_to(self.folder) and place != Path(os.devnull):
            self.seen.append(f"{event} {place}")

    def __call__(self, work: Callable[[], Any], allowed: tuple[type[DeployPruneError], ...]) -> None:
        """Do it, and count how it ends. Anything but its end, and errors of these classes, is a fault."""
        start, self.armed, problem = time.monotonic(), True, None
        try:
            work()
        except allowed as error:
            problem = error
        finally:
            self.armed = False
        self.outcomes["read" if problem is None else type(problem).__name__] += 1
        assert str(problem).isprintable()
        assert len(str(problem)) <= MAX_MESSAGE + 3
        assert not self.seen, self.seen
        assert "evil" not in sys.modules
        assert time.monotonic() - start < MAX_S


_PROCESSES: Final = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.startfile", "pty.spawn"}
)
_CHANGES: Final = frozenset(
    {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
)
_watches: list[Watch] = []


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str) and set(mode) & set("wax+"):
        return True
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _hook(event: str, args: tuple[Any, ...]) -> None:
    for watch in _watches:
        watch.note(event, args)


@contextmanager
def watching(folder: Path) -> Iterator[Watch]:
    """Yield a watch; files may be written in this folder only."""
    if not getattr(sys, "_deploy_prune_audited", False):  # a hook stays as long as the process
        sys.addaudithook(_hook)
        sys._deploy_prune_audited = True  # type: ignore[attr-defined]
    watch = Watch(folder=folder.resolve())
    _watches.append(watch)
    before = memory_kb("VmRSS", reset=True)
    try:
        yield watch
    finally:
        _watches.remove(watch)
    assert memory_kb("VmHWM") - before < MAX_MEMORY_KB


def memory_kb(name: str, reset: bool = False) -> int:
    """Memory of this process; ``reset``: its peak begins anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
