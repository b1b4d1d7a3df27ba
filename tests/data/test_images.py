import importlib.util
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from deploy_prune.data.images import SUFFIXES, read_image
from deploy_prune.device import PAYLOAD
from deploy_prune.errors import DataError


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
        read_image(path, (8, 8), 3)


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 9), (9, 0)])
def test_an_empty_image_is_an_error(tmp_path, width, height):
    path = tmp_path / "empty.png"
    path.write_bytes(png(width, height))
    with pytest.raises(DataError, match=r"empty\.png "):
        read_image(path, (8, 8), 3)


@pytest.mark.parametrize(("size", "fits"), [((4, 4), True), ((3, 4), False), ((300, 3), False), ((1, 1), False)])
def test_each_side_has_some_pixels(tmp_path, size, fits):
    path = saved(tmp_path, Image.new("RGB", size))
    if fits:
        assert read_image(path, (8, 8), 3).shape == (8, 8, 3)
    else:
        with pytest.raises(DataError, match=rf"a\.png is an image of {size[0]}x{size[1]} pixels"):
            read_image(path, (8, 8), 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight(tmp_path, channels):
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    found = read_image(saved(tmp_path, Image.fromarray(grey)), (16, 16), channels)
    assert np.array_equal(found, np.repeat((grey // 257)[..., None], channels, 2))


def read_rgb(path, size=8):
    return read_image(path, (size, size), 3).astype(int)


# --- as a viewer shows it ---

CORNER = np.zeros((40, 60, 3), np.uint8)  # neither mirrored nor turned is it the same
CORNER[:20, :30], CORNER[30:, 50:] = (220, 30, 30), (30, 30, 220)
STORED = {  # EXIF orientation -> what a camera held so stores
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1), 9: lambda a: a,
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("orientation", STORED)
def test_photos_are_upright(tmp_path, orientation, suffix):
    options = {"quality": 95} if suffix in {".jpg", ".webp", ".avif"} else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](CORNER)))
    turned = saved(tmp_path, stored, f"turned{suffix}", exif=exif, **options)
    plain = saved(tmp_path, Image.fromarray(CORNER), f"plain{suffix}", **options)
    for channels in (1, 3):
        difference = read_image(turned, (32, 32), channels).astype(int) - read_image(plain, (32, 32), channels)
        assert np.abs(difference).mean() < (2 if options else 0.1)


def test_an_upright_reader_turns_the_right_way(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = read_rgb(saved(tmp_path, Image.fromarray(np.ascontiguousarray(np.rot90(CORNER))), exif=exif), 40)
    assert found[2, 2].tolist() == [220, 30, 30]
    assert np.array_equal(found, CORNER[:, 10:50])


def test_damaged_exif_is_no_orientation(tmp_path):
    path = saved(tmp_path, Image.fromarray(CORNER), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\xff" + b"\xff" * 5)
    assert np.array_equal(read_rgb(path, 40), CORNER[:, 10:50])


def test_transparency_is_laid_on_white(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    share = colours[..., 3:] / 255
    shown = colours[..., :3] * share + 255 * (1 - share)
    assert np.abs(read_rgb(saved(tmp_path, Image.fromarray(colours))) - shown).max() <= 1
    assert np.abs(read_rgb(saved(tmp_path, Image.fromarray(colours), "a.tif")) - shown).max() <= 1
    grey = Image.fromarray(colours[..., 2:])  # LA
    shown = colours[..., 2:3] * share + 255 * (1 - share)
    assert np.abs(read_rgb(saved(tmp_path, grey)) - shown).max() <= 1
    palette = Image.fromarray(colours[..., :3]).quantize(16)
    alphas = np.arange(16) * 17
    share = alphas[np.asarray(palette)][..., None] / 255
    shown = np.asarray(palette.convert("RGB")) * share + 255 * (1 - share)
    path = saved(tmp_path, palette, "palette.png", transparency=bytes(alphas.tolist()))
    assert np.abs(read_rgb(path) - shown).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "clear"),
    [
        (np.full((8, 8), 7, np.uint8), 7),
        (np.full((8, 8), 4000, np.uint16), 4000),
        (np.full((8, 8, 3), (10, 20, 30), np.uint8), (10, 20, 30)),
    ],
)
def test_a_colour_that_stands_for_transparent_becomes_white(tmp_path, pixels, clear):
    path = saved(tmp_path, Image.fromarray(pixels), transparency=clear)
    assert (read_rgb(path) == 255).all()
    assert (read_rgb(saved(tmp_path, Image.fromarray(pixels))) < 255).all()


def test_sixteen_bits_are_scaled_by_the_bit_depth_not_by_what_is_used(tmp_path):
    grey = (np.arange(256, dtype=np.uint16) * 16).reshape(16, 16)  # 12 bits in 16
    for name in ("a.png", "a.tif", "a.pgm"):
        found = read_image(saved(tmp_path, Image.fromarray(grey), name), (16, 16), 1)[..., 0]
        assert np.array_equal(found, np.rint(grey / 257))
    pgm = b"P5 16 16 4095\n" + grey.astype(">u2").tobytes()  # here the file says so
    (tmp_path / "twelve.pgm").write_bytes(pgm)
    assert np.abs(read_image(tmp_path / "twelve.pgm", (16, 16), 1)[..., 0] - grey * (255 / 4095)).max() <= 1
    negative = saved(tmp_path, Image.fromarray(65535 - grey), "negative.tif", tiffinfo={262: 0})
    assert np.array_equal(read_image(negative, (16, 16), 1)[..., 0], np.rint(grey / 257))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_are_refused(tmp_path, kind):
    path = saved(tmp_path, Image.fromarray(np.ones((8, 8), kind)), "a.tif").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png can't be read as an image: it has 32 bits a value .*save it with 8"):
        read_image(path, (8, 8), 3)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif", ".tif"])
def test_of_an_animation_the_first_frame_counts(tmp_path, suffix):
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 200, 0))
    found = read_rgb(saved(tmp_path, first, f"a{suffix}", save_all=True, append_images=[second]))
    assert np.abs(found - (200, 0, 0)).max() <= 4


