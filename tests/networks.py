"""Small networks with the structures of common ones."""

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


class Residual(nn.Module):
    """A residual block; ``bottleneck``: 1x1, 3x3, 1x1 as in ResNet-50."""

    def __init__(self, channels: int, out: int, stride: int = 1, bottleneck: bool = False) -> None:
        super().__init__()
        inner = max(out // 4, 2) if bottleneck else out
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = (channels, *(inner for _ in kernels[:-1]), out)
        first_stride = 1 if bottleneck else 0
        self.body = nn.Sequential()
        for k, kernel in enumerate(kernels):
            step = stride if k == first_stride else 1
            self.body.append(nn.Conv2d(widths[k], widths[k + 1], kernel, step, kernel // 2, bias=False))
            self.body.append(nn.BatchNorm2d(widths[k + 1]))
            if k < len(kernels) - 1:
                self.body.append(nn.ReLU(inplace=True))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += self.shortcut(x)
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """ResNet (He et al. 2016) of any depth and width."""

    def __init__(
        self,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        width: int = 64,
        channels: int = 3,
        classes: int = 1000,
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        stages: list[nn.Module] = []
        inputs = width
        for k, count in enumerate(blocks):
            out = width * 2**k * (4 if bottleneck else 1)
            for b in range(count):
                stages.append(Residual(inputs, out, 2 if k and not b else 1, bottleneck))
                inputs = out
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stages(self.stem(x)))
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]


class IBlock(nn.Module):
    """A block of iResNet: norm, conv, norm, PReLU, conv, norm."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if stride != 1 or channels != out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)  # type: ignore[no-any-return]


class IResNet(nn.Module):
    """iResNet of ArcFace (Deng et al. 2019): embeddings, PReLU, no pooling at the end."""

    def __init__(
        self, blocks: tuple[int, ...] = (2, 2, 2, 2), width: int = 64, size: int = 112, features: int = 512
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)]
        inputs = width
        for k, count in enumerate(blocks):
            for b in range(count):
                layers.append(IBlock(inputs, width * 2**k, 2 if b == 0 else 1))
                inputs = width * 2**k
            size = (size + 1) // 2
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.Dropout(0.4))
        self.fc = nn.Linear(inputs * size * size, features)
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(self.body(x).flatten(1)))  # type: ignore[no-any-return]


class VGG(nn.Sequential):
    """VGG-16 (Simonyan and Zisserman 2015), narrow."""

    def __init__(self, width: int = 4, size: int = 32, classes: int = 10) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for k, count in enumerate((2, 2, 3, 3, 3)):
            for _ in range(count):
                out = width * 2 ** min(k, 3)
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2))
            size //= 2
        layers += [
            nn.AdaptiveAvgPool2d(size),
            nn.Flatten(),
            nn.Linear(channels * size * size, 32),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(32, classes),
        ]
        super().__init__(*layers)


class MobileNet(nn.Module):
    """Inverted residuals with depthwise convolutions (Sandler et al. 2018), some with squeeze and excitation."""

    class Block(nn.Module):
        def __init__(self, channels: int, out: int, stride: int, squeeze: bool) -> None:
            super().__init__()
            inner = channels * 3
            self.expand = nn.Sequential(
                nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.Hardswish()
            )
            self.depth = nn.Sequential(
                nn.Conv2d(inner, inner, 5, stride, 2, groups=inner, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU6(inplace=True),
            )
            self.squeeze = (
                nn.Sequential(
                    nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, 4, 1), nn.SiLU(), nn.Conv2d(4, inner, 1), nn.Hardsigmoid()
                )
                if squeeze
                else None
            )
            self.project = nn.Sequential(nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out))
            self.residual = stride == 1 and channels == out

        def forward(self, x: Tensor) -> Tensor:
            out = self.depth(self.expand(x))
            if self.squeeze is not None:
                out = out * self.squeeze(out)
            out = self.project(out)
            return x + out if self.residual else out

    def __init__(self, squeeze: bool = False, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Hardswish(),
            self.Block(8, 8, 1, False),
            self.Block(8, 12, 2, False),
            self.Block(12, 12, 1, squeeze),
        )
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


class DenseNet(nn.Module):
    """Concatenations (Huang et al. 2017)."""

    def __init__(self, classes: int = 10, growth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(8 + growth * k), nn.ReLU(inplace=True), nn.Conv2d(8 + growth * k, growth, 3, padding=1)
            )
            for k in range(3)
        )
        self.transition = nn.Sequential(
            nn.BatchNorm2d(8 + growth * 3), nn.GELU(), nn.Conv2d(8 + growth * 3, 10, 1), nn.AvgPool2d(2, 2)
        )
        self.fc = nn.Linear(10, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        return self.fc(self.transition(x).mean(dim=[2, 3]))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Down and up again with skips; a transposed convolution and a nearest upsampling."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1)
        self.down3 = nn.Conv2d(8, 10, 3, 2, 1)
        self.up2 = nn.ConvTranspose2d(10, 8, 3, 2, 1, output_padding=1)
        self.fuse2, self.fuse1 = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(14, 6, 3, padding=1)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.down1(x), 0.1)
        b = F.elu(self.down2(a))
        c = torch.tanh(self.down3(b))
        b = F.silu(self.fuse2(torch.cat([self.up2(c), b], dim=1)))
        up = F.interpolate(b, size=a.shape[2:], mode="nearest")
        a = torch.sigmoid(self.fuse1(torch.cat([up, a], dim=1)))
        return self.fc(F.adaptive_avg_pool2d(a, 1).flatten(1))  # type: ignore[no-any-return]


class Odd(nn.Module):
    """Dilated, strided and asymmetric layers with odd sizes, and arithmetic on the input."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("position", torch.linspace(-1, 1, 31 * 37).view(1, 1, 31, 37))
        self.pad = nn.ZeroPad2d((1, 2, 0, 3))
        self.stem = nn.Conv2d(3, 6, (5, 4), stride=(2, 3), padding=(1, 2))
        self.dilated = nn.Conv2d(6, 8, 3, padding=(2, 3), dilation=(2, 3), groups=2)
        self.same = nn.Conv2d(8, 8, (2, 4), padding="same")
        self.pool = nn.MaxPool2d((3, 2), (2, 1), (1, 0), dilation=(1, 2), ceil_mode=True)
        self.average = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.average2 = nn.AvgPool2d(2, 1, 1, ceil_mode=True)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 0.5 + 0.1 * self.position
        x = self.stem(self.pad(x)).relu()
        x = F.pad(self.dilated(x), (1, 0, -1, 2), value=0.3)
        x = torch.clamp(self.same(x), -1, 2) * 1.5
        x = self.pool(x)
        x = 1.0 - self.average2(self.average(x)).sub(0.1)
        return self.fc(x.amax((2, 3)))  # type: ignore[no-any-return]


class ConvNeXt(nn.Module):
    """Layer norm over channels, linear layers on channels, a scale (Liu et al. 2022)."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.depth = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
            self.norm = nn.LayerNorm(channels)
            self.up, self.down = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)
            self.gamma = nn.Parameter(torch.rand(channels))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.depth(x).permute(0, 2, 3, 1))
            y = self.gamma * self.down(F.gelu(self.up(y)))
            return x + y.permute(0, 3, 1, 2)

    class Norm(nn.Module):
        """The same norm on [N, C, H, W]."""

        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean(1, keepdim=True)
            variance = (x - mean).pow(2).mean(1, keepdim=True)
            return (x - mean) / torch.sqrt(variance + 1e-6)

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.body = nn.Sequential(self.Block(8), self.Norm(), self.Block(8))
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((-2, -1)))  # type: ignore[no-any-return]


class Split(nn.Module):
    """Halves of the channels in separate branches; preactivation whose in-place ReLU also feeds the shortcut."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.relu(x)
        x = x + 0.5 * y  # x is rectified as well
        a, b = x.chunk(2, dim=1)
        x = torch.cat((self.left(a), torch.maximum(b, a)), 1)
        return self.fc(x.view(x.size(0), x.size(1), -1).mean(-1))  # type: ignore[no-any-return]


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in evaluation mode with random weights and running statistics that make outputs differ."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fan = module.weight[0].numel() if not isinstance(module, nn.ConvTranspose2d) else module.weight.shape[0] * 4
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2.0 / fan) ** 0.5
            if module.bias is not None:
                module.bias.data = 0.1 * torch.randn(module.bias.shape, generator=generator)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            size = (module.num_features,)
            module.weight.data = 0.5 + torch.rand(size, generator=generator)
            module.bias.data = 0.2 * torch.randn(size, generator=generator)
            module.running_mean = 0.2 * torch.randn(size, generator=generator)
            module.running_var = 0.5 + torch.rand(size, generator=generator)
    return model.eval()
