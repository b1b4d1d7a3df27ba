"""Optical flow: how far each pixel has moved between two pictures. Data: scenes of digits that move as a whole."""

import torch
import torch.nn.functional as F

import deploy_prune
from deploy_prune.data.scenes import draw

REACH = 3  # pixels that a scene moves by, at most


def pairs_of(scenes):
    """Pairs of (two pictures [1, 64, 96], flow [2, 64, 96] in pixels: right and down)."""
    found = []
    for number, scene in enumerate(scenes):
        picture = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
        right, down = torch.randint(-REACH, REACH + 1, (2,), generator=torch.Generator().manual_seed(number)).tolist()
        flow = torch.tensor([float(right), float(down)]).view(2, 1, 1).expand(2, *picture.shape[1:])
        found.append(((picture, picture.roll((down, right), (1, 2))), flow))
    return found


def load(part, seed):
    train, test = draw()
    return deploy_prune.task_data(pairs_of(train), pairs_of(test))


def end_point_error(pairs):
    """In pixels: how far the ends of found and real flow are apart, the mean over pixels."""
    return torch.cat([(outputs - real).norm(dim=1).flatten(1).mean(1) for outputs, real in pairs]).mean().item()


def task():
    score = deploy_prune.Score(name="end-point error", unit="px", higher=False)
    return deploy_prune.Task(score=score, load=load, loss=F.l1_loss, judge=end_point_error)


def block(inputs, outputs, stride=1):
    layer = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return torch.nn.Sequential(layer, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU())


class Network(torch.nn.Module):
    """As PWC-Net (arXiv 1709.02371): features of both pictures, how alike they are at each shift, a flow from it."""

    def __init__(self, width=24):
        super().__init__()
        self.features = torch.nn.Sequential(block(1, width, 2), block(width, width))
        shifts = (2 * REACH + 1) ** 2
        last = torch.nn.Conv2d(width, 2, 3, padding=1)
        self.flow = torch.nn.Sequential(block(shifts + width, 2 * width), block(2 * width, width), last)

    def forward(self, before, after):
        one, two = self.features(before), F.pad(self.features(after), (REACH,) * 4)
        height, width = one.shape[2:]
        shifts = [(y, x) for y in range(2 * REACH + 1) for x in range(2 * REACH + 1)]
        alike = [(one * two[:, :, y : y + height, x : x + width]).mean(1, keepdim=True) for y, x in shifts]
        flow = self.flow(torch.cat([*alike, one], 1))
        return 2 * F.interpolate(flow, scale_factor=2.0, mode="bilinear")
