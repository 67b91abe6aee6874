"""Ceilings of the GPU: copy bandwidth and matrix rates."""

from __future__ import annotations

import torch

from bench.gpu.clocks import Clock


def ceilings(device: str, clock: Clock) -> dict[str, float]:
    """Measure copy bandwidth (bytes read and written per second) and matrix rates (a multiply-add counts as two)."""
    small = device == "cpu"
    source = torch.empty(2**24 if small else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"copy_bytes_per_s": 2 * source.numel() / clock(lambda: target.copy_(source)).device}
    size = 256 if small else 8192
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            found[f"{name}_flop_per_s"] = 2 * size**3 / clock(lambda a=a, b=b: a @ b).device
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return found
