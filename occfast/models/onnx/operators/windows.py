"""Geometry of convolutions and pooling."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from ..builder import Builder, Value
from ..call import Call
from ..errors import Malformed

Pair = tuple[int, int]
_AUTO = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Window:
    """A window that slides over rows and columns.

    Attributes:
        kernel, stride, dilation: Of rows and columns.
        begin, end: Padding before and after the rows and columns.
        out: Number of positions.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    begin: Pair
    end: Pair
    out: Pair

    @property
    def symmetric(self) -> bool:
        """Whether both sides are padded alike."""
        return self.begin == self.end

    @property
    def sides(self) -> list[tuple[int, int, int]]:
        """(padding before, kernel, dilation) of rows and of columns."""
        return list(zip(self.begin, self.kernel, self.dilation, strict=True))

    @classmethod
    def of_conv(cls, call: Call, kernel: Pair, size: Pair) -> Window:
        """Return that of a convolution, whose weights give the kernel."""
        given = call.integers("kernel_shape", 2, 1)
        if given is not None and tuple(given) != kernel:
            raise Malformed(f"kernel_shape {given}, weights of {list(kernel)}")
        return cls._of(call, kernel, size, ceil=False)

    @classmethod
    def of_pool(cls, call: Call, size: Pair) -> Window:
        """Return that of a pooling."""
        kernel = call.integers("kernel_shape", 2, 1)
        if kernel is None:
            raise Malformed("attribute kernel_shape is missing")
        return cls._of(call, (kernel[0], kernel[1]), size, ceil=call.flag("ceil_mode"))

    @classmethod
    def _of(cls, call: Call, kernel: Pair, size: Pair, ceil: bool) -> Window:
        stride, dilation = call.integers("strides", 2, 1) or [1, 1], call.integers("dilations", 2, 1) or [1, 1]
        pads = call.integers("pads", 4, 0) or [0, 0, 0, 0]
        auto = call.text("auto_pad", "NOTSET", _AUTO)
        begin, end, out = list(pads[:2]), list(pads[2:]), [0, 0]
        for k in (0, 1):
            reach = (kernel[k] - 1) * dilation[k] + 1
            if auto != "NOTSET":
                begin[k] = end[k] = 0
            if auto.startswith("SAME"):
                total = max((-(-size[k] // stride[k]) - 1) * stride[k] + reach - size[k], 0)
                begin[k] = total // 2 if auto == "SAME_UPPER" else total - total // 2
                end[k] = total - begin[k]
            room = size[k] + begin[k] + end[k] - reach
            if room < 0:
                raise Malformed(f"a window of {reach} on {size[k]} with pads {begin[k]} and {end[k]}")
            out[k] = room // stride[k] + 1
            if ceil and room % stride[k]:
                out[k] += 1
                if (out[k] - 1) * stride[k] >= size[k] + begin[k]:  # it would begin in the padding after
                    out[k] -= 1
        return cls(
            kernel, (stride[0], stride[1]), (dilation[0], dilation[1]), (begin[0], begin[1]), (end[0], end[1]),
            (out[0], out[1]),
        )  # fmt: skip

    def reaching(self, size: Pair) -> Window:
        """Return the window with padding after as far as its positions read."""
        needed = [
            max((o - 1) * s + (k - 1) * d + 1 - n - p, 0)
            for o, s, k, d, n, p in zip(
                self.out, self.stride, self.kernel, self.dilation, size, self.begin, strict=True
            )
        ]
        return Window(self.kernel, self.stride, self.dilation, self.begin, (needed[0], needed[1]), self.out)


def padded(b: Builder, value: Value, window: Window, filler: float) -> Value:
    """Add a padding of maps."""
    amounts = [window.begin[1], window.end[1], window.begin[0], window.end[0]]
    return b.call(F.pad, value, amounts, "constant", filler) if any(amounts) else value


__all__ = ["Window", "padded"]
