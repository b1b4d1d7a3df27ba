import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from deploy_prune.errors import DataError
from deploy_prune.images import read_image


def png(width, height, rows=b""):
    """A PNG of 8 bits of grey that says it has this size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize(("side", "says"), [(10_000, "100000000 pixels"), (40_000, "1600000000 pixels")])
def test_a_decompression_bomb_is_an_error(tmp_path, side, says):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    with pytest.raises(DataError, match=rf"bomb\.png can't be read as an image: Image size \({says}\)"):
        read_image(path, 8, 3)


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 9), (9, 0)])
def test_an_empty_image_is_an_error(tmp_path, width, height):
    path = tmp_path / "empty.png"
    path.write_bytes(png(width, height))
    with pytest.raises(DataError, match=r"empty\.png "):
        read_image(path, 8, 3)


@pytest.mark.parametrize(("size", "fits"), [((4, 4), True), ((3, 4), False), ((300, 3), False), ((1, 1), False)])
def test_each_side_has_some_pixels(tmp_path, size, fits):
    path = saved(tmp_path, Image.new("RGB", size))
    if fits:
        assert read_image(path, 8, 3).shape == (8, 8, 3)
    else:
        with pytest.raises(DataError, match=rf"a\.png is an image of {size[0]}x{size[1]} pixels"):
            read_image(path, 8, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight(tmp_path, channels):
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    found = read_image(saved(tmp_path, Image.fromarray(grey)), 16, channels)
    assert np.array_equal(found, np.repeat((grey // 257)[..., None], channels, 2))


def test_transparency_is_left_out(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    image = Image.fromarray(colours)
    assert np.array_equal(read_image(saved(tmp_path, image), 8, 3), colours[..., :3])
    palette = image.convert("RGB").quantize(16)
    path = saved(tmp_path, palette, "palette.png", transparency=bytes(range(16)))
    assert np.array_equal(read_image(path, 8, 3), np.asarray(palette.convert("RGB")))
