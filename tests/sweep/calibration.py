"""``python -m tests.sweep.calibration``: the accuracy of the error estimates of maps, for docs/method/estimated-maps.md.

Trains small networks on 50×50 faces of ORL and, if $OCCFAST_DATA has it, of LFW.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from occfast import Adaptive as AdaptiveMethod
from occfast import OcclusionMap
from occfast import Sampled as SampledMethod
from occfast.sweep.estimate import Disagreement
from tests.sweep.face_maps import FLAT, WIDE, full, looked_up

PART = 64  # images that a sampled map uses, where it uses a part


def covered(m: OcclusionMap, truth: OcclusionMap) -> float:
    """Return the share of locations whose interval holds the full sweep."""
    assert m.interval is not None
    low, high = m.interval
    return float(((low <= truth.values + 1e-12) & (truth.values <= high + 1e-12)).mean())


def variation(m: OcclusionMap, truth: OcclusionMap) -> float:
    """Return the total variation between the distributions of occluders (T = 0.4)."""
    p, q = (each.distribution(0.4).probabilities for each in (m, truth))
    return float((p - q).abs().sum() / 2)


@dataclass
class Sampled:
    """Statistics over seeds. used, of: images; covered: mean and [seeds]; error, stated: root mean squares of the true
    error and of standard error plus bias; standard_error, bias: root mean squares; variation: mean."""

    used: int
    of: int
    covered: float
    runs: list[float]
    error: float
    stated: float
    standard_error: float
    bias: float
    variation: float


def sampled(data: str, occluder: tuple[int, int], part: bool, seeds: int) -> Sampled:
    """Compare maps of all images, or of the first 64 in random order, with the full sweep of all."""
    truth = full(data, occluder)
    with looked_up(data, occluder) as call:
        maps = [call(method=SampledMethod(tolerance=1.0 if part else None), seed=seed) for seed in range(seeds)]
    (used,) = {m.n_images for m in maps}
    assert used == (PART if part else truth.n_images)
    runs = [covered(m, truth) for m in maps]
    error = float(np.mean([(m.values - truth.values) ** 2 for m in maps]))
    bias = float(np.mean([m.bias**2 for m in maps if m.bias is not None]))
    variance = float(np.mean([m.standard_error**2 for m in maps]))
    return Sampled(
        used,
        truth.n_images,
        float(np.mean(runs)),
        runs,
        error**0.5,
        (variance + bias) ** 0.5,
        variance**0.5,
        bias**0.5,
        float(np.mean([variation(m, truth) for m in maps])),
    )


@dataclass
class Adaptive:
    """Statistics over seeds. held: share of the intervals that hold the true disagreement; truth: its mean; fewer:
    positions of the full sweep per evaluated position."""

    held: float
    truth: float
    fewer: float


def adaptive(
    data: str, occluder: tuple[int, int], seeds: int, images: int = 16, tolerance: float | None = None
) -> Adaptive:
    """Compare maps of the first ``images`` images with their full sweep."""
    truth = full(data, occluder)
    assert truth.per_image is not None
    full_maps = truth.per_image[:images]
    held, different, evaluated = [], [], []
    with looked_up(data, occluder) as call:
        for seed in range(seeds):
            m = call(images, method=AdaptiveMethod(check=0.05, tolerance=tolerance), seed=seed)
            assert isinstance(m.estimate, Disagreement)
            different.append(float((m.per_image != full_maps).mean()))
            held.append(m.estimate.low <= different[-1] <= m.estimate.high)
            evaluated.append(m.n_evaluations)
    return Adaptive(float(np.mean(held)), float(np.mean(different)), full_maps.size / float(np.mean(evaluated)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep.calibration", description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=("orl", "lfw"), default=["orl", "lfw"])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--pixels", nargs="+", type=int, default=[*WIDE, *FLAT, 10, 10], help="height width ...")
    parser.add_argument("--adaptive", action="store_true", help="nothing of sampled maps")
    options = parser.parse_args()
    if not options.adaptive:
        print(
            "| data, occluder | mean error rate | images used | covered | worst, best run | rms error "
            "| stated: standard error, bias | TV of P | adaptive: held, disagreement |"
        )
    for data in options.data:
        for height, width in zip(options.pixels[::2], options.pixels[1::2], strict=True):
            truth = full(data, (height, width))
            a = adaptive(data, (height, width), options.seeds)
            if options.adaptive:
                print(
                    f"{data.upper()}, {2 * height}×{2 * width}: held {a.held:.0%}, disagreement {a.truth:.2%}, "
                    f"{a.fewer:.1f} times fewer evaluations",
                    flush=True,
                )
                continue
            for part in (False, True):
                s = sampled(data, (height, width), part, options.seeds)
                print(
                    f"| {data.upper()}, {2 * height}×{2 * width} | {truth.values.mean():.1%} | {s.used} of {s.of} "
                    f"| {s.covered:.1%} | {min(s.runs):.0%}, {max(s.runs):.0%} | {s.error:.3f} "
                    f"| {s.standard_error:.3f}, {s.bias:.3f} | {s.variation:.3f} | {a.held:.0%}, {a.truth:.2%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
