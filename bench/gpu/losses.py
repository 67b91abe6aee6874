"""Triplet loss and identification compared with their matrix products, and training."""

from __future__ import annotations

from typing import Any

import torch

from bench.gpu.clocks import Clock
from occfast import BatchTripletLoss, pdsn


def triplet_loss(device: str, clock: Clock) -> list[dict[str, Any]]:
    """Measure forward and backward of the batch triplet loss, and its two matrix products alone."""
    count, dim = (64, 16) if device == "cpu" else (4096, 512)
    x = torch.nn.functional.normalize(torch.randn(count, dim, device=device)).requires_grad_()
    labels = torch.arange(count, device=device) // 8
    square = torch.randn(count, count, device=device)

    def products() -> None:
        with torch.no_grad():
            x @ x.T
            square @ x

    alone, rows = clock(products).device, []
    for mining in ("violating", "all", "semihard"):
        loss_fn = BatchTripletLoss(mining=mining)
        seconds = clock(lambda f=loss_fn: f(x, labels).backward()).device
        rows.append({"mining": mining, "batch": count, "dim": dim, "seconds": seconds, "products_seconds": alone})
    return rows


def identify(device: str, clock: Clock, rate: float) -> dict[str, Any]:
    """Measure 650 probes in eight groups against 2,959 faces, maps of 512×8×6, relative to the fp32 matrix rate."""
    probes, faces, shape, groups = (8, 32, (4, 2, 2), 2) if device == "cpu" else (650, 2959, (512, 8, 6), 8)
    maps = torch.rand(faces, *shape, device=device), torch.rand(probes, *shape, device=device)
    masks = torch.rand(groups, *shape, device=device) > 0.3
    group = torch.arange(probes) % groups
    labels = torch.arange(faces, device=device)
    seconds = clock(lambda: pdsn.match(maps[0], labels, maps[1], (masks, group))).device
    numbers = masks[0].numel()
    flop = 2.0 * probes * faces * numbers + 2.0 * groups * faces * numbers  # products, and norms for each mask
    return {
        "probes": probes,
        "faces": faces,
        "numbers": numbers,
        "seconds": seconds,
        "flop_per_s": flop / seconds,
        "of_matrix_rate": flop / seconds / rate,
    }


def training(device: str) -> dict[str, Any]:
    """Measure the overhead of the training loop and of the batch triplet loss; see :mod:`bench.training`."""
    from bench.training import measure

    small = device == "cpu"
    return measure(device, ["dry run"] if small else ["paper", "resnet18"], 2 if small else 40, 1 if small else 5)
