"""Keep a bundle's network loaded, and answer for every picture that comes.

    python3 serve.py BUNDLE < pictures.txt                    a path on each line, an answer as JSON on each line
    python3 serve.py BUNDLE --socket /run/bundle/bundle.sock  the same for each program that connects to the socket

A picture is an image file (reading it takes Pillow) or an .npy with its bytes, uint8 [H, W, C], of the network's size.
The answer has "picture" and "ms", the time of the inference alone; and of a classifier "scores", name -> logit of the
highest five, of a detector "boxes" (name, score, left, top, right, bottom in pixels of the picture), of a segmenter
"shares", the share of each class in words. If something is wrong with one picture, it has "error" instead, and the next
picture is answered.

Needs Python 3.10, numpy and the bundle's runtime, nothing else. It loads what the bundle's own python/run.py does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socketserver
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BEST = 5
MAX_LINE = 4096
"""Bytes of a path."""


class Service:
    """A bundle's network, loaded once. Inferences take turns: it has one thread, as it was measured."""

    def __init__(self, bundle: Path) -> None:
        self._run = loaded(bundle / "python" / "run.py")
        self._made = self._run.beside("answers")
        self._told = self._run.read_json(bundle, "preprocessing.json")
        self._post = self._run.read_json(bundle, self._run.POSTPROCESSING)
        self._labels = self._run.read_json(bundle, "labels.json")["labels"]
        model = self._run.model_of(bundle)
        self._batch = model["input_shape"][0]
        self._device = self._run.beside("device")
        self._model = self._device.load(model, 1)
        self._turn = threading.Lock()

    def answer(self, picture: str) -> dict[str, Any]:
        """What the network says about one picture."""
        try:
            pixels, size = self._run.picture(Path(picture), self._told)
            x = self._run.preprocess(pixels[None], self._told).repeat(self._batch, 0)
            with self._turn:
                begin = time.perf_counter()
                found = [y[:1] for y in self._device.outputs(self._model, self._batch, x)]
                ms = (time.perf_counter() - begin) * 1e3
            return {"picture": picture, "ms": round(ms, 3), **self._meaning(found, size)}
        except Exception as error:  # runtimes' exceptions have no common base but Exception
            return {"picture": picture, "error": " ".join(str(error).split())}

    def _meaning(self, outputs: list[Any], size: tuple[int, int]) -> dict[str, Any]:
        """What outputs [1, ...] say about a picture of this width and height."""
        if self._post["kind"] not in self._run.DECODED:
            logits = outputs[0][0].ravel()
            best = logits.argsort()[::-1][:BEST]
            return {"scores": {self._labels[i]: float(logits[i]) for i in best}}
        (decoded,) = self._made.decode(self._post, outputs, (self._told["height"], self._told["width"]))
        one = self._run.in_picture(decoded, size, self._told)
        if self._post["kind"] == "pixels":
            return {"shares": self._made.pixel_shares(one["classes"], self._labels)}
        each = zip(one["labels"], one["scores"], one["boxes"], strict=True)
        sure = [(i, s, box) for i, s, box in each if s >= self._made.SURE]
        return {"boxes": [[self._labels[i], float(s), *map(float, box)] for i, s, box in sure]}


def loaded(path: Path) -> Any:
    """A Python file of the bundle, loaded by its path: its folder stays off sys.path, where it would hide runtimes."""
    spec = importlib.util.spec_from_file_location("bundle_run", path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"serve.py: {path} is missing: is its folder a bundle?")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(service: Service, given: Iterable[bytes]) -> Iterator[bytes]:
    """An answer for each line that isn't empty."""
    for line in given:
        if picture := os.fsdecode(line).strip():
            yield (json.dumps(service.answer(picture)) + "\n").encode()


class Server(socketserver.ThreadingUnixStreamServer):
    """A thread for each program that is connected."""

    daemon_threads = True


def listen(service: Service, path: Path) -> None:
    """Answer on a socket until the process is ended. What another service left there is replaced."""

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for answer in lines(service, iter(lambda: self.rfile.readline(MAX_LINE), b"")):
                self.wfile.write(answer)

    if path.is_socket():
        path.unlink()
    with Server(str(path), Connection) as server:
        print(f"ready: {path}", file=sys.stderr, flush=True)
        server.serve_forever()


def main() -> None:
    """Load the bundle, then answer."""
    parser = argparse.ArgumentParser(description="Keep a bundle's network loaded and answer for every picture.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--socket", type=Path, help="a Unix socket to make; default: standard input and output")
    options = parser.parse_args()
    sys.dont_write_bytecode = True  # a bundle with files that it doesn't list is no longer whole
    service = Service(options.bundle.resolve())
    if options.socket:
        return listen(service, options.socket)
    for answer in lines(service, sys.stdin.buffer):
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()
    return None


if __name__ == "__main__":
    main()
