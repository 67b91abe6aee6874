"""Networks of many kinds for 112x112 color images, narrow enough that a dense forward pass takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import lively

SIZE = (112, 112)
CLASSES = 64


def _conv(c: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU):  # type: ignore[no-untyped-def]
    layers: list[nn.Module] = [
        nn.Conv2d(c, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*layers, *([act()] if act is not None else []))


class _Head(nn.Module):
    """Global average and a linear layer."""

    def __init__(self, channels: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class _Add(nn.Module):
    """A body with a shortcut."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))  # type: ignore[no-any-return]


class _Cat(nn.Module):
    """Branches side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class _Excite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018)."""

    def __init__(self, channels: int, inner: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x)  # type: ignore[no-any-return]


class _Apply(nn.Module):
    """A function of some modules and the input."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.m = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.m)


def _basic(c: int, out: int, stride: int = 1) -> nn.Module:
    body = nn.Sequential(_conv(c, out, 3, stride), _conv(out, out, act=None))
    return _Add(body, _conv(c, out, 1, stride, act=None) if (c, 1) != (out, stride) else None, nn.ReLU(inplace=True))


def _stages(block: Callable[[int, int, int], nn.Module], c: int = 24, depth: int = 2, count: int = 4) -> nn.Module:
    """Return stages of blocks, each with twice the channels and half the size of the one before."""
    layers: list[nn.Module] = []
    for k in range(count):
        out = c if k == 0 else 2 * c
        layers += [block(c, out, 1 if k == 0 else 2), *(block(out, out, 1) for _ in range(depth - 1))]
        c = out
    return nn.Sequential(*layers)


# -- kinds ---------------------------------------------------------------------------------------------


def plain() -> nn.Module:
    layers: list[nn.Module] = []
    c = 3
    for a, b in ((16, 32), (32, 64), (48, 96), (64, 128)):
        layers += [nn.Conv2d(c, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        c = b
    return nn.Sequential(*layers, nn.Conv2d(c, 160, 3, padding=1), nn.AvgPool2d(7), nn.Flatten(), nn.Linear(160, 64))


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    c = 3
    for out, count in ((16, 2), (32, 2), (64, 3), (128, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(c, out, 3, padding=1), nn.ReLU(inplace=True)]
            c = out
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(128 * 49, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, CLASSES)]
    return nn.Sequential(*layers, *head)


def resnet() -> nn.Module:
    return nn.Sequential(_conv(3, 24, 7, 2), nn.MaxPool2d(3, 2, 1), _stages(_basic, 24), _Head(192))


def bottleneck() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        inner = out // 4
        body = nn.Sequential(_conv(c, inner, 1), _conv(inner, inner, 3, stride), _conv(inner, out, 1, act=None))
        return _Add(body, _conv(c, out, 1, stride, act=None), nn.ReLU())

    return nn.Sequential(_conv(3, 32, 7, 2), nn.MaxPool2d(3, 2, 1), _conv(32, 64, 1), _stages(block, 64, 3), _Head(512))


def iresnet() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            nn.BatchNorm2d(c),
            nn.Conv2d(c, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        return _Add(body, _conv(c, out, 1, stride, act=None) if (c, 1) != (out, stride) else None)

    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
    body = nn.Sequential(stem, block(16, 16, 2), _stages(block, 16))
    return nn.Sequential(
        body, nn.BatchNorm2d(128), nn.Dropout(), nn.Flatten(), nn.Linear(128 * 49, 128), nn.BatchNorm1d(128)
    )


def _inverted(c: int, out: int, stride: int, act: type[nn.Module] = nn.ReLU6, excite: bool = False) -> nn.Module:
    inner = 4 * c
    layers = [_conv(c, inner, 1, act=act), _conv(inner, inner, 3, stride, inner, act)]
    if excite:
        layers.append(_Excite(inner, c))
    body = nn.Sequential(*layers, _conv(inner, out, 1, act=None))
    return _Add(body) if (c, 1) == (out, stride) else body


def mobilenet() -> nn.Module:
    return nn.Sequential(_conv(3, 16, 3, 2, act=nn.ReLU6), _stages(_inverted, 16), _conv(128, 256, 1), _Head(256))


def mobilefacenet() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            nn.Conv2d(c, 2 * c, 1, bias=False),
            nn.BatchNorm2d(2 * c),
            nn.PReLU(2 * c),
            nn.Conv2d(2 * c, 2 * c, 3, stride, 1, groups=2 * c, bias=False),
            nn.BatchNorm2d(2 * c),
            nn.PReLU(2 * c),
            _conv(2 * c, out, 1, act=None),
        )
        return _Add(body) if (c, 1) == (out, stride) else body

    body = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.PReLU(32), _stages(block, 32))
    last = nn.Sequential(nn.Conv2d(256, 256, 7, groups=256, bias=False), nn.BatchNorm2d(256), nn.Flatten())
    return nn.Sequential(body, last, nn.Linear(256, 128), nn.BatchNorm1d(128))


def squeeze_excite() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        body = nn.Sequential(_conv(c, out, 3, stride), _conv(out, out, act=None), _Excite(out, out // 4))
        return _Add(body, _conv(c, out, 1, stride, act=None), nn.ReLU())

    return nn.Sequential(_conv(3, 16, 3, 2), _stages(block, 16), _Head(128))


def late_excite() -> nn.Module:
    """Excitation in the last stage alone."""
    return nn.Sequential(_conv(3, 16, 3, 2), _stages(_basic, 16), _Excite(128, 16), _conv(128, 128), _Head(128))


def efficientnet() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        return _inverted(c, out, stride, nn.SiLU, True)

    return nn.Sequential(_conv(3, 16, 3, 2, act=nn.SiLU), _stages(block, 16), _Head(128))


def hardswish() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        return _inverted(c, out, stride, nn.Hardswish)

    return nn.Sequential(_conv(3, 16, 3, 2, act=nn.Hardswish), _stages(block, 16), _Head(128))


def densenet() -> nn.Module:
    def layer(c: int) -> nn.Module:
        return _Cat(nn.Identity(), nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 16, 3, padding=1)))

    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1)]
    c = 32
    for k in range(3):
        layers += [layer(c + 16 * j) for j in range(4)]
        c += 64
        if k < 2:
            layers += [nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c // 2, 1), nn.AvgPool2d(2)]
            c //= 2
    return nn.Sequential(*layers, nn.ReLU(), _Head(c))


class _UNet(nn.Module):
    def __init__(self, up: str, c: int = 12) -> None:
        super().__init__()
        self.up = up
        self.down = nn.ModuleList([_conv(3, c), _conv(c, 2 * c), _conv(2 * c, 4 * c)])
        self.mid = _conv(4 * c, 4 * c)
        self.raise_ = nn.ModuleList(
            [
                nn.ConvTranspose2d(4 * c, 4 * c, 2, 2) if up == "transposed" else nn.Conv2d(4 * c, 4 * c, 1),
                nn.ConvTranspose2d(4 * c, 2 * c, 2, 2) if up == "transposed" else nn.Conv2d(4 * c, 2 * c, 1),
            ]
        )
        self.merge = nn.ModuleList([_conv(8 * c, 4 * c), _conv(4 * c, 2 * c)])
        self.head = _Head(2 * c)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x = layer(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.mid(x)
        for layer, merge in zip(self.raise_, self.merge, strict=True):
            x = layer(x)
            if self.up != "transposed":
                x = F.interpolate(x, scale_factor=2, mode=self.up)
            x = merge(torch.cat((x, kept.pop()), 1))
        return self.head(x)  # type: ignore[no-any-return]


def unet() -> nn.Module:
    return _UNet("transposed")


def unet_nearest() -> nn.Module:
    return _UNet("nearest")


def unet_bilinear() -> nn.Module:
    return _UNet("bilinear")


def inception() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        q = out // 4
        return _Cat(
            _conv(c, q, 1, stride),
            nn.Sequential(_conv(c, q, 1), _conv(q, q, 3, stride)),
            nn.Sequential(_conv(c, q // 2, 1), _conv(q // 2, q, 5, stride)),
            nn.Sequential(nn.MaxPool2d(3, stride, 1), _conv(c, q, 1)),
        )

    return nn.Sequential(_conv(3, 32, 7, 2), _stages(block, 32), _Head(256))


class _LastNorm(nn.LayerNorm):
    """Layer norm of channels of a map [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    def block(c: int) -> nn.Module:
        return _Add(
            _Apply(
                lambda x, conv, norm, wide, act, narrow: narrow(act(wide(norm(conv(x).permute(0, 2, 3, 1))))).permute(
                    0, 3, 1, 2
                ),
                nn.Conv2d(c, c, 7, padding=3, groups=c),
                nn.LayerNorm(c),
                nn.Linear(c, 4 * c),
                nn.GELU(),
                nn.Linear(4 * c, c),
            )
        )

    layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, 4), _LastNorm(32), block(32), block(32)]
    for c in (32, 64):
        layers += [_LastNorm(c), nn.Conv2d(c, 2 * c, 2, 2), block(2 * c), block(2 * c)]
    return nn.Sequential(
        *layers, _Apply(lambda x, norm, fc: fc(norm(x.mean((-2, -1)))), nn.LayerNorm(128), nn.Linear(128, CLASSES))
    )


