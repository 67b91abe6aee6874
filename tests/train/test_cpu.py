"""Layers that are trained on a CPU in another way have the same values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from occfast.models import resnet18
from occfast.train import fit
from occfast.train.cpu import suited_to_cpu


class Convolutions(TorchDispatchMode):
    """Records weight shape and stride of every backward pass of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append((tuple(args[2].shape), tuple(args[4])))
        return func(*args, **(kwargs or {}))


def test_training_a_narrow_resnet_has_no_strided_pointwise_gradient() -> None:
    network = resnet18(3, channels=1, width=4)
    images = torch.randint(0, 256, (8, 1, 40, 40), dtype=torch.uint8)
    with Convolutions() as recorded:
        fit(
            network,
            images,
            torch.arange(8) % 3,
            epochs=1,
            batch_size=4,
            learning_rate=1e-3,
            transform=lambda pixels, ids, uniform: pixels.float().contiguous(memory_format=torch.channels_last),
            seed=0,
        )
    pointwise = [stride for (_, channels, *kernel), stride in recorded.seen if kernel == [1, 1] and channels < 16]
    assert len(pointwise) >= 4 and set(pointwise) == {(1, 1)}
    assert all(type(m) is nn.Conv2d for m in network.modules() if isinstance(m, nn.Conv2d))  # as it was, afterwards
    assert network.layer2[0].downsample[0].stride == (2, 2)


def test_the_result_is_that_of_the_convolution() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 1, stride=(2, 3)).double()
    images = torch.randn(3, 4, 11, 10, dtype=torch.float64, requires_grad=True)

    def gradients() -> tuple[Tensor, ...]:
        out = layer(images)
        return (out, *torch.autograd.grad(out.square().sum(), (images, layer.weight, layer.bias)))

    expected = gradients()
    with suited_to_cpu(layer):
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 5, 7, 6), (2, 40, 96, 80), (0, 5, 4, 4)])
def test_prelu_has_the_gradients_of_pytorch_in_float64(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    layer = nn.PReLU(shape[1]).double()
    nn.init.normal_(layer.weight)
    images = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    with torch.no_grad():
        images[:, :, 0] = 0.0  # where the slope is PyTorch's choice
    images.requires_grad_()
    weights = torch.randn(shape, dtype=torch.float64)

    def gradients() -> tuple[Tensor, ...]:
        out = layer(images)
        return (out, *torch.autograd.grad((out * weights).sum(), (images, layer.weight)))

    expected = gradients()
    with suited_to_cpu(layer):
        assert type(layer) is not nn.PReLU
        found = gradients()
    assert type(layer) is nn.PReLU and found[1].is_contiguous(memory_format=layout)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_prelu_in_bfloat16_under_autocast_is_as_close_to_float64_as_pytorch() -> None:
    torch.manual_seed(0)
    layer, images = nn.PReLU(16), torch.randn(8, 16, 30, 30)
    nn.init.uniform_(layer.weight)

    def gradients(cast: bool, images: Tensor) -> list[Tensor]:
        leaf = images.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out = layer(leaf.bfloat16() if cast else leaf)
        return [g.double() for g in torch.autograd.grad(out.double().square().sum(), (leaf, layer.weight))]

    images = images.bfloat16().float()
    theirs = gradients(True, images)
    with suited_to_cpu(layer):
        ours = gradients(True, images)
    layer.double()
    for one, other, exact in zip(ours, theirs, gradients(False, images.double()), strict=True):
        assert float((one - exact).abs().max()) <= float((other - exact).abs().max())


def test_what_needs_no_change_keeps_its_class() -> None:
    network = nn.Sequential(
        nn.PReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(16, 16, 1, stride=2), nn.Conv2d(8, 8, 3, stride=2)
    )
    with suited_to_cpu(network):
        assert [type(module) for module in network] == [nn.PReLU, nn.Conv2d, nn.Conv2d, nn.Conv2d]


def test_strided_depthwise_convolution_is_computed_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), torch.randn(2, 8, 13, 12)
    exact = layer(images)
    with suited_to_cpu(layer):
        torch.testing.assert_close(layer(images), exact, rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(images)
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())
    assert type(layer) is nn.Conv2d
