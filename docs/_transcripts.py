"""What `docs/first-ten-minutes.md` shows: its commands are run, and what they print is put below them.

    python docs/_transcripts.py [SCRATCH]      (the tool must be installed; SCRATCH: a folder to work in)

The pictures are scikit-learn's handwritten digits, written as JPEG files into a folder for each class. Commands print
as into a file: tables are as wide as they are. What a command tells of its progress goes to stderr, and isn't shown.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

PAGE: Final = Path(__file__).parent / "first-ten-minutes.md"
BLOCK: Final = re.compile(r"(```console\n\$ )(.*)\n(?:.*\n)*?(```\n)")
"""A command, and what it printed when the page was made."""
SIDE: Final = 32


def draw(folder: Path) -> None:
    """Digits as JPEG files, CLASS/NUMBER.jpg."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    for number, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
        place = folder / str(label) / f"{number:04}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).resize((SIDE, SIDE)).save(place, quality=95)


def told(command: str, folder: Path) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it fails; with what it says.
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "NO_COLOR": "1", "PATH": path}
    done = subprocess.run(shlex.split(command), cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"$ {command}\n{done.stdout}{done.stderr}"
        raise RuntimeError(message)
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def commands(page: str) -> list[str]:
    """The page's commands, in its order."""
    return [match[2] for match in BLOCK.finditer(page)]


def made(page: str, folder: Path) -> str:
    """The page with what its commands print now."""

    def shown(match: re.Match[str]) -> str:
        print(f"$ {match[2]}", flush=True)
        return f"{match[1]}{match[2]}\n{told(match[2], folder)}\n{match[3]}"

    return BLOCK.sub(shown, page)


def main() -> None:
    """Write the page anew."""
    with TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if sys.argv[1:] else Path(scratch)
        draw(folder / "photos")
        PAGE.write_text(made(PAGE.read_text(encoding="utf-8"), folder), encoding="utf-8")


if __name__ == "__main__":
    main()
