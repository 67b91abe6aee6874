"""MobileFaceNet: an embedding network of a million parameters for phones and processors.

Chen, Liu, Gao, Han 2018, "MobileFaceNets: Efficient CNNs for accurate real-time face verification on mobile devices",
Table 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from .. import checks

#: Table 1: expansion, output channels, number of blocks, stride of the first.
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class _ConvNorm(nn.Module):
    """A convolution, batch normalization and, unless ``linear``, a PReLU."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        *,
        depthwise: bool = False,
        linear: bool = False,
    ) -> None:
        super().__init__()
        groups = before if depthwise else 1
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(after)
        self.prelu = nn.Identity() if linear else nn.PReLU(after)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.prelu(self.bn(self.conv(x)))
        return out


class _Bottleneck(nn.Module):
    """Pointwise expansion, depthwise 3×3, linear pointwise projection; a shortcut where the shape stays."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.shortcut = stride == 1 and before == after
        self.conv = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.PReLU(inner),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.PReLU(inner),
            nn.Conv2d(inner, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileFaceNet(nn.Module):
    """An embedding network; a classifier is not part of it.

    Args:
        size: (height, width) of the images in pixels, at least 16 each; the global depthwise convolution covers the
            last maps, a sixteenth of it.
        channels: Channels of the images.
        feature_size: Numbers in an embedding.

    Input: float ``[N, channels, *size]``. Output: float ``[N, feature_size]``, not normalized.

    State dicts of the common PyTorch port load as they are; its weights expect RGB faces in SphereFace's template
    ("sphereface-112x96"), scaled as (x - 127.5) / 128.

    Raises:
        TypeError, ValueError: An argument is no integer, or too small.
    """

    def __init__(self, *, size: tuple[int, int] = (112, 96), channels: int = 3, feature_size: int = 128) -> None:
        super().__init__()
        height, width = (checks.integer(side, "size", 16) for side in checks.pair(size, "size"))
        checks.integer(channels, "channels", 1)
        self.feature_size = checks.integer(feature_size, "feature_size", 1)
        self.conv1 = _ConvNorm(channels, 64, 3, 2, 1)
        self.dw_conv1 = _ConvNorm(64, 64, 3, 1, 1, depthwise=True)
        blocks, before = [], 64
        for expansion, after, count, stride in STAGES:
            for number in range(count):
                blocks.append(_Bottleneck(before, after, stride if number == 0 else 1, expansion))
                before = after
        self.blocks = nn.Sequential(*blocks)
        last = [-(-side // 16) for side in (height, width)]
        self.conv2 = _ConvNorm(before, 512, 1)
        self.linear7 = _ConvNorm(512, 512, (last[0], last[1]), depthwise=True, linear=True)
        self.linear1 = _ConvNorm(512, feature_size, 1, linear=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from PyTorch's generator: He et al. 2015 for the convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings of faces, [N, feature_size]."""
        out = self.blocks(self.dw_conv1(self.conv1(x)))
        embedding: Tensor = self.linear1(self.linear7(self.conv2(out))).flatten(1)
        return embedding


__all__ = ["MobileFaceNet"]
