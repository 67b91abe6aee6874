"""Differential fuzzing of the sweeps with random networks: ``python -m tests.fuzz.networks --count 1000 --seed 0``.

Networks are drawn from a grammar of idioms that people write: views, sizes as arguments, slices, pads, splits, modules
that are used twice, attention, squeeze-and-excitation, norms, pooling with odd arguments, in-place operations and
changes of the dtype. The dense and the incremental evaluator must give what the untouched network gives for one image
and one position at a time. A finding is printed with its seed, which ``--seed N --count 1`` runs again.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from occfast.sweep.evaluators.behavior import BatchDependent, NotDeterministic, NotIncremental
from occfast.sweep.evaluators.dense import DenseEvaluator
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.geometry import SweepGrid
from tests.networks import lively

CLASSES = 5
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}
POSITIONS = 10  # of each image, that are compared

Draw = random.Random


class Apply(nn.Module):
    """A function of some modules and the input, named for messages."""

    def __init__(self, name: str, function: Callable[[Any, Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.name, self.function, self.m = name, function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.m, x)

    def extra_repr(self) -> str:
        return self.name


def conv(draw: Draw, channels: int, out: int, **fixed: Any) -> nn.Conv2d:
    kernel = [draw.randint(1, 4), draw.randint(1, 4)]
    dilation = [draw.choice((1, 1, 2)), draw.choice((1, 1, 2))]
    # Padding beyond the kernel's reach crashes oneDNN (torch 2.13: a padded 1x1 kernel on a 1x1 map).
    padding = [draw.randint(0, min(2, (k - 1) * d)) for k, d in zip(kernel, dilation, strict=True)]
    given: dict[str, Any] = dict(
        kernel_size=kernel,
        stride=[draw.choice((1, 1, 1, 2, 3)), draw.choice((1, 1, 1, 2))],
        padding=padding,
        dilation=dilation,
        bias=draw.random() < 0.8,
    )
    return nn.Conv2d(channels, out, **{**given, **fixed})


def windows(draw: Draw, c: int) -> nn.Module:
    """Convolutions, pooling, padding, scaling."""
    out = draw.choice((4, 6, 8))
    kernel, stride = draw.randint(2, 4), draw.choice((None, 1, 2, 3))
    half = draw.randint(0, kernel // 2)
    ceil, include = draw.random() < 0.5, draw.random() < 0.5
    amounts = [draw.randint(-1, 3) for _ in range(4)]
    gain = nn.Conv2d(c, out, 3, padding=1)
    choices: list[Callable[[], nn.Module]] = [
        lambda: conv(draw, c, out),
        lambda: conv(draw, c, out),
        lambda: conv(draw, c, c, groups=c),
        lambda: conv(draw, c, out, padding="same", stride=1),
        lambda: nn.Conv2d(c, out, 3, padding=1, padding_mode=draw.choice(("reflect", "replicate", "circular"))),
        lambda: nn.ConvTranspose2d(c, out, kernel, draw.randint(1, 3), draw.randint(0, (kernel - 1) // 2)),
        lambda: nn.MaxPool2d(kernel, stride, half, draw.choice((1, 1, 2)), ceil_mode=ceil),
        lambda: nn.AvgPool2d(kernel, stride, half, ceil, include, draw.choice((None, None, 3))),
        lambda: nn.LPPool2d(2, kernel, stride),
        lambda: nn.AdaptiveAvgPool2d(draw.choice((2, 3, (None, 2)))),
        lambda: nn.AdaptiveMaxPool2d(draw.choice((2, 3))),
        lambda: Apply("F.max_pool2d", lambda _, x: F.max_pool2d(x, kernel, stride, padding=half, ceil_mode=ceil)),
        lambda: Apply("max_pool2d, input=", lambda _, x: F.max_pool2d(input=x, kernel_size=kernel)),
        lambda: Apply(
            "F.avg_pool2d",
            lambda _, x: F.avg_pool2d(x, (kernel, 2), stride, (half, 1), ceil, count_include_pad=include),
        ),
        lambda: Apply("pooled by size", lambda _, x: F.avg_pool2d(x, (x.size(2) // 2, x.size(3) // 3))),
        lambda: Apply("max pooled by size", lambda _, x: F.max_pool2d(x, x.shape[-1] // 2, x.size(-2) // 3 + 1)),
        lambda: Apply("F.pad", lambda _, x: F.pad(x, amounts, value=0.3)),
        lambda: Apply("pad of columns", lambda _, x: F.pad(x, (1, 2))),
        lambda: Apply("pad by size", lambda _, x: F.pad(x, [0, x.size(3) % 4, x.size(2) // 5, x.shape[2] % 3])),
        lambda: Apply("pad of channels", lambda _, x: F.pad(x, (0, 0, 0, 0, 1, 2))),
        lambda: Apply("pad of all", lambda _, x: F.pad(x, (1, 0, 0, 1, 1, 0))),
        lambda: Apply("reflected", lambda _, x: F.pad(x, (1, 1, 2, 0), mode="reflect")),
        lambda: nn.ZeroPad2d(tuple(amounts)),
        lambda: nn.ReflectionPad2d(1),
        lambda: nn.Upsample(scale_factor=draw.choice((2, 3, (1, 2), 1.5)), mode="nearest"),
        lambda: nn.Upsample(scale_factor=2, mode=draw.choice(("bilinear", "bicubic"))),
        lambda: Apply("interpolated by size", lambda _, x: F.interpolate(x, size=(x.size(2) * 2, x.size(3)))),
        lambda: Apply("halved", lambda _, x: F.interpolate(x, scale_factor=0.5)),
        lambda: Apply("strided slice", lambda _, x: x[:, :, ::2, 1::2]),
        lambda: Apply("crop", lambda _, x: x[:, :, 1:-1, 2:]),
        lambda: Apply("crop by size", lambda _, x: x[..., : x.size(2) - x.size(2) // 3, :]),
        lambda: Apply("option A", lambda _, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1), "constant", 0)),
        lambda: Apply("part of both", lambda _, x: x[:, 1:, 1:, ::2]),
        lambda: Apply("mirrored", lambda _, x: x.flip(3)),
        lambda: Apply("rolled", lambda _, x: x.roll(1, 2)),
        lambda: nn.PixelUnshuffle(2),
        lambda: nn.PixelShuffle(2),
        lambda: Apply("blur", lambda m, x: F.conv2d(x, torch.ones(c, 1, 2, 2, dtype=x.dtype) / 4, groups=c, stride=2)),
        lambda: Apply(
            "weight standardization",
            lambda m, x: F.conv2d(
                x,
                (m[0].weight - m[0].weight.mean((1, 2, 3), keepdim=True)) / m[0].weight.std((1, 2, 3), keepdim=True),
                m[0].bias,
                padding=1,
            ),
            gain,
        ),
        lambda: nn.utils.parametrizations.weight_norm(conv(draw, c, out)),
        lambda: nn.utils.parametrizations.spectral_norm(conv(draw, c, out)),
    ]
    return draw.choice(choices)()


def pixels(draw: Draw, c: int) -> nn.Module:
    """Activations, norms, arithmetic, changes of dtype, in place and not."""
    activation = draw.choice(
        (nn.ReLU(inplace=True), nn.ReLU(), nn.GELU(), nn.SiLU(inplace=True), nn.Hardswish(), nn.Softplus(), nn.PReLU(c))
    )
    norm = nn.BatchNorm2d(c)
    linear, layer_norm = nn.Linear(c, c), nn.LayerNorm(c)
    choices: list[Callable[[], nn.Module]] = [
        lambda: activation,
        lambda: activation,
        lambda: norm,
        lambda: nn.SyncBatchNorm(c),
        lambda: Apply(
            "F.batch_norm",
            lambda m, x: F.batch_norm(x, m[0].running_mean, m[0].running_var, m[0].weight, m[0].bias, False, 0.1, 1e-3),
            norm,
        ),
        lambda: nn.LocalResponseNorm(draw.choice((2, 3))),
        lambda: Apply("F.local_response_norm", lambda _, x: F.local_response_norm(x, 3)),
        lambda: Apply("F.normalize", lambda _, x: F.normalize(x, dim=1)),
        lambda: Apply("F.normalize default", lambda _, x: F.normalize(x, eps=1e-6)),
        lambda: Apply("norm by hand", lambda _, x: x / (x.norm(dim=1, keepdim=True) + 1)),
        lambda: Apply("torch.norm", lambda _, x: x / (torch.norm(x, 2, 1, True) + 1)),
        lambda: Apply("vector_norm", lambda _, x: x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1)),
        lambda: Apply("rms", lambda _, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-3)),
        lambda: Apply("centered", lambda _, x: x - x.mean(1).unsqueeze(1)),
        lambda: Apply("softmax", lambda _, x: x.softmax(dim=1) * 3),
        lambda: nn.Softmax2d(),
        lambda: Apply("log_softmax", lambda _, x: F.log_softmax(x, 1)),
        lambda: Apply(
            "layer norm of channels", lambda m, x: m[0](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), layer_norm
        ),
        lambda: Apply(
            "linear of channels",
            lambda m, x: x + F.gelu(m[0](x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2).contiguous(),
            linear,
        ),
        lambda: Apply("relu_", lambda _, x: x.relu_()),
        lambda: Apply("F.relu in place", lambda _, x: F.relu(x, inplace=True)),
        lambda: Apply("in place on a clone", lambda _, x: x - 0.5 * x.clone().mul_(2).tanh_()),
        lambda: Apply("in place, used before", lambda _, x: torch.cat((x.sigmoid(), x.add_(0.1)), 1)),
        lambda: Apply("augmented", lambda _, x: _augmented(x)),
        lambda: Apply("clamp", lambda _, x: torch.clamp(x, min=-0.5, max=draw_max)),
        lambda: Apply("arithmetic", lambda _, x: (1 - x) * 0.5 / (x.abs() + 1) + x**2),
        lambda: Apply("sizes in arithmetic", lambda _, x: x * x.size(1) ** -0.5 + x.shape[-1] / 100),
        lambda: Apply("maximum", lambda _, x: torch.maximum(x, 0.1 * x)),
        lambda: Apply("torch.max of two", lambda _, x: torch.max(x, -0.2 * x)),
        lambda: Apply("max of a constant", lambda _, x: x.max(torch.tensor(0.1, dtype=x.dtype))),
        lambda: Apply("to double and back", lambda _, x: x.to(torch.float64).exp().log1p().to(x.dtype)),
        lambda: Apply("double and type_as", lambda _, x: x.double().tanh().type_as(x)),
        lambda: Apply("float64 from here", lambda _, x: x.double().float().to(torch.float64).to(x.dtype)),
        lambda: Apply("mask", lambda _, x: x * (x > 0.1).to(x.dtype)),
        lambda: Apply("where", lambda _, x: torch.where(x > 0, x, 0.2 * x)),
        lambda: nn.Dropout2d(0.5),
        lambda: Apply("dropout", lambda _, x: F.dropout(x, 0.3, training=False)),
    ]
    draw_max = 2 * draw.random()
    return draw.choice(choices)()


def _augmented(x: Tensor) -> Tensor:
    y = x.sigmoid()
    y *= 2
    return y + x


def channels(draw: Draw, c: int) -> nn.Module:
    """Splits, slices, shuffles and views of channels."""
    if c % 2:
        return nn.Conv2d(c, draw.choice((4, 6)), 1)
    g = 2
    chosen = [draw.randrange(c) for _ in range(4)]
    inner = nn.Conv2d(c // 2, c // 2, 3, padding=1)
    choices: list[Callable[[], nn.Module]] = [
        lambda: Apply("max-feature-map", lambda _, x: torch.cat((torch.max(*x.chunk(2, 1)), x[:, ::2]), 1)),
        lambda: Apply("max-feature-map, split", lambda _, x: torch.max(*torch.split(x, x.size(1) // 2, 1))),
        lambda: Apply("halves", lambda m, x: torch.cat((m[0](x[:, : c // 2]), x[:, c // 2 :]), dim=1), inner),
        lambda: Apply("halves by size", lambda _, x: x[:, : x.size(1) // 2] * x[:, x.size(1) // 2 :].sigmoid()),
        lambda: Apply("narrow", lambda _, x: x.narrow(1, 1, c - 1) + x[:, -1:, ...]),
        lambda: Apply("every other", lambda _, x: torch.cat([x[:, ::2], x[:, 1::2]], 1)),
        lambda: Apply("list of channels", lambda _, x: x[:, chosen]),
        lambda: Apply("index_select", lambda _, x: x.index_select(1, torch.tensor(chosen))),
        lambda: Apply("flipped channels", lambda _, x: x.flip(1) + torch.flip(x, (1,))),
        lambda: Apply("rolled channels", lambda _, x: torch.roll(x, 1, 1)),
        lambda: Apply("cumsum", lambda _, x: x.cumsum(1) / c),
        lambda: Apply(
            "shuffle by view",
            lambda _, x: (
                x.view(x.size(0), g, c // g, x.size(2), x.size(3))
                .transpose(1, 2)
                .contiguous()
                .view(x.size(0), -1, x.size(2), x.size(3))
            ),
        ),
        lambda: Apply("shuffle by unpacked sizes", lambda _, x: _shuffled(x, g)),
        lambda: Apply("shuffle by flatten", lambda _, x: x.unflatten(1, (g, -1)).transpose(2, 1).flatten(1, 2)),
        lambda: nn.ChannelShuffle(g),
        lambda: nn.GLU(1),
        lambda: Apply("F.glu", lambda _, x: F.glu(x, dim=1)),
        lambda: Apply("groups added", lambda _, x: x.view(x.shape[0], g, -1, *x.shape[2:]).sum(1)),
        lambda: Apply("maxout", lambda _, x: x.reshape(-1, c // 2, 2, x.size(2), x.size(3)).amax(2)),
        lambda: Apply("max over channels", lambda _, x: torch.cat((x, torch.max(x, 1, keepdim=True)[0]), 1)),
        lambda: Apply("max and mean", lambda _, x: torch.stack((x.max(1).values, torch.mean(x, 1)), 1)),
        lambda: Apply("max unsqueezed", lambda _, x: x * torch.max(x, dim=1)[0].unsqueeze(1).sigmoid()),
        lambda: Apply("unbind", lambda _, x: torch.stack(x.unbind(1)[::-1], 1)),
        lambda: Apply("one channel", lambda _, x: x + x[:, 0].unsqueeze(1) + x[:, 1:2]),
        lambda: Apply("swap of axes", lambda _, x: x.transpose(2, 3).contiguous().transpose(2, 3) * 2),
        lambda: Apply("flat and back", lambda _, x: x.flatten(2).view(x.shape).tanh()),
        lambda: Apply("view of all", lambda _, x: x.contiguous().view(x.size(0), -1).view(x.size()) * 0.9),
    ]
    return draw.choice(choices)()


def _shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.size()
    x = x.view(n, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).reshape(n, c, h, w)


def blocks(draw: Draw, c: int) -> nn.Module:
    """Residuals, concatenations, attention, modules used twice, coordinates, norms of whole maps."""
    same = nn.Conv2d(c, c, 3, padding=1)
    down, up = nn.Conv2d(c, 3, 1), nn.Conv2d(3, c, 1)
    linear = nn.Linear(c, c)
    pool = nn.AdaptiveAvgPool2d(1)
    spatial = nn.Conv2d(2, 1, 3, padding=1)
    strided = nn.Conv2d(c, c, 3, 2, 1)
    relu = nn.ReLU(inplace=True)
    coordinates = nn.Conv2d(c + 1, c, 1)
    choices: list[Callable[[], nn.Module]] = [
        lambda: Apply("residual", lambda m, x: F.relu(m[0](x)) + x, same),
        lambda: Apply("residual in place", lambda m, x: m[1](m[0](x)).add_(x), same, relu),
        lambda: Apply("preactivation", lambda m, x: m[0](m[1](x)) + x, same, relu),
        lambda: Apply("used twice", lambda m, x: m[0](F.relu(m[0](x))), same),
        lambda: Apply("dense block", lambda m, x: torch.cat([x, m[0](x).tanh()], 1), same),
        lambda: Apply("scaled residual", lambda m, x: x.add(m[0](x), alpha=0.3), same),
        lambda: Apply(
            "squeeze-and-excitation", lambda m, x: x * torch.sigmoid(m[2](F.relu(m[1](m[0](x))))), pool, down, up
        ),
        lambda: Apply(
            "squeeze-and-excitation by view",
            lambda m, x: x * m[0](x.mean((2, 3))).sigmoid().view(x.size(0), x.size(1), 1, 1),
            linear,
        ),
        lambda: Apply(
            "squeeze, expanded",
            lambda m, x: x * m[0](x.view(x.size(0), x.size(1), -1).mean(2)).sigmoid()[:, :, None, None].expand_as(x),
            linear,
        ),
        lambda: Apply(
            "spatial attention",
            lambda m, x: (
                x * m[0](torch.cat([x.mean(1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], dim=1)).sigmoid()
            ),
            spatial,
        ),
        lambda: Apply("self-attention", lambda m, x: _attention(m, x), nn.Conv2d(c, 6, 1), same),
        lambda: Apply("pooled attention", lambda m, x: x + F.interpolate(F.adaptive_avg_pool2d(x, 1), x.shape[2:])),
        lambda: Apply(
            "global context", lambda m, x: x + (x.flatten(2) * x.flatten(2).softmax(2)).sum(2)[..., None, None]
        ),
        lambda: Apply("U-Net skip", lambda m, x: _skip(m, x), strided, same),
        lambda: Apply(
            "coordinates",
            lambda m, x: m[0](torch.cat((x, _ramp(x).expand(x.size(0), 1, x.size(2), x.size(3))), 1)),
            coordinates,
        ),
        lambda: Apply(
            "zeros for the batch",
            lambda m, x: m[0](torch.cat((x, x.new_zeros(x.size(0), 1, x.size(2), x.size(3))), 1)),
            coordinates,
        ),
        lambda: nn.GroupNorm(1, c),
        lambda: nn.InstanceNorm2d(c, affine=True),
        lambda: Apply("F.group_norm", lambda _, x: F.group_norm(x, 1)),
        lambda: Apply("norm of whole maps", lambda _, x: F.layer_norm(x, x.size()[1:])),
        lambda: Apply(
            "standardized", lambda _, x: (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1)
        ),
    ]
    return draw.choice(choices)()


def _ramp(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, 7, dtype=x.dtype)[:1].view(1, 1, 1, 1)


def _attention(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    q, k = m[0](x).view(n, -1, h * w).chunk(2, 1)
    v = m[1](x).reshape(n, c, -1)
    weights = torch.softmax(torch.bmm(q.transpose(1, 2), k), -1)
    return x + torch.bmm(v, weights.transpose(1, 2)).view(n, c, h, w)


def _skip(m: Any, x: Tensor) -> Tensor:
    small = F.interpolate(m[0](x), scale_factor=2, mode="nearest")
    rows, columns = x.size(2) - small.size(2), x.size(3) - small.size(3)
    small = F.pad(small, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
    return torch.cat([m[1](x), small], dim=1)


def heads(draw: Draw, shape: torch.Size) -> nn.Module:
    """From the last map to [N, CLASSES]."""
    _, c, h, w = shape
    fc, wide = nn.Linear(c, CLASSES), nn.Linear(c * h * w, CLASSES)
    last = nn.Conv2d(c, CLASSES, 3, padding=1)
    norm = nn.GroupNorm(1, c)
    twice = nn.Linear(2 * c, CLASSES)
    flat: Callable[[Tensor], Tensor] = draw.choice(
        (
            lambda x: x.flatten(1),
            lambda x: x.view(x.size(0), -1),
            lambda x: x.reshape(x.shape[0], -1),
            lambda x: torch.flatten(x, 1),
            lambda x: x[:, :, 0, 0],
            lambda x: x.squeeze(3).squeeze(2),
        )
    )
    choices: list[Callable[[], nn.Module]] = [
        lambda: Apply("mean", lambda m, x: m[0](x.mean((2, 3))), fc),
        lambda: Apply("mean by dim()", lambda m, x: m[0](x.mean(dim=(x.dim() - 2, x.dim() - 1))), fc),
        lambda: Apply("sum", lambda m, x: m[0](torch.sum(x.sigmoid(), (2, 3)) / 50), fc),
        lambda: Apply(
            "generalized mean", lambda m, x: m[0](x.clamp(min=1e-3).pow(3).mean((-2, -1), keepdim=True)[..., 0, 0]), fc
        ),
        lambda: Apply("pool", lambda m, x: m[0](flat(F.adaptive_avg_pool2d(x, 1))), fc),
        lambda: Apply("pool by size", lambda m, x: m[0](flat(F.avg_pool2d(x, (x.size(2), x.size(3))))), fc),
        lambda: Apply("pool by shape", lambda m, x: m[0](flat(F.avg_pool2d(x, x.shape[2:]))), fc),
        lambda: Apply("max by size", lambda m, x: m[0](flat(F.max_pool2d(x, kernel_size=x.size()[2:]))), fc),
        lambda: Apply("amax", lambda m, x: m[0](x.amax((2, 3))), fc),
        lambda: Apply("linear", lambda m, x: m[0](x.flatten(1)), wide),
        lambda: Apply("linear of view", lambda m, x: m[0](x.contiguous().view(x.size(0), -1)), wide),
        lambda: Apply("norm and view", lambda m, x: m[0](flat(F.adaptive_avg_pool2d(m[1](x), 1))), fc, norm),
        lambda: Apply("convolution and mean", lambda m, x: m[0](x).mean([2, 3]), last),
        lambda: Apply(
            "convolution, dropout and pool", lambda m, x: F.dropout(m[0](x), 0.1, False).mean((-1, -2)), last
        ),
        lambda: Apply("embedding", lambda m, x: F.normalize(m[0](x.mean((2, 3)))), fc),
        lambda: Apply("embedding by norm", lambda m, x: _unit(m[0](x.amax((2, 3)))), fc),
        lambda: Apply("two poolings", lambda m, x: m[0](torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1)), twice),
        lambda: Apply("mean and std", lambda m, x: m[0](torch.cat([x.mean((2, 3)), x.flatten(2).std(2)], 1)), twice),
    ]
    return draw.choice(choices)()


def _unit(x: Tensor) -> Tensor:
    return x.div(torch.norm(x, 2, 1, True) + 1e-3)


class Network(nn.Module):
    """Layers one after the other; ``style`` says how forward takes the images."""

    def __init__(self, layers: list[nn.Module], style: str) -> None:
        super().__init__()
        self.layers, self.style = nn.ModuleList(layers), style
        if style == "instance":
            self.forward = self.embed  # type: ignore[method-assign]

    def embed(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, *xs: Any, label: Any = None, scale: float = 1.0) -> Tensor:
        x = self.embed(xs[0])
        return x * scale if label is None else x[:, label]


def network(seed: int) -> tuple[nn.Module, Tensor, SweepGrid]:
    """Draw a network in evaluation mode, images that it takes and a grid over them."""
    draw = random.Random(seed)
    size = (draw.randint(10, 19), draw.randint(10, 19))
    dtype = draw.choice((torch.float64, torch.float64, torch.float32))
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((2, 3, *size), generator=generator, dtype=torch.float64).to(dtype)
    torch.manual_seed(seed)
    kinds = (windows, windows, pixels, pixels, channels, blocks)
    while True:
        layers, x = [], images
        for layer in [conv(draw, 3, draw.choice((4, 6)), stride=1), *(None for _ in range(draw.randint(2, 7)))]:
            layer = layer or draw.choice(kinds)(draw, x.shape[1])
            layer = lively(layer, draw.randrange(1000)).to(dtype)
            try:
                with torch.no_grad():
                    out = layer(x.clone())
            except (RuntimeError, ValueError, IndexError, ZeroDivisionError):
                continue  # it does not fit, as pooling a map of one pixel
            if (
                out.dim() == 4
                and out.numel()
                and max(out.shape[2:]) < 40
                and out.shape[1] < 40
                and out.isfinite().all()
            ):
                layers.append(layer)
                x = out
        head = lively(heads(draw, x.shape), seed).to(dtype)
        try:
            with torch.no_grad():
                out = head(x)
        except (RuntimeError, ValueError, IndexError):
            continue
        if out.shape == (2, CLASSES) and out.isfinite().all():
            break
    grid = SweepGrid.over(
        size,
        (draw.randint(1, size[0] * 2 // 3), draw.randint(1, size[1] * 2 // 3)),
        stride=(draw.randint(1, 4), draw.randint(1, 4)),
        border=draw.choice(("clip", "valid")),
    )
    return Network([*layers, head], draw.choice(("forward", "forward", "instance"))).eval(), images, grid


def as_program(model: nn.Module, images: Tensor, draw: Draw) -> nn.Module:
    """Return a network as it is or, now and then, as a TorchScript or ``torch.export`` program."""
    chance = draw.random()
    if chance < 0.8:
        return model
    if chance < 0.97:
        made = torch.jit.trace(model, images, check_trace=False)
        return torch.jit.freeze(made) if draw.random() < 0.3 else made  # type: ignore[no-any-return]
    try:
        exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("n")},))
    except Exception:  # it holds what torch.export refuses
        return model
    return exported.module()  # type: ignore[no-any-return]


@torch.no_grad()
def check(seed: int) -> str:
    """Compare the evaluators on a network with brute force.

    Returns:
        "incremental", or the reason why it is dense.

    Raises:
        AssertionError: They differ, or the network can't be analyzed for an unforeseen reason.
    """
    model, images, grid = network(seed)
    draw = random.Random(seed)
    try:
        for given in (images, images[:1]):
            model(given)
    except RuntimeError:  # such as view() behind a layer that returns another memory format
        return "does not run by itself"
    handed_over = as_program(model, images, draw)
    positions = torch.tensor(
        [
            n * grid.positions + p
            for n in range(2)
            for p in sorted({draw.randrange(grid.positions) for _ in range(POSITIONS)})
        ]
    )
    fill = torch.rand((2, 3, *grid.image), generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    fill = fill.to(images.dtype) if draw.random() < 0.5 else torch.full((1, 1, 1, 1), 0.5, dtype=images.dtype)
    expected = []
    for position in positions.tolist():
        n, p = divmod(position, grid.positions)
        top, left, bottom, right = grid.window(p)
        covered = images[n : n + 1].clone()
        covered[:, :, top:bottom, left:right] = fill.expand_as(images)[n : n + 1, :, top:bottom, left:right]
        expected.append(handed_over(covered))
    truth = torch.cat(expected)
    if not truth.isfinite().all():
        return "infinite"
    dense = DenseEvaluator(handed_over, grid)
    dense.start(images, fill)
    for layout in ("contiguous", "channels_last"):
        dense.set_layout(layout)
        same(dense.outputs(positions), truth, f"dense, {layout}")
    try:
        options: dict[str, Any] = draw.choice(
            ({}, {}, {"fuse": False}, {"expected": 5}, {"most_classes": 1, "batch": 3})
        )
        evaluator = IncrementalEvaluator(handed_over, grid, images, **options)
    except (BatchDependent, NotDeterministic):
        raise
    except NotIncremental as reason:
        assert "can't be analyzed" not in str(reason), str(reason)
        return str(reason)
    evaluator.start(images, fill)
    same(evaluator.outputs(positions), truth, "incremental")
    return "incremental" if handed_over is model else f"incremental, {type(handed_over).__name__}"


def same(found: Tensor, truth: Tensor, what: str) -> None:
    """Raise AssertionError unless outputs are equal but for rounding."""
    assert found.shape == truth.shape, f"{what}: {list(found.shape)}"
    difference, scale = float((found - truth).abs().max()), float(truth.abs().max())
    assert difference <= TOLERANCE[truth.dtype] * scale, f"{what}: off by {difference:.2g} of {scale:.2g}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.networks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="networks")
    parser.add_argument("--seed", type=int, default=0, help="of the first network; each further one adds 1")
    parser.add_argument("--trace", action="store_true", help="print the traceback of each finding")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    endings: collections.Counter[str] = collections.Counter()
    findings = 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            endings[check(seed)] += 1
        except Exception as error:
            findings += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}\n{network(seed)[0]}", flush=True)
            if options.trace:
                traceback.print_exc()
    for ending, number in endings.most_common():
        print(f"{number:6} {ending}")
    print(f"{findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
