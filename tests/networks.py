"""Small networks with the structures of the usual ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Yi(nn.Sequential):
    """The paper's network (Yi et al., "Learning face representation from scratch", 2014): ten 3x3 convolutions."""

    def __init__(self, classes: int = 1000, channels: int = 1, width: int = 1, size: int = 100) -> None:
        plan = [(32, 64), (64, 128), (96, 192), (128, 256), (160, 320)]
        layers: list[nn.Module] = []
        for k, (first, second) in enumerate(plan):
            first, second = first // width, second // width
            layers += [nn.Conv2d(channels, first, 3, padding=1), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(first, second, 3, padding=1)]
            if k < 4:
                layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2, ceil_mode=True)]
                size = (size + 1) // 2
            channels = second
        layers += [nn.AvgPool2d(size), nn.Flatten(), nn.Dropout(0.4), nn.Linear(channels, classes)]
        super().__init__(*layers)
