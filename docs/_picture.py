"""A picture of a page, small enough for a repository: python docs/_picture.py PAGE.html PICTURE.png [CHROMIUM]."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIZE = "1100,950"
COLOURS = 64
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")


def picture(page: Path, out: Path, chromium: str = "chromium") -> None:
    """Show the page in a headless browser, and write what is seen with few colours."""
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile) / "shot.png"
        command = [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            *QUIET,
        ]
        command += [
            f"--user-data-dir={profile}",
            f"--window-size={SIZE}",
            f"--screenshot={shot}",
            page.absolute().as_uri(),
        ]
        subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)
        with Image.open(shot) as seen:
            seen.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
