"""How a picture becomes an input, and places in it go along."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from deploy_prune.device.payload import picture

sides = st.integers(4, 300)
inputs = st.integers(8, 96)
fits = st.sampled_from(picture.FITS)


@given(size=st.tuples(sides, sides), width=inputs, height=inputs, fit=fits, corners=st.tuples(*[st.floats(0, 1)] * 4))
@settings(max_examples=200, deadline=None)
def test_places_come_back(size, width, height, fit, corners):
    (left, top, right, bottom), at = picture.placement(size, width, height, fit)
    span = np.array([right - left, bottom - top] * 2)
    boxes = (np.array([left, top] * 2) + span * np.array(corners))[None]  # within what is used
    there = picture.to_input(boxes, size, width, height, fit)
    assert (there[:, :2] >= np.array(at[:2]) - 1e-6).all()
    assert (there[:, 2:] <= np.array(at[2:]) + 1e-6).all()
    assert np.allclose(picture.to_picture(there, size, width, height, fit), boxes, atol=1e-6)


@given(size=st.tuples(sides, sides), width=inputs, height=inputs, fit=fits)
@settings(max_examples=200, deadline=None)
def test_the_used_part_fills_the_input_as_the_fit_says(size, width, height, fit):
    (left, top, right, bottom), at = picture.placement(size, width, height, fit)
    across, down = (at[2] - at[0]) / (right - left), (at[3] - at[1]) / (bottom - top)
    whole = (left, top, right, bottom) == (0, 0, *size)
    covers = at == (0, 0, width, height)
    if fit == "stretch":
        assert whole
        assert covers
    elif fit == "cut":
        assert covers
        assert across == pytest.approx(down)
        assert right - left == pytest.approx(size[0]) or bottom - top == pytest.approx(size[1])
        assert left + right == pytest.approx(size[0])
        assert top + bottom == pytest.approx(size[1])
    else:
        assert whole
        assert at[0] == 0 or at[1] == 0  # one side is filled
        assert (
            at[2] - at[0] == pytest.approx(size[0] * min(width / size[0], height / size[1]), abs=0.5 + 1e-9)
            or at[2] - at[0] == 1
        )
        assert abs(at[0] - (width - at[2])) <= 1  # evenly on both sides
        assert abs(at[1] - (height - at[3])) <= 1


@given(size=st.tuples(st.integers(20, 120), st.integers(20, 120)), width=inputs, height=inputs, fit=fits)
@settings(max_examples=100, deadline=None)
def test_pixels_and_masks_are_where_places_say(size, width, height, fit):
    wide, high = size
    mask = np.zeros((high, wide), np.uint8)
    mask[high // 4 : high * 3 // 4, wide // 3 : wide * 2 // 3] = 1
    box = np.array([[wide // 3, high // 4, wide * 2 // 3, high * 3 // 4]], np.float64)
    left, top, right, bottom = np.clip(picture.to_input(box, size, width, height, fit)[0], 0, [width, height] * 2)
    fitted = picture.fitted_mask(mask, width, height, fit, pad=7)
    y, x = (np.arange(n) + 0.5 for n in (height, width))
    inside = ((y > top) & (y < bottom))[:, None] & ((x > left) & (x < right))
    assert ((fitted == 1) == inside).mean() > 1 - 2 / min(width, height)
    grey = picture.fitted(np.repeat(mask[..., None] * 200, 3, 2), width, height, fit)
    at = picture.placement(size, width, height, fit).at
    inner = np.zeros((height, width), bool)
    inner[at[1] : at[3], at[0] : at[2]] = True
    assert (fitted[~inner] == 7).all()
    assert (grey[~inner] == picture.PAD).all()
    middle = ((y > top + 2) & (y < bottom - 2))[:, None] & ((x > left + 2) & (x < right - 2)) & inner
    if min(wide / width, high / height) < 2:  # a wider filter reaches further
        assert (grey[middle] > 100).all()


@given(size=st.tuples(sides, sides), width=inputs, height=inputs, channels=st.sampled_from([1, 3]))
@settings(max_examples=50, deadline=None)
def test_a_cut_is_what_pillow_cuts(size, width, height, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    expected = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)).astype(int)
    found = picture.fitted(pixels, width, height, "cut").reshape(expected.shape)
    assert np.abs(found - expected).max() <= 1


def test_an_unknown_fit_is_refused():
    with pytest.raises(ValueError, match="there is no fit 'crop'; known: cut, letterbox, stretch"):
        picture.placement((4, 4), 8, 8, "crop")


def test_a_letterbox_of_a_wide_picture():
    pixels = np.full((10, 40, 3), 250, np.uint8)
    found = picture.fitted(pixels, 20, 20, "letterbox")
    assert (found[:7] == 114).all()
    assert (found[7:12] == 250).all()
    assert (found[12:] == 114).all()
    box = picture.to_input(np.array([[0.0, 0, 40, 10]]), (40, 10), 20, 20, "letterbox")
    assert box.tolist() == [[0, 7, 20, 12]]