def test_cmyk_and_one_bit(tmp_path):
    colours = Image.new("RGB", (8, 8), (200, 100, 40))
    found = read_rgb(saved(tmp_path, colours.convert("CMYK"), "a.jpg", quality=95))
    assert np.abs(found - (200, 100, 40)).max() <= 6
    bits = np.random.default_rng(0).random((8, 8)) > 0.5
    for name in ("a.png", "a.tif", "a.bmp", "a.pbm"):
        assert np.array_equal(read_rgb(saved(tmp_path, Image.fromarray(bits), name))[..., 0], bits * 255)


# --- only the formats of the table ---


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_of_the_table_is_read_by_content(tmp_path, suffix):
    path = saved(tmp_path, Image.new("L", (8, 8), 100), f"a{suffix}")
    assert np.abs(read_rgb(path) - 100).max() <= 3
    assert np.abs(read_rgb(path.rename(tmp_path / "other.jpg")) - 100).max() <= 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "its content is EPS"),
        (b"8BPS\0\1" + bytes(40), "its content is PSD"),
        (b"%PDF-1.7\n", "its content is PDF"),
        (b"<!DOCTYPE html><title>403</title>", "its content is an HTML page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "its content is HEIC, which must be converted first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "its content is a Git LFS pointer"),
        (b"", "its content is empty"),
        (b"\0" * 100, "it is damaged, or none of JPEG, PNG"),
    ],
)
def test_other_content_is_named_and_starts_no_program(tmp_path, monkeypatch, content, says):
    monkeypatch.setattr("subprocess.Popen", None)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path, (8, 8), 3)
    assert f"{path} can't be read as an image: {says}" in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="it is no regular file"):
        read_image(tmp_path / "a.png", (8, 8), 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp", ".webp", ".tif", ".ppm", ".avif"])
def test_what_is_cut_off_is_an_error(tmp_path, suffix):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = saved(tmp_path, noise, f"a{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="can't be read as an image"):
        read_image(path, (8, 8), 3)


def test_a_bundle_reads_every_file_as_training_does(tmp_path):
    """run.py of a bundle, loaded from a folder of its own, as a user starts it."""
    for name in ("run.py", "picture.py"):
        shutil.copyfile(PAYLOAD / name, tmp_path / name)
    spec = importlib.util.spec_from_file_location("bundle_run", tmp_path / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    exif = Image.Exif()
    exif[0x0112] = 6
    colours = np.random.default_rng(0).integers(0, 256, (12, 20, 4), np.uint8)
    rgb, told = Image.fromarray(colours[..., :3]), {"input_shape": [1, 3, 8, 8], "fit": "cut", "pad": None}
    paths = [
        saved(tmp_path, rgb, "a.jpg", exif=exif), saved(tmp_path, Image.fromarray(colours), "b.png"),
        saved(tmp_path, rgb.convert("CMYK"), "c.jpg"), saved(tmp_path, rgb.quantize(8), "d.gif", transparency=1),
        saved(tmp_path, Image.fromarray(colours.view(np.uint16)[..., 0]), "e.png"),
    ]  # fmt: skip
    for path in paths:
        assert np.array_equal(run.picture(path, told)[0], read_image(path, (8, 8), 3))
