"""A stand-in for adbd, the program on Android devices that the adb client speaks with: shell v2 and sync, over TCP.

After packages/modules/adb of the Android Open Source Project: protocol.txt, SYNC.TXT and shell_protocol.h. A message is
six little-endian words (command, arg0, arg1, length, checksum, magic) and data; a stream's WRTE waits for an OKAY.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

VERSION, MAX_DATA = 0x01000001, 1 << 18
BANNER = b"device::ro.product.name=standin;ro.product.model=standin;ro.product.device=standin;features=shell_v2,cmd\0"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class Connection:
    """One host's connection: its streams, and the one reader that serves them."""

    def __init__(self, link: socket.socket, env: Mapping[str, str], folder: Path) -> None:
        self.link, self.env, self.folder = link, env, folder
        self.streams: dict[int, Stream] = {}
        self.lock = threading.Lock()

    def serve(self) -> None:
        with self.link, suppress(OSError, EOFError):
            while True:
                command, theirs, ours, size, _, _ = struct.unpack("<4s5I", exactly(self.link.recv, 24))
                data = exactly(self.link.recv, size)
                if command == b"CNXN":
                    self.send(b"CNXN", VERSION, MAX_DATA, BANNER)
                elif command == b"OPEN":
                    self.open(theirs, data.rstrip(b"\0").decode())
                elif stream := self.streams.get(ours):
                    stream.take(command, data)
        for stream in list(self.streams.values()):
            stream.take(b"CLSE", b"")

    def send(self, command: bytes, arg0: int, arg1: int, data: bytes = b"") -> None:
        magic = int.from_bytes(command, "little") ^ 0xFFFFFFFF
        with self.lock, suppress(OSError):
            self.link.sendall(struct.pack("<4s5I", command, arg0, arg1, len(data), sum(data), magic) + data)

    def open(self, theirs: int, service: str) -> None:
        kind, _, rest = service.partition(":")
        work: Callable[[Stream], None]
        if kind.startswith("shell,v2"):
            work = lambda stream: run_shell(stream, rest, self.env, self.folder)  # noqa: E731
        elif kind == "sync":
            work = run_sync
        else:
            self.send(b"CLSE", 0, theirs)
            return
        stream = Stream(self, len(self.streams) + 1, theirs)
        self.streams[stream.ours] = stream
        self.send(b"OKAY", stream.ours, theirs)
        threading.Thread(target=stream.work, args=(work,), daemon=True).start()


class Stream:
    """One stream: what came is read with ``read``; ``write`` waits until the host has taken what was sent."""

    def __init__(self, connection: Connection, ours: int, theirs: int) -> None:
        self.connection, self.ours, self.theirs = connection, ours, theirs
        self.taken = threading.Semaphore(1)
        self.came: queue.Queue[bytes] = queue.Queue()
        self.rest = b""
        self.closed = False

    def work(self, work: Callable[[Stream], None]) -> None:
        with suppress(OSError, EOFError):
            work(self)
        self.connection.send(b"CLSE", self.ours, self.theirs)

    def take(self, command: bytes, data: bytes) -> None:
        if command == b"OKAY":
            self.taken.release()
        elif command == b"WRTE":
            self.came.put(data)
            self.connection.send(b"OKAY", self.ours, self.theirs)
        elif command == b"CLSE":
            self.closed = True
            self.came.put(b"")
            self.taken.release()

    def read(self, size: int) -> bytes:
        if not self.rest:
            self.rest = self.came.get()
        found, self.rest = self.rest[:size], self.rest[size:]
        return found

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_DATA):
            self.taken.acquire()
            if self.closed:
                raise EOFError
            self.connection.send(b"WRTE", self.ours, self.theirs, data[start : start + MAX_DATA])


def exactly(read: Callable[[int], bytes], size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = read(size - len(found))
        if not more:
            raise EOFError
        found += more
    return found


def run_shell(stream: Stream, script: str, env: Mapping[str, str], folder: Path) -> None:
    """Packets of (kind, length, data) both ways. When the host is gone, so is the script's standard input."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        ["sh", "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd=folder, start_new_session=True
    )
    lock = threading.Lock()

    def feed() -> None:
        with process.stdin, suppress(OSError, EOFError):
            while True:
                kind, size = struct.unpack("<BI", exactly(stream.read, 5))
                data = exactly(stream.read, size)
                if kind == CLOSE_STDIN:
                    return
                process.stdin.write(data)
                process.stdin.flush()

    def drain(kind: int, file) -> None:
        with suppress(OSError, EOFError):
            while data := os.read(file.fileno(), 1 << 15):
                with lock:
                    stream.write(struct.pack("<BI", kind, len(data)) + data)

    drains = [threading.Thread(target=drain, args=a) for a in ((STDOUT, process.stdout), (STDERR, process.stderr))]
    threading.Thread(target=feed, daemon=True).start()
    for thread in drains:
        thread.start()
    for thread in drains:
        thread.join()
    process.stdout.close()
    process.stderr.close()
    stream.write(struct.pack("<BIB", EXIT, 1, process.wait() & 0xFF))


def run_sync(stream: Stream) -> None:
    """Requests of (name, length, path), until QUIT."""
    while True:
        name, size = struct.unpack("<4sI", exactly(stream.read, 8))
        path = exactly(stream.read, size).decode()
        if name == b"STAT":
            found = Path(path).stat() if Path(path).exists() else None
            told = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
            stream.write(struct.pack("<4s3I", b"STAT", *told))
        elif name == b"SEND":
            answer(stream, lambda path=path: receive(stream, Path(path.rpartition(",")[0])))
        elif name == b"RECV":
            answer(stream, lambda path=path: give(stream, Path(path)))
        else:
            return


def answer(stream: Stream, work: Callable[[], bytes]) -> None:
    try:
        stream.write(work())
    except OSError as error:
        told = (error.strerror or "failed").encode()
        stream.write(struct.pack("<4sI", b"FAIL", len(told)) + told)


def receive(stream: Stream, path: Path) -> bytes:
    """A device takes all that comes, even if it can't keep it."""
    failure: OSError | None = None
    with suppress(FileNotFoundError):
        path.unlink()
    is_full = (path.parents[1] / "full").exists()  # what a test says
    with (Path("/dev/full") if is_full else path).open("wb", buffering=0) as file:
        while True:
            name, size = struct.unpack("<4sI", exactly(stream.read, 8))
            if name == b"DONE":
                break
            data = exactly(stream.read, size)
            try:
                file.write(data)
            except OSError as error:
                failure = error
    if failure:
        raise failure
    return struct.pack("<4sI", b"OKAY", 0)


def give(stream: Stream, path: Path) -> bytes:
    with path.open("rb") as file:
        while data := file.read(1 << 16):
            stream.write(struct.pack("<4sI", b"DATA", len(data)) + data)
    return struct.pack("<4sI", b"DONE", 0)


class Daemon:
    """The server: a port of its own, its connections, and a way to cut them."""

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.server.getsockname()[1])
        self.links: list[socket.socket] = []
        self.env, self.folder = env, folder
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self.server.accept()
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.links.append(link)
                threading.Thread(target=Connection(link, self.env, self.folder).serve, daemon=True).start()

    def unplug(self) -> None:
        for link in self.links:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self.links.clear()

    def close(self) -> None:
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.unplug()
