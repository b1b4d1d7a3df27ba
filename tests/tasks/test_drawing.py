"""What the built-in tasks draw into test pictures: the right things, in the right places and colours."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ImageColor

from deploy_prune.data.examples import Batch
from deploy_prune.device.payload.answers import SURE
from deploy_prune.errors import ModelError
from deploy_prune.tasks import drawing
from deploy_prune.tasks.detection import DETECTION
from deploy_prune.tasks.segmentation import FIRST_COLOUR, SEGMENTATION, VOID

HEIGHT, WIDTH = 32, 64
SCALE = drawing.SIDE / WIDTH
NAMES = ("cat", "dog", "hen")
PLACES = torch.tensor([1, 0])


def data(targets, names=NAMES):
    """Two dark pictures with these targets."""
    test = SimpleNamespace(
        pixels=lambda places: torch.zeros(len(places), 1, HEIGHT, WIDTH),
        take=lambda places: Batch(
            (torch.zeros(len(places), 1, HEIGHT, WIDTH),),
            [targets[i] for i in places] if isinstance(targets, list) else targets[places],
        ),
    )
    return SimpleNamespace(target_test=test, target_names=names, target_classes=(0, 1, 2))


def boxes(*rows, labels, **more):
    return {"boxes": torch.tensor(rows).float().reshape(-1, 4), "labels": torch.tensor(labels), **more}


def colour_at(drawn, x, y):
    """Of the place in the network's input."""
    return drawn.picture.getpixel((round(x * SCALE), round(y * SCALE)))


def rgb(colour):
    return ImageColor.getrgb(colour)


ONE, NONE = boxes([8, 4, 40, 28], labels=[2]), boxes(labels=[])
EDGE, INSIDE = (8, 20), (24, 24)
HEN = drawing.colours(3)[2]


def test_boxes_of_the_data_are_drawn_with_their_names():
    first, second = DETECTION.draw(data([NONE, ONE]), PLACES, None)
    assert first.picture.size == (drawing.SIDE, drawing.SIDE // 2)
    assert first.found == ((HEN, "hen"),)
    assert (colour_at(first, *EDGE), colour_at(first, *INSIDE)) == (rgb(HEN), (0, 0, 0))
    assert second.found == ()
    assert second.picture.getextrema() == ((0, 0),) * 3


def test_classes_without_names_are_numbered():
    assert DETECTION.draw(data([NONE, ONE], names=None), PLACES, None)[0].found == ((HEN, "2"),)


def test_of_predictions_those_are_drawn_that_are_sure_enough():
    said = {"scores": np.array([SURE + 0.004, SURE - 0.004]), "labels": np.array([2, 0])}
    predicted = {"boxes": np.array([[8, 4, 40, 28], [50, 4, 60, 28]], np.float32), **said}
    first, _ = DETECTION.draw(data([NONE, NONE]), PLACES, [predicted, {**predicted, "scores": np.zeros(2)}])
    assert first.found == ((HEN, "hen 0.30"),)
    assert colour_at(first, 50, 20) == (0, 0, 0)


def test_a_box_beyond_the_picture_or_upside_down_is_drawn_where_it_can_be():
    odd = boxes([40, 28, 8, 4], [-1e9, -1e9, 1e9, 1e9], labels=[2, 1])
    first, _ = DETECTION.draw(data([NONE, odd]), PLACES, None)
    assert colour_at(first, *EDGE) == rgb(HEN)


def test_masks_and_points_are_drawn_too():
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8)
    mask[0, 20:26, 20:28] = 1
    points = torch.tensor([[[30.0, 8.0, 1.0], [30.0, 12.0, 0.0]]])
    first, _ = DETECTION.draw(data([NONE, {**ONE, "masks": mask, "keypoints": points}]), PLACES, None)
    assert colour_at(first, *INSIDE) == tuple(int(0.4 * c) for c in rgb(HEN))
    assert colour_at(first, 30, 8) != (0, 0, 0)
    assert colour_at(first, 30, 12) == (0, 0, 0), "it isn't visible"


def test_what_is_no_box_is_named():
    with pytest.raises(ModelError, match="each of 2 pictures"):
        DETECTION.draw(data([NONE, ONE]), PLACES, torch.zeros(2, 8, 4, 4))


def masks():
    found = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.int64)
    found[0, :, :32] = 2
    found[0, :, 48:] = VOID
    return found


def test_pixels_have_the_colours_of_their_classes():
    first, second = SEGMENTATION.draw(data(masks().flip(0)), PLACES, None)
    hen = drawing.colours(2)[1]
    assert first.found == ((FIRST_COLOUR, "cat 25%"), (hen, "hen 50%"))
    seen = [colour_at(first, x, 10) for x in (10, 40, 55)]
    assert seen == [tuple(c // 2 for c in rgb(hen)), tuple(c // 2 for c in rgb(FIRST_COLOUR)), (0, 0, 0)]
    assert second.found == ((FIRST_COLOUR, "cat 100%"),)


def test_a_network_that_is_right_is_drawn_as_the_truth_is():
    known = masks().clamp(max=2)
    logits = F.one_hot(known, 3).movedim(-1, 1).float()[..., ::2, ::2]
    truth = SEGMENTATION.draw(data(known.flip(0)), PLACES, None)
    said = SEGMENTATION.draw(data(torch.full_like(known, VOID)), PLACES, (logits,))
    assert [one.found for one in said] == [one.found for one in truth]
    assert all(a.picture.tobytes() == b.picture.tobytes() for a, b in zip(truth, said, strict=True))


def test_more_classes_than_colours_have_colours_again():
    found = drawing.colours(100)
    assert len(set(found)) == len(set(found[:15])) == 15
