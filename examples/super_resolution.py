"""Super resolution: a picture of twice the height and width. Data: the two photographs that come with scikit-learn."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

import deploy_prune

SIDE, STEP = 64, 32  # of a part of a photograph, and from one to the next, in pixels
TRAIN = 448  # the columns on the left are to train on, the others to judge by


def pairs_of(photographs):
    """Pairs of a small grey picture [1, 32, 32] and the one that it was made of [1, 64, 64], from 0 to 1."""
    grey = [torch.tensor(photograph).float().mean(2) / 255 for photograph in photographs]
    large = [
        part for one in grey for part in one.unfold(0, SIDE, STEP).unfold(1, SIDE, STEP).reshape(-1, 1, SIDE, SIDE)
    ]
    return [(F.avg_pool2d(picture, 2), picture) for picture in large]


def load(part, seed):
    photographs = load_sample_images().images
    train, test = ([one[:, columns] for one in photographs] for columns in (slice(TRAIN), slice(TRAIN, None)))
    return deploy_prune.task_data(pairs_of(train), pairs_of(test))


def loss(outputs, real):
    """A hundred times the mean squared error, whose gradients are of the usual size."""
    return 100 * F.mse_loss(outputs, real)


def peak_signal_to_noise(pairs):
    """In dB: 10 log10(1 / mean squared error), over all pixels."""
    errors = torch.cat([(outputs - real).square().flatten(1) for outputs, real in pairs])
    return -10 * errors.mean().log10().item()


def task():
    score = deploy_prune.Score(name="PSNR", unit="dB")
    return deploy_prune.Task(score=score, load=load, loss=loss, judge=peak_signal_to_noise)


class Network(torch.nn.Module):
    """ESPCN (arXiv 1609.05158): convolutions on the small picture, then channels become pixels."""

    def __init__(self, width=48):
        super().__init__()
        sizes = ((1, width, 5), (width, width, 3), (width, width, 3))
        layers = [layer for i, o, k in sizes for layer in (torch.nn.Conv2d(i, o, k, padding=k // 2), torch.nn.ReLU())]
        last = torch.nn.Conv2d(width, 4, 3, padding=1)
        torch.nn.init.zeros_(last.weight)  # what is learned adds to plain interpolation
        self.layers = torch.nn.Sequential(*layers, last)

    def forward(self, x):
        large = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        return large + F.pixel_shuffle(self.layers(x), 2)
