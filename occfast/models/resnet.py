"""Residual networks (He et al. 2016) for faces, with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import checks


def _conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Residual block of ResNet-18 and 34: two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = _conv(before, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output from maps [N, C, H, W]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(out)) + shortcut)
        return result


class Bottleneck(nn.Module):
    """Residual block of ResNet-50: 1×1, 3×3 (with the stride) and 1×1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = _conv(before, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output from maps [N, C, H, W]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        result: Tensor = self.relu(self.bn3(self.conv3(out)) + shortcut)
        return result


class ResNet(nn.Module):
    """Residual network with a classifier.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: Number of blocks in each of the four stages.
        classes: Number of classes, at least 1; None for a network that returns features.
        channels: Channels of the input images (1: gray, 3: color).
        width: Channels of the first stage; later stages have 2, 4 and 8 times as many.
        stem_pool: Max pooling before the first stage, as in the paper. Without it, maps are twice as large along each
            axis (128×96: 8×6 instead of 4×3), and the network takes about four times as long.

    The input is float [N, channels, H, W] with H and W at least 32 (pdsn-landmarks: 128×96). State dicts of
    torchvision's ResNets of the same sizes load unchanged.

    Raises:
        TypeError, ValueError: If an argument has a wrong type or value; the message names it.
    """

    #: Name of the layer that turns features into logits.
    classifier_name = "fc"

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        classes: int | None,
        *,
        channels: int = 3,
        width: int = 64,
        stem_pool: bool = True,
    ) -> None:
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"layers: expected four numbers of at least 1, got {list(layers)}")
        for name, value in (("classes", classes), ("channels", channels), ("width", width)):
            if value is not None or name != "classes":
                checks.integer(value, name, 1)
        self.conv1 = _conv(channels, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_pool else nn.Identity()
        before = width
        stages = []
        for number, blocks in enumerate(layers):
            after = width * 2**number
            stages.append(_stage(block, before, after, blocks, stride=2 if number else 1))
            before = after * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.flatten = nn.Flatten()
        self.fc = None if classes is None else nn.Linear(before, classes)
        self.feature_size = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> Tensor:
        """Compute the last stage's feature maps, which PDSN masks.

        Returns:
            [N, feature_size, H / 32, W / 32], rounded up (H / 16 and W / 16 without ``stem_pool``).
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return maps

    def features(self, x: Tensor) -> Tensor:
        """Compute features, [N, feature_size] (512; ResNet-50: 2,048)."""
        feature: Tensor = self.flatten(self.avgpool(self.maps(x)))
        return feature

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, classes], or features without a classifier."""
        feature = self.features(x)
        if self.fc is None:
            return feature
        logits: Tensor = self.fc(feature)
        return logits


def _stage(block: type[BasicBlock | Bottleneck], before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    after = width * block.expansion
    downsample = None
    if stride != 1 or before != after:
        downsample = nn.Sequential(_conv(before, after, 1, stride), nn.BatchNorm2d(after))
    first = block(before, width, stride, downsample)
    return nn.Sequential(first, *(block(after, width) for _ in range(blocks - 1)))


def resnet18(classes: int | None, *, channels: int = 3, width: int = 64, stem_pool: bool = True) -> ResNet:
    """Build a ResNet-18; arguments as :class:`ResNet`."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, channels=channels, width=width, stem_pool=stem_pool)


def resnet34(classes: int | None, *, channels: int = 3, width: int = 64, stem_pool: bool = True) -> ResNet:
    """Build a ResNet-34, the base network of pdsn-landmarks; arguments as :class:`ResNet`."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes, channels=channels, width=width, stem_pool=stem_pool)


def resnet50(classes: int | None, *, channels: int = 3, width: int = 64, stem_pool: bool = True) -> ResNet:
    """Build a ResNet-50; arguments as :class:`ResNet`."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, channels=channels, width=width, stem_pool=stem_pool)