class _Attention(nn.Module):
    def __init__(self, c: int, heads: int = 4) -> None:
        super().__init__()
        self.norm, self.qkv, self.out, self.heads = nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c), heads
        self.mlp = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.GELU(), nn.Linear(3 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        x = x + self.out(y)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class _ViT(nn.Module):
    def __init__(self, stem: nn.Module, c: int, tokens: int, depth: int) -> None:
        super().__init__()
        self.stem, self.place = stem, nn.Parameter(0.1 * torch.randn(1, tokens, c))
        self.blocks = nn.Sequential(*(_Attention(c) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(c), nn.Linear(c, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.place
        return self.fc(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]


def vit() -> nn.Module:
    return _ViT(nn.Conv2d(3, 96, 14, 14), 96, 64, 4)


def hybrid_vit() -> nn.Module:
    """Convolutions first, then attention."""
    stem = nn.Sequential(_conv(3, 24, 3, 1), _conv(24, 32, 3, 2), _conv(32, 64, 3, 2), _conv(64, 96, 3, 2))
    return _ViT(stem, 96, 196, 1)


def attention_pooling() -> nn.Module:
    def pooled(x: Tensor, score: nn.Module, fc: nn.Module) -> Tensor:
        weight = score(x).flatten(2).softmax(-1)
        return fc((x.flatten(2) * weight).sum(-1))  # type: ignore[no-any-return]

    body = nn.Sequential(_conv(3, 16), _conv(16, 32, 3, 2), _conv(32, 64, 3, 2), _conv(64, 128, 3, 2))
    return nn.Sequential(body, _Apply(pooled, nn.Conv2d(128, 1, 1), nn.Linear(128, CLASSES)))


def _normed(norm: Callable[[int], nn.Module]) -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(c, out, 3, stride, 1), norm(out), nn.ReLU())

    return nn.Sequential(block(3, 16, 2), _stages(block, 16), _Head(128))


def group_norm() -> nn.Module:
    return _normed(lambda c: nn.GroupNorm(8, c))


def instance_norm() -> nn.Module:
    return _normed(lambda c: nn.InstanceNorm2d(c, affine=True))


def group_norm_head() -> nn.Module:
    """Build a network with a group norm before the pooling alone."""
    body = nn.Sequential(_conv(3, 32), _conv(32, 32), nn.MaxPool2d(2), _conv(32, 64), _conv(64, 64))
    return nn.Sequential(body, nn.GroupNorm(8, 64), nn.ReLU(), _Head(64))


def gem() -> nn.Module:
    """Generalized mean pooling (Radenovic et al. 2019)."""
    body = nn.Sequential(_conv(3, 24, 3, 2), _stages(_basic, 24))
    pooled = _Apply(lambda x, fc: fc(x.clamp(min=1e-6).pow(3.0).mean((2, 3)).pow(1 / 3)), nn.Linear(192, CLASSES))
    return nn.Sequential(body, pooled)


def dilated() -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 24, 3, 2)]
    for d in (1, 2, 4, 8):
        layers += [nn.Conv2d(24, 24, 3, padding=d, dilation=d), nn.ReLU()]
    return nn.Sequential(*layers, _Head(24))


def grouped() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        body = nn.Sequential(_conv(c, out, 1), _conv(out, out, 3, stride, 8), _conv(out, out, 1, act=None))
        return _Add(body, _conv(c, out, 1, stride, act=None), nn.ReLU())

    return nn.Sequential(_conv(3, 32, 3, 2), _stages(block, 32, 1), _Head(256))


def decoder() -> nn.Module:
    """Transposed convolutions after strided ones."""
    down = nn.Sequential(_conv(3, 16, 3, 2), _conv(16, 32, 3, 2), _conv(32, 64, 3, 2))
    up = nn.Sequential(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU())
    return nn.Sequential(down, up, _Head(16))


def large_kernels() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2), nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 64, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(64 * 25, 256), nn.ReLU(), nn.Linear(256, CLASSES))


