"""Strided 1×1 convolutions with few channels are trained in a way that oneDNN computes without writing out of bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from occfast.models import resnet18
from occfast.train import fit
from occfast.train.pointwise import safe_pointwise_gradients


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
    with safe_pointwise_gradients(layer):
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
