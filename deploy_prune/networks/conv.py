"""The plain convolutional networks on which subnetworks of random weights are searched for.

Frankle and Carbin, arXiv 1803.03635, figure 2: pairs of 3x3 convolutions, each pair followed by 2x2 pooling, then three
linear layers. Weights as in arXiv 2202.12986: Kaiming-normal by fan-in, no batch norm.
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (64, 128, 256)
HIDDEN = 256


class ConvNet(nn.Module):
    """``depth`` 2, 4 or 6 convolutions: [B, 3, 32, 32] -> [B, num_classes].

    4,300,992, 2,425,024 and 2,261,184 weights for 10 classes.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS[: depth // 2]:
            for inputs in (channels, width):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        pixels = (32 >> depth // 2) ** 2
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, num_classes),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 32, 32] -> logits [B, num_classes]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
