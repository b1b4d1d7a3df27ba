"""Images per second from JPEGs to training batches, beside torchvision's ImageFolder and a DataLoader; in turns.

    python benchmarks/reading.py [--images N] [--turns N] [--workers 0 1 2]

Aim: at least 0.95 of torchvision's rate. The pictures are made here: 500 x 375 pixels, smooth with some noise, about 60
kB each. Both sides decode, crop, resize to 224, mirror every second one and normalise; batches have 64 images, and each
is read once in a turn, so that nothing is taken from memory. Torchvision's side is `RandomResizedCrop` and
`RandomHorizontalFlip` of its second version, with PIL's images; this package's `augment: crop_flip`. One thread a
process. Time is the wall's, and with 0 workers also the processor's, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import _results
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from deploy_prune.data import pictures
from deploy_prune.data.loaders import batches
from deploy_prune.data.splits import load
from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.recipe.data import DataPart

SIZE, BATCH, WIDE, HIGH = 224, 64, 500, 375
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Reader = Callable[[Path, int], Iterable[Any]]


def write(root: Path, num: int) -> None:
    """So many JPEGs of two classes."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
    for i in range(num):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((WIDE, HIGH), 3)
        noisy = np.asarray(coarse, np.float32) + rng.normal(0, 12, (HIGH, WIDE, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / "ab"[i % 2] / f"{i}.jpg", quality=90)


def ours(root: Path, workers: int) -> Iterable[Any]:
    """Training batches of a folder."""
    part = DataPart(
        source="folder", root=str(root), image_size=SIZE, mean=MEAN, std=STD, augment="crop_flip", workers=workers,
    )  # fmt: skip
    return batches(load(part, 0).source_train, BATCH, seed=0)


def theirs(root: Path, workers: int) -> Iterable[Any]:
    """The same of torchvision's."""
    import_torchvision()
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.RandomResizedCrop(SIZE, scale=(0.6, 1.0)), v2.RandomHorizontalFlip(), v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    folder = ImageFolder(root / "train", transform=transform)
    return DataLoader(folder, batch_size=BATCH, shuffle=True, num_workers=workers)


def timed(reader: Reader, root: Path, workers: int, num: int) -> tuple[float, float]:
    """Seconds of the wall and of this process's processor time for so many batches; files were looked at before."""
    stream = reader(root, workers)
    wall, processor = time.perf_counter(), time.process_time()
    found = list(islice((len(batch[1]) for batch in stream), num))
    took = time.perf_counter() - wall, time.process_time() - processor
    assert found == [BATCH] * num
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures._KEPT = pictures._Kept(0)  # type: ignore[misc]
    num, rows = given.images // BATCH, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part, count in (("train", num * BATCH), ("test", 2)):
            (root / part).mkdir()
            write(root / part, count)
        kilobytes = sum(path.stat().st_size for path in (root / "train").rglob("*.jpg")) / num / BATCH / 1e3
        for workers in given.workers:
            taken = [
                [timed(reader, root, workers, num) for reader in (ours, theirs)] for _ in range(given.turns + 1)
            ][1:]  # fmt: skip
            row: dict[str, Any] = {"workers": workers}
            for kind, name in enumerate(("wall", "processor")[: 1 if workers else 2]):
                mine, others = ([turn[side][kind] for turn in taken] for side in range(2))
                row |= {
                    f"ours_per_s_{name}": round(num * BATCH / statistics.median(mine), 1),
                    f"theirs_per_s_{name}": round(num * BATCH / statistics.median(others), 1),
                    f"ratio_{name}": round(statistics.median(b / a for a, b in zip(mine, others, strict=True)), 3),
                }
            print(row, flush=True)
            rows.append(row)
    _results.write("reading", {"rows": rows}, images=num * BATCH, jpeg_kb=round(kilobytes, 1), turns=given.turns)


if __name__ == "__main__":
    main()
