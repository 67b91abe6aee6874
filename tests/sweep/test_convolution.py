"""16-bit convolutions that oneDNN gets wrong on processors with AMX are computed another way, with the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import occfast
from occfast.sweep import convolution


class Seen(TorchDispatchMode):
    """Records width of output, stride and width of kernel of each bfloat16 convolution that reaches PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and out.dtype == torch.bfloat16:
            self.found.append((out.shape[-1], args[3][-1], args[1].shape[-1]))
        return out

    def wrong(self) -> list[tuple[int, int, int]]:
        """Return those that oneDNN may get wrong."""
        return [each for each in self.found if each[1] > 1 and (each[0] == 1 or each[1] == each[2])]


def cases() -> list[tuple[int, int, int, int, int, int]]:
    """Kernel, stride, padding, dilation, width and groups, with an output one column wide or wider."""
    found = []
    for kernel, stride, dilation in ((3, 2, 1), (4, 4, 1), (7, 2, 1), (2, 3, 1), (3, 3, 2), (1, 2, 1), (2, 2, 1)):
        for padding in (0, kernel // 2):
            reach = (kernel - 1) * dilation + 1
            for columns in (1, 2):
                for more in (0, stride - 1):
                    width = (columns - 1) * stride + reach - 2 * padding + more
                    if width > 0:
                        found.append((kernel, stride, padding, dilation, width, 2 if kernel == 7 else 1))
    return found


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "width", "groups"), cases())
def test_equals_pytorch(kernel: int, stride: int, padding: int, dilation: int, width: int, groups: int) -> None:
    images, weight = torch.randn(2, 4, 15, width).bfloat16(), torch.randn(6, 4 // groups, kernel, kernel).bfloat16()
    bias = torch.randn(6).bfloat16()
    given = [stride] * 2, [padding] * 2, [dilation] * 2
    expected = F.conv2d(images.double(), weight.double(), bias.double(), *given, groups)
    with Seen() as seen:
        found = convolution.convolve(images, weight, bias, *given, groups)
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert float((found.double() - expected).abs().max()) <= 0.01 * float(expected.abs().max())
    assert all(step == 1 for columns, step, _ in seen.found if columns == 1) and len(seen.found) == 1
    if kernel == stride and padding == 0 and groups == dilation == 1:
        assert not seen.wrong()
    # In float64 the other ways differ by rounding only.
    wide, kernels = images.double(), weight.double()
    reach = (kernel - 1) * dilation + 1
    others = []
    if expected.shape[-1] == 1:
        columns, *how = convolution._one_column(wide, reach, *given[:2])
        others.append(F.conv2d(columns, kernels, bias.double(), *how, given[2], groups))
    if kernel == stride and padding == 0 and dilation == 1:
        *folded, step = convolution._side_by_side(wide, kernels, given[0])
        others.append(F.conv2d(*folded, bias.double(), step, *given[1:]))
    for exact in others:
        torch.testing.assert_close(exact, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


class Narrowing(nn.Module):
    """Ends in convolutions, in two dimensions and in one, whose outputs are one column wide."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, 2, 1)
        self.second, self.third = nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(8, 8, 4, 4, 1)
        self.last = nn.Conv1d(8, 5, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x).relu()).relu())
        return self.last(F.pad(x.flatten(2), (0, 1))[..., :2]).flatten(1)


@pytest.mark.parametrize("method", ["dense", "incremental", "adaptive"])
def test_no_such_convolution_is_left_in_a_sweep(method: str, faces: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "has_amx", lambda: True)
    model = Narrowing().eval()
    arguments: dict[str, Any] = dict(
        occluder=(5, 4), score="score_drop", method=method, progress=False, skip_misclassified=False
    )
    labels = torch.zeros(len(faces), dtype=torch.int64)
    with Seen() as seen:
        found = occfast.occlusion_map(model, faces, labels, precision="bf16", **arguments)
    assert any(columns == 1 for columns, *_ in seen.found) and not seen.wrong()
    exact = occfast.occlusion_map(model.double(), faces.double(), labels, **arguments)
    assert float(abs(found.values - exact.values).max()) <= 0.1 * float(abs(exact.values).max()) + 0.01


def test_it_is_for_16_bits_and_amx_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "has_amx", lambda: True)
    x, net = torch.randn(1, 3, 9, 3).bfloat16(), nn.Conv2d(3, 4, 3, 2).bfloat16()
    with Seen() as seen, convolution.right_convolutions(x.float()):
        net(x)
    assert seen.found == [(1, 2, 3)]
    with Seen() as seen, convolution.right_convolutions(x):
        net(x)
    assert seen.found == [(1, 1, 3)]
    monkeypatch.setattr(convolution, "has_amx", lambda: False)
    with Seen() as seen, convolution.right_convolutions(x):
        net(x)
    assert seen.found == [(1, 2, 3)]
