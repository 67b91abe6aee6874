"""A workaround for a fault of oneDNN: weight gradients of strided 1×1 convolutions with few channels.

On processors with AVX-512, oneDNN (in PyTorch 2.13 and others) computes the weight gradient of a float32 1×1
convolution with a stride above 1, channels_last and fewer than 16 input channels by writing outside its buffer. The
heap is damaged, and the process aborts some time later. To reproduce it, run the backward pass of ``nn.Conv2d(4, 8, 1,
stride=2)`` on [16, 4, 50, 50] under an allocator that puts a guard page behind each buffer.

Such a convolution equals one of stride 1 on every second pixel, which does not go that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

#: Number of input channels from which oneDNN takes another path.
_SAFE_CHANNELS = 16


class _SubsampledPointwise(nn.Conv2d):
    """A strided 1×1 convolution that selects pixels first."""

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias, groups=self.groups)


@contextmanager
def safe_pointwise_gradients(network: nn.Module) -> Iterator[None]:
    """Compute the affected convolutions of a network on a CPU in the equivalent way while the block runs."""
    changed = [module for module in network.modules() if _is_affected(module)]
    for module in changed:
        module.__class__ = _SubsampledPointwise
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = nn.Conv2d


def _is_affected(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.padding in ((0, 0), 0, "valid")
        and max(module.stride) > 1
        and module.in_channels < _SAFE_CHANNELS
        and module.weight.device.type == "cpu"
    )
