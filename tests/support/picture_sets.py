"""Small data sets of pictures with a coloured rectangle each, whose box and mask are known, as they are read."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deploy_prune.data.boxes import load_boxes
from deploy_prune.recipe.data import BoxesPart

COLOURS = np.array([[230, 30, 30], [30, 230, 30], [30, 30, 230]], np.uint8)
NAMES = ("red", "green", "blue")


def picture(number, size=(96, 64)):
    """Grey noise with a rectangle of the class ``number % 3``: uint8 [H, W, 3], its box, its class."""
    wide, high = size
    generator = np.random.default_rng(number)
    image = np.repeat(generator.integers(60, 140, (high, wide, 1), np.uint8), 3, 2)
    left, top = int(generator.integers(2, wide // 2)), int(generator.integers(2, high // 2))
    right, bottom = left + int(generator.integers(8, wide // 2 - 2)), top + int(generator.integers(8, high // 2 - 2))
    image[top:bottom, left:right] = COLOURS[number % 3]
    return image, (left, top, right, bottom), number % 3


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def xml(size, objects):
    """A VOC annotation; ``objects``: names and boxes in pixels from edge to edge."""
    parts = [f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"]
    for name, (left, top, right, bottom) in objects:
        corners = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        parts.append(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def voc(root: Path, train=6, test=3, size=(96, 64)):
    """JPEGImages (as PNG, without losses), Annotations, ImageSets; the pictures of the two parts follow each other."""
    names = [f"p{i}" for i in range(train + test)]
    for number, name in enumerate(names):
        image, box, label = picture(number, size)
        save(root / f"JPEGImages/{name}.png", image)
        write(root / f"Annotations/{name}.xml", xml(size, [(NAMES[label], box)]))
    write(root / "ImageSets/Main/train.txt", "\n".join(names[:train]))
    if test:
        write(root / "ImageSets/Main/test.txt", "\n".join(names[train:]))
    return root


def coco(root: Path, train=6, test=3, size=(96, 64)):
    """annotations/instances_train2017.json, train2017/, and the same of val."""
    first = 0
    for part, num in (("train2017", train), ("val2017", test)):
        images, annotations = [], []
        for number in range(first, first + num):
            image, (left, top, right, bottom), label = picture(number, size)
            save(root / part / f"{number}.png", image)
            images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
            box = [left, top, right - left, bottom - top]
            annotations.append({"id": number, "image_id": number, "category_id": 10 * label + 1, "bbox": box})
        categories = [{"id": 10 * i + 1, "name": name} for i, name in enumerate(NAMES)]
        told = {"images": images, "annotations": annotations, "categories": categories}
        if num:
            write(root / f"annotations/instances_{part}.json", json.dumps(told))
        first += num
    return root


def yolo(root: Path, train=6, test=3, size=(96, 64)):
    """data.yaml, images/train, labels/train, and the same of val."""
    first = 0
    for part, num in (("train", train), ("val", test)):
        for number in range(first, first + num):
            image, (left, top, right, bottom), label = picture(number, size)
            save(root / f"images/{part}/{number}.png", image)
            numbers = ((left + right) / 2 / size[0], (top + bottom) / 2 / size[1], (right - left) / size[0])
            line = f"{label} {' '.join(f'{x:.9f}' for x in (*numbers, (bottom - top) / size[1]))}\n"
            write(root / f"labels/{part}/{number}.txt", line)
        first += num
    text = f"path: {root}\ntrain: images/train\nval: images/val\nnames:\n"
    write(root / "data.yaml", text + "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES)))
    return root


def masks(root: Path, train=6, test=3, size=(96, 64)):
    """train/images, train/masks, and the same of val: 0 around, 1 + the class within."""
    first = 0
    for part, num in (("train", train), ("val", test)):
        for number in range(first, first + num):
            image, (left, top, right, bottom), label = picture(number, size)
            mask = np.zeros((size[1], size[0]), np.uint8)
            mask[top:bottom, left:right] = label + 1
            save(root / part / f"images/{number}.png", image)
            save(root / part / f"masks/{number}.png", mask)
        first += num
    return root


def is_coloured(x, label):
    """bool [H, W]: where an image float [3, H, W] in 0..1 has the colour of this class."""
    other = [c for c in range(3) if c != label]
    return (x[label] > 1.25 * x[other].amax(0)) & (x[label] > 0.1)


def coloured_box(x, label):
    """Left, top, right, bottom of the pixels of a class's colour."""
    rows, columns = is_coloured(x, label).nonzero(as_tuple=True)
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def load(root, source="voc", seed=0, **keys):
    """Pictures with boxes, as they are stored: neither normalised nor varied."""
    given = {"image_size": [64, 96], "mean": [0.0] * 3, "std": [1.0] * 3, "augment": "none"} | keys
    return load_boxes(BoxesPart(source=source, root=str(root), **given), seed)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def everything(examples):
    return torch.arange(len(examples))
