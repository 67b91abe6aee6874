"""Layers that are trained on a CPU in an equivalent way: one against a fault, two for speed.

- Weight gradients of strided 1×1 convolutions with few channels. On processors with AVX-512, oneDNN (in PyTorch 2.13
  and others) computes the weight gradient of a float32 1×1 convolution with a stride above 1, channels_last and fewer
  than 16 input channels by writing outside its buffer. The heap is damaged, and the process aborts some time later. To
  reproduce it, run the backward pass of ``nn.Conv2d(4, 8, 1, stride=2)`` on [16, 4, 50, 50] under an allocator that
  puts a guard page behind each buffer. Such a convolution equals one of stride 1 on every second pixel, which does not
  go that way.
- PReLU with a slope per channel, which most face networks have. PyTorch's backward pass writes the products for the
  slopes to memory and sums them afterwards. In parts that stay in the cache it takes a third to a fifth of the time.
- Strided depthwise convolutions in bfloat16, whose backward pass oneDNN computes about ten times slower than in
  float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Number of input channels from which oneDNN takes another path.
_SAFE_CHANNELS = 16
#: Bytes of a part of PReLU's backward pass.
_PART = 1 << 20


class _SubsampledPointwise(nn.Conv2d):
    """A strided 1×1 convolution that selects pixels first."""

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias, groups=self.groups)


class _Float32Depthwise(nn.Conv2d):
    """A convolution in float32, also under autocast; its result has the dtype that autocast asks for."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            found = super().forward(input.float())
        return found.to(torch.get_autocast_dtype("cpu"))


class _PartwisePReLU(nn.PReLU):
    """A PReLU whose backward pass runs over parts of the batch."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or not input.is_floating_point():
            return super().forward(input)
        found: Tensor = _PReLU.apply(input, self.weight.to(input.dtype))  # type: ignore[no-untyped-call]
        return found


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        factor, found = slope.view(1, -1, 1, 1), torch.empty_like(x)
        total = torch.zeros(len(slope), dtype=torch.promote_types(slope.dtype, torch.float32))
        count = max(1, _PART // max(1, x[:1].numel() * x.element_size()))
        for xs, gs, out in zip(x.split(count), gradient.split(count), found.split(count), strict=True):
            positive = torch.ops.aten.threshold_backward(gs, xs, 0)
            negative = gs - positive
            torch.addcmul(positive, negative, factor, out=out)
            total += (negative * xs).permute(0, 2, 3, 1).reshape(-1, len(slope)).sum(0, dtype=total.dtype)
        return found, total.to(slope.dtype)


@contextmanager
def suited_to_cpu(network: nn.Module) -> Iterator[None]:
    """Compute the layers named above in the equivalent way while the block runs, where they lie on a CPU."""
    changed = [(module, type(module), new) for module in network.modules() if (new := _replacement(module)) is not None]
    for module, _, new in changed:
        module.__class__ = new
    try:
        yield
    finally:
        for module, old, _ in changed:
            module.__class__ = old


def _replacement(module: nn.Module) -> type[nn.Module] | None:
    if type(module) is nn.PReLU:
        return _PartwisePReLU if module.num_parameters > 1 and module.weight.device.type == "cpu" else None
    if type(module) is not nn.Conv2d or module.weight.device.type != "cpu" or max(module.stride) == 1:
        return None
    if module.kernel_size == (1, 1) and module.padding in ((0, 0), 0, "valid") and module.in_channels < _SAFE_CHANNELS:
        return _SubsampledPointwise
    return _Float32Depthwise if module.groups == module.in_channels > 1 else None