def large_depthwise() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        return nn.Sequential(_Add(nn.Sequential(_conv(c, c, 13, 1, c), _conv(c, c, 1))), _conv(c, out, 3, stride))

    return nn.Sequential(_conv(3, 24, 4, 4), _stages(block, 24, 1, 3), _Head(96))


def strided_stem() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 48, 8, 8), nn.ReLU(), *(_basic(48, 48) for _ in range(4)), _Head(48))


def no_pooling() -> nn.Module:
    layers: list[nn.Module] = []
    c = 3
    for out in (16, 32, 64, 128):
        layers += [nn.Conv2d(c, out, 3, 1, 1), nn.LeakyReLU(0.1), nn.Conv2d(out, out, 4, 2, 1), nn.LeakyReLU(0.1)]
        c = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 49, CLASSES))


def embedding() -> nn.Module:
    """Build a normalized embedding whose first layers keep the size."""
    body = nn.Sequential(_conv(3, 16), _conv(16, 16), nn.MaxPool2d(2), _conv(16, 32), _conv(32, 32), nn.MaxPool2d(2))
    last = nn.Sequential(_conv(32, 64), _conv(64, 64), nn.MaxPool2d(2), _conv(64, 128))
    return nn.Sequential(body, last, _Apply(lambda x, fc: F.normalize(fc(x.mean((2, 3)))), nn.Linear(128, 128)))


