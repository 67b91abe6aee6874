"""``python -m tests.sweep.calibration``: the accuracy of the error estimates of maps, for docs/method/estimated-maps.md.

Trains small networks on 50×50 faces of ORL and, if $OCCFAST_DATA has it, of LFW.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import RESULTS, environment, write
from occfast import Adaptive as AdaptiveMethod
from occfast import OcclusionMap
from occfast import Sampled as SampledMethod
from occfast.sweep.estimate import Disagreement
from tests.sweep.face_maps import FLAT, WIDE, full, looked_up

PART = 64  # images that a sampled map uses, where it uses a part


def held(m: OcclusionMap, truth: OcclusionMap) -> NDArray[np.bool_]:
    """Return whether the interval of each location holds the full sweep."""
    assert m.interval is not None
    low, high = m.interval
    return (low <= truth.values + 1e-12) & (truth.values <= high + 1e-12)


def covered(m: OcclusionMap, truth: OcclusionMap) -> float:
    """Return the share of locations whose interval holds the full sweep."""
    return float(held(m, truth).mean())


def variation(m: OcclusionMap, truth: OcclusionMap) -> float:
    """Return the total variation between the distributions of occluders (T = 0.4)."""
    p, q = (each.distribution(0.4).probabilities for each in (m, truth))
    return float((p - q).abs().sum() / 2)


@dataclass
class Sampled:
    """Statistics over seeds. used, of: images; covered: mean and [seeds]; highest, elsewhere: covered where the true map
    is in its highest tenth, and where it is not; error, stated: root mean squares of the true error and of standard
    error plus bias; standard_error, bias: root mean squares; variation: mean."""

    used: int
    of: int
    covered: float
    highest: float
    elsewhere: float
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
    highest = truth.values >= np.quantile(truth.values, 0.9)
    where = np.mean([held(m, truth) for m in maps], axis=0)
    error = float(np.mean([(m.values - truth.values) ** 2 for m in maps]))
    bias = float(np.mean([m.bias**2 for m in maps if m.bias is not None]))
    variance = float(np.mean([m.standard_error**2 for m in maps]))
    return Sampled(
        used,
        truth.n_images,
        float(np.mean(runs)),
        float(where[highest].mean()),
        float(where[~highest].mean()),
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
    inside, different, evaluated = [], [], []
    with looked_up(data, occluder) as call:
        for seed in range(seeds):
            m = call(images, method=AdaptiveMethod(check=0.05, tolerance=tolerance), seed=seed)
            assert isinstance(m.estimate, Disagreement)
            different.append(float((m.per_image != full_maps).mean()))
            inside.append(m.estimate.low <= different[-1] <= m.estimate.high)
            evaluated.append(m.n_evaluations)
    return Adaptive(float(np.mean(inside)), float(np.mean(different)), full_maps.size / float(np.mean(evaluated)))


def measure(data: list[str], occluders: list[tuple[int, int]], seeds: int) -> list[dict[str, Any]]:
    """Measure every data set and occluder; an entry each, with the statistics of all images, of 64, and of adaptive."""
    rows = []
    for name in data:
        for occluder in occluders:
            truth = full(name, occluder)
            found = {part: sampled(name, occluder, part == "part", seeds) for part in ("all", "part")}
            row: dict[str, Any] = {
                "data": name,
                "occluder": occluder,
                "image": truth.grid.image,
                "stride": truth.grid.stride,
                "mean_error_rate": float(truth.values.mean()),
                "sampled": {part: asdict(statistics) for part, statistics in found.items()},
                "adaptive": asdict(adaptive(name, occluder, seeds)),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep.calibration", description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=("orl", "lfw"), default=["orl", "lfw"])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--pixels", nargs="+", type=int, default=[*WIDE, *FLAT, 10, 10], help="height width ...")
    parser.add_argument("--output", type=Path, default=RESULTS / "calibration.json")
    options = parser.parse_args()
    occluders = list(zip(options.pixels[::2], options.pixels[1::2], strict=True))
    result = environment() | {"seeds": options.seeds, "rows": measure(options.data, occluders, options.seeds)}
    write(options.output, result)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
