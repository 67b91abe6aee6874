"""Improved residual networks (iResNet) for faces, as in ArcFace, with arcface_torch's parameter names.

Duta et al. 2020, "Improved residual networks"; Deng et al. 2019, "ArcFace".
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import checks


class IBasicBlock(nn.Module):
    """Residual block: norm, 3×3, norm, PReLU, 3×3 (with the stride), norm, and a shortcut; nothing follows the sum."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.prelu = nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output from maps [N, C, H, W]."""
        out = self.conv1(self.bn1(x))
        out = self.bn3(self.conv2(self.prelu(self.bn2(out))))
        result: Tensor = out + (x if self.downsample is None else self.downsample(x))
        return result


class IResNet(nn.Module):
    """Improved residual network that returns embeddings; it has no classifier.

    Args:
        layers: Number of blocks in each of the four stages.
        channels: Channels of the input images.
        width: Channels of the first stage; later stages have 2, 4 and 8 times as many.
        size: (height, width) of the images, at least 16 each; determines the fully connected layer.
        feature_size: Size of an embedding.
        dropout: Probability in [0, 1) of dropping an entry of the last maps in training.

    The input is float ``[N, channels, *size]``. State dicts of arcface_torch's iresnet18 to iresnet100 (112×112 RGB,
    embeddings of 512 numbers) load unchanged. As there, the scale of the last norm stays 1.

    Raises:
        TypeError, ValueError: If an argument has a wrong type or value; the message names it.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        channels: int = 3,
        width: int = 64,
        size: tuple[int, int] = (112, 112),
        feature_size: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"layers: expected four numbers of at least 1, got {list(layers)}")
        for name, value in (("channels", channels), ("width", width), ("feature_size", feature_size)):
            checks.integer(value, name, 1)
        if checks.number(dropout, "dropout", 0.0) >= 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        if len(size) != 2 or min(size) < 16:
            raise ValueError(f"size: expected (height, width) of at least 16 pixels, got {tuple(size)}")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        before, (height, across) = width, size
        stages = []
        for number, blocks in enumerate(layers):
            after = width * 2**number
            rest = (IBasicBlock(after, after) for _ in range(blocks - 1))
            stages.append(nn.Sequential(IBasicBlock(before, after, stride=2), *rest))
            before, height, across = after, (height + 1) // 2, (across + 1) // 2
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(before)
        self.dropout = nn.Dropout(dropout)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(before * height * across, feature_size)
        # Named as in arcface_torch; in the other networks of this package ``features`` is a method.
        self.features = nn.BatchNorm1d(feature_size)
        self.features.weight.requires_grad_(False)
        self.feature_size = feature_size
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def maps(self, x: Tensor) -> Tensor:
        """Compute the last stage's feature maps, [N, 8 · width, H / 16, W / 16], rounded up."""
        x = self.prelu(self.bn1(self.conv1(x)))
        maps: Tensor = self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Compute embeddings [N, feature_size], not normalized."""
        embedding: Tensor = self.features(self.fc(self.flatten(self.dropout(self.maps(x)))))
        return embedding


def iresnet18(
    *,
    channels: int = 3,
    width: int = 64,
    size: tuple[int, int] = (112, 112),
    feature_size: int = 512,
    dropout: float = 0.0,
) -> IResNet:
    """Build an iResNet-18; arguments as :class:`IResNet`."""
    return IResNet((2, 2, 2, 2), channels=channels, width=width, size=size, feature_size=feature_size, dropout=dropout)


def iresnet34(
    *,
    channels: int = 3,
    width: int = 64,
    size: tuple[int, int] = (112, 112),
    feature_size: int = 512,
    dropout: float = 0.0,
) -> IResNet:
    """Build an iResNet-34; arguments as :class:`IResNet`."""
    return IResNet((3, 4, 6, 3), channels=channels, width=width, size=size, feature_size=feature_size, dropout=dropout)


def iresnet50(
    *,
    channels: int = 3,
    width: int = 64,
    size: tuple[int, int] = (112, 112),
    feature_size: int = 512,
    dropout: float = 0.0,
) -> IResNet:
    """Build an iResNet-50; arguments as :class:`IResNet`."""
    return IResNet((3, 4, 14, 3), channels=channels, width=width, size=size, feature_size=feature_size, dropout=dropout)


def iresnet100(
    *,
    channels: int = 3,
    width: int = 64,
    size: tuple[int, int] = (112, 112),
    feature_size: int = 512,
    dropout: float = 0.0,
) -> IResNet:
    """Build an iResNet-100; arguments as :class:`IResNet`."""
    return IResNet(
        (3, 13, 30, 3), channels=channels, width=width, size=size, feature_size=feature_size, dropout=dropout
    )
