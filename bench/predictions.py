"""``python -m bench.predictions``: the speed-ups that ``occfast.explain`` predicts for incremental sweeps.

They are written to ``bench/results/predictions.json``. They rest on built-in speeds (``OCCFAST_CALIBRATION=off``), so
the file is the same on every machine. They cover the networks that occfast ships and several strides, including those
that gain little.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from occfast.models import PaperNet, iresnet18, iresnet50, iresnet100, resnet34, resnet50
from occfast.sweep import explain

RESULTS = Path(__file__).resolve().parent / "results"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "paper": (lambda: PaperNet(1000), (100, 100)),
    "resnet34": (lambda: resnet34(1000), (128, 96)),
    "resnet50": (lambda: resnet50(1000), (128, 96)),
    "iresnet18": (iresnet18, (112, 112)),
    "iresnet50": (iresnet50, (112, 112)),
    "iresnet100": (iresnet100, (112, 112)),
}
# (network, occluder, stride); strides above 1 for the network that gains most and for one that gains little.
CASES = [
    *(("paper", occluder, 1) for occluder in ((20, 20), (20, 40), (40, 40))),
    *((name, (20, 40), 1) for name in NETWORKS if name != "paper"),
    *((name, (20, 40), stride) for name in ("paper", "iresnet50") for stride in (2, 4, 8)),
]


def predict(name: str, occluder: tuple[int, int], stride: int) -> dict[str, object]:
    """Predict one case. The weights are random; only the shapes matter."""
    make, size = NETWORKS[name]
    plan = explain(_normalized(make(), size), size=size, occluder=occluder, stride=stride)
    if plan.reason:
        raise SystemExit(f"{name} cannot be swept incrementally: {plan.reason}")
    return {
        "network": name,
        "image": f"{size[0]}x{size[1]}",
        "occluder": f"{occluder[0]}x{occluder[1]}",
        "stride": stride,
        "speedup": round(plan.speedup, 3),
        "whole_from": plan.whole_from,
    }


def _normalized(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Set the running statistics of batch norm; with those of a new network, a hundred layers overflow."""
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.momentum = None  # one batch gives the average
        model.train()(torch.rand(4, channels, *size))
    return model.eval()


def main() -> None:
    os.environ["OCCFAST_CALIBRATION"] = "off"
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "predictions.json")
    output = parser.parse_args().output
    rows = []
    for case in CASES:
        rows.append(predict(*case))
        print(rows[-1])
    output.write_text(json.dumps({"command": "python -m bench.predictions", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
