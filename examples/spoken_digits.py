"""Spoken digits: which of ten digits a recording of a second says.

Data: the Free Spoken Digit Dataset, a folder of DIGIT_SPEAKER_NUMBER.wav at 8 kHz; numbers 0 to 4 are to judge by.

    deploy-prune recipe spoken_digits.yaml --set data.root=/data/fsdd/recordings
"""

import wave
from pathlib import Path

import torch
import torch.nn.functional as F

import deploy_prune

SAMPLES = 8000  # a second


class Recordings(torch.utils.data.Dataset):
    """Sounds [1, 8000] from -1 to 1, and their digits. To train on, they begin at a random place of the silence."""

    def __init__(self, root, train):
        files = sorted(Path(root).glob("*_*_*.wav"))
        self.files = [file for file in files if (int(file.stem.rpartition("_")[2]) >= 5) == train]
        self.train = train

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with wave.open(str(self.files[index])) as file:
            stored = torch.frombuffer(bytearray(file.readframes(SAMPLES)), dtype=torch.int16) / 32768
        silence = SAMPLES - len(stored)
        before = int(torch.randint(silence + 1, ())) if self.train else silence // 2
        return F.pad(stored, (before, silence - before))[None], int(self.files[index].name[0])


def load(part, seed):
    return deploy_prune.task_data(Recordings(part.root, True), Recordings(part.root, False), num_classes=10)


def accuracy(pairs):
    return torch.cat([outputs.argmax(1) == digits for outputs, digits in pairs]).float().mean().item()


def task():
    return deploy_prune.Task(score=deploy_prune.Score(name="accuracy"), load=load, loss=F.cross_entropy, judge=accuracy)


def network(num_classes, width=48):
    """A small M5 (arXiv 1610.00087): 1-D convolutions on the samples themselves."""
    layers, before = [], 1
    for channels, size, stride in ((width, 80, 4), (width, 3, 1), (2 * width, 3, 1), (4 * width, 3, 1)):
        layers += [torch.nn.Conv1d(before, channels, size, stride), torch.nn.BatchNorm1d(channels), torch.nn.ReLU()]
        layers += [torch.nn.MaxPool1d(4)]
        before = channels
    head = [torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(before, num_classes)]
    return torch.nn.Sequential(*layers, *head)