def pixel_shuffle() -> nn.Module:
    layers = [_conv(3, 32, 3, 2), _conv(32, 64, 3, 2), nn.Conv2d(64, 128, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers, nn.ReLU(), _conv(32, 32), _Head(32))


def pixel_unshuffle() -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(4), _conv(48, 64), _basic(64, 64), _basic(64, 128, 2), _Head(128))


def option_a() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        body = nn.Sequential(_conv(c, out, 3, stride), _conv(out, out, act=None))
        extra = (out - c) // 2
        cut = _Apply(lambda x: F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, extra, extra)))
        return _Add(body, cut if (c, 1) != (out, stride) else None, nn.ReLU())

    return nn.Sequential(_conv(3, 16), _stages(block, 16), _Head(128))


def lightcnn() -> nn.Module:
    """Max-feature-map (Wu et al. 2018)."""

    def layer(c: int, out: int, kernel: int = 3) -> nn.Module:
        return _Apply(
            lambda x, conv: torch.max(*conv(x).chunk(2, 1)), nn.Conv2d(c, 2 * out, kernel, padding=kernel // 2)
        )

    layers = [layer(3, 24, 5), nn.MaxPool2d(2), layer(24, 24, 1), layer(24, 48), nn.MaxPool2d(2), layer(48, 48, 1)]
    return nn.Sequential(*layers, layer(48, 96), nn.MaxPool2d(2), layer(96, 64), nn.Flatten(), nn.Linear(64 * 196, 128))


def shufflenet() -> nn.Module:
    def unit(c: int) -> nn.Module:
        def run(x: Tensor, body: nn.Module, shuffle: nn.Module) -> Tensor:
            kept, changed = x.chunk(2, 1)
            return shuffle(torch.cat((kept, body(changed)), 1))  # type: ignore[no-any-return]

        h = c // 2
        body = nn.Sequential(_conv(h, h, 1), _conv(h, h, 3, 1, h, None), _conv(h, h, 1))
        return _Apply(run, body, nn.ChannelShuffle(2))

    layers: list[nn.Module] = [_conv(3, 32, 3, 2)]
    for c in (32, 64, 128):
        layers += [unit(c), unit(c), unit(c), _conv(c, 2 * c, 3, 2) if c < 128 else nn.Identity()]
    return nn.Sequential(*layers, _Head(128))


def cbam() -> nn.Module:
    """Attention to channels, then to places (Woo et al. 2018)."""

    def attend(x: Tensor, mlp: nn.Module, conv: nn.Module) -> Tensor:
        pooled = mlp(F.avg_pool2d(x, (x.size(2), x.size(3)))) + mlp(F.max_pool2d(x, (x.size(2), x.size(3))))
        x = x * pooled.sigmoid()
        return x * conv(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)).sigmoid()  # type: ignore[no-any-return]

    def block(c: int, out: int, stride: int) -> nn.Module:
        mlp = nn.Sequential(nn.Conv2d(out, out // 4, 1), nn.ReLU(), nn.Conv2d(out // 4, out, 1))
        return nn.Sequential(_basic(c, out, stride), _Apply(attend, mlp, nn.Conv2d(2, 1, 7, padding=3)))

    return nn.Sequential(_conv(3, 16, 3, 2), _stages(block, 16, 1), _Head(128))


def pre_activation() -> nn.Module:
    def block(c: int, out: int, stride: int) -> nn.Module:
        first = [nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, out, 3, stride, 1, bias=False)]
        second = [nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, out, 3, 1, 1, bias=False)]
        return _Add(nn.Sequential(*first, *second), nn.Conv2d(c, out, 1, stride) if (c, 1) != (out, stride) else None)

    return nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1), _stages(block, 24, 1), nn.BatchNorm2d(192), nn.ReLU(), _Head(192))


