"""Super resolution: a picture of twice the height and width. Data: digits in scenes, drawn by the package itself."""

import torch
import torch.nn.functional as F

import deploy_prune
from deploy_prune.data.scenes import draw


def pairs_of(scenes):
    """Pairs of a small picture [1, 32, 48] and the one that it was made of [1, 64, 96], from 0 to 1."""
    large = [torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255 for scene in scenes]
    return [(F.avg_pool2d(picture, 2), picture) for picture in large]


def load(part, seed):
    train, test = draw()
    return deploy_prune.task_data(pairs_of(train), pairs_of(test))


def peak_signal_to_noise(pairs):
    """In dB: 10 log10(1 / mean squared error), the mean over pictures."""
    errors = torch.cat([(outputs - real).square().mean((1, 2, 3)) for outputs, real in pairs])
    return (-10 * errors.log10()).mean().item()


def task():
    score = deploy_prune.Score(name="PSNR", unit="dB")
    return deploy_prune.Task(score=score, load=load, loss=F.l1_loss, judge=peak_signal_to_noise)


class Network(torch.nn.Module):
    """ESPCN (arXiv 1609.05158): convolutions on the small picture, then channels become pixels."""

    def __init__(self, width=48):
        super().__init__()
        sizes = ((1, width, 5), (width, width, 3), (width, width, 3))
        layers = [layer for i, o, k in sizes for layer in (torch.nn.Conv2d(i, o, k, padding=k // 2), torch.nn.ReLU())]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, x):
        large = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        return large + F.pixel_shuffle(self.layers(x), 2)