def shared() -> nn.Module:
    """One convolution, used four times."""
    loop = _Apply(lambda x, conv: F.relu(conv(F.relu(conv(F.relu(conv(F.relu(conv(x)))))))), nn.Conv2d(32, 32, 3, 1, 1))
    return nn.Sequential(_conv(3, 32, 3, 2), loop, _Head(32))


def mixer() -> nn.Module:
    def block(x: Tensor, one: nn.Module, tokens: nn.Module, two: nn.Module, mix: nn.Module) -> Tensor:
        x = x + tokens(one(x).transpose(1, 2)).transpose(1, 2)
        return x + mix(two(x))  # type: ignore[no-any-return]

    def mlp(c: int) -> nn.Module:
        return nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))

    blocks = [_Apply(block, nn.LayerNorm(96), mlp(196), nn.LayerNorm(96), mlp(96)) for _ in range(3)]
    patches = _Apply(lambda x, conv: conv(x).flatten(2).transpose(1, 2), nn.Conv2d(3, 96, 8, 8))
    return nn.Sequential(patches, *blocks, _Apply(lambda x, fc: fc(x.mean(1)), nn.Linear(96, CLASSES)))


def blur_pool() -> nn.Module:
    """Anti-aliased pooling (Zhang 2019)."""

    def blur(x: Tensor) -> Tensor:
        c = x.shape[1]
        kernel = torch.tensor([1.0, 2.0, 1.0])
        kernel = (kernel[:, None] * kernel / 16).expand(c, 1, 3, 3).contiguous()
        return F.conv2d(x, kernel, stride=2, padding=1, groups=c)

    layers = [_conv(3, 16), _Apply(blur), _conv(16, 32), _conv(32, 32), _Apply(blur), _conv(32, 64), _Apply(blur)]
    return nn.Sequential(*layers, _conv(64, 128), _Head(128))


def response_norm() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5)]
    layers += [nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5)]
    return nn.Sequential(*layers, nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), _Head(96))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    made.__name__: made
    for made in (
        plain, vgg, resnet, bottleneck, iresnet, mobilenet, mobilefacenet, squeeze_excite, late_excite, efficientnet,
        hardswish, densenet, unet, unet_nearest, unet_bilinear, inception, convnext, vit, hybrid_vit,
        attention_pooling, group_norm, instance_norm, group_norm_head, gem, dilated, grouped, decoder, large_kernels,
        large_depthwise, strided_stem, no_pooling, embedding, pixel_shuffle, pixel_unshuffle, option_a, lightcnn,
        shufflenet, cbam, pre_activation, shared, mixer, blur_pool, response_norm,
    )
}  # fmt: skip


def network(name: str) -> nn.Module:
    """Return a network with seeded weights, in evaluation mode."""
    torch.manual_seed(0)
    return lively(NETWORKS[name]())
