"""``python -m bench.occluder_pixels``: nanoseconds per painted pixel of the noisy occluder, by instruction set.

One thread paints 2,048 boxes of 20×40 in gray uint8 images in place. Each instruction set has its own process, whose
kernels are compiled for it (``OCCFAST_MARCH``). The best of 40 calls counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.harness import RESULTS, environment, write
from occfast import LocationDistribution, NoisyOccluder
from occfast.native import build
from occfast.occlude.noisy import Noise

#: Values of ``-march`` by the instruction set that they stand for.
MARCHES = {"AVX-512": "x86-64-v4", "AVX2": "x86-64-v3", "SSE4.2": "x86-64-v2"}
NOISES: dict[str, Noise | tuple[Noise, ...]] = {
    "salt and pepper": "salt_and_pepper",
    "speckle": "speckle",
    "Gaussian": "gaussian",
    "no noise": "none",
    "the three noises mixed": ("salt_and_pepper", "speckle", "gaussian"),
}
_CALLS = 40
_BOX = (20, 40)


def pixels() -> dict[str, float]:
    """Measure this process's kernels."""
    torch.set_num_threads(1)
    images = torch.zeros(2048, 1, 100, 100, dtype=torch.uint8)
    # Boxes lie inside the images, so that each paints all of its pixels.
    rows, columns = torch.arange(20, 80), torch.arange(30, 70)
    centers = LocationDistribution(torch.full((60, 40), 1 / 2400, dtype=torch.float64), rows, columns, (100, 100))
    found = {}
    for name, noise in NOISES.items():
        occluder = NoisyOccluder(_BOX, locations=centers, noise=noise)
        best = float("inf")
        for _ in range(_CALLS):
            began = time.perf_counter()
            occluder.apply_(images)
            best = min(best, time.perf_counter() - began)
        found[name] = 1e9 * best / (len(images) * _BOX[0] * _BOX[1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.occluder_pixels", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "occluder-pixels.json")
    parser.add_argument("--this", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.this:
        print(json.dumps(pixels()))
        return 0
    rows = []
    for name, march in MARCHES.items():
        if not _runs(march):
            print(f"{name}: not on this processor, left out")
            continue
        done = subprocess.run(
            [sys.executable, "-m", "bench.occluder_pixels", "--this"],
            env={**os.environ, "OCCFAST_MARCH": march, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        rows.append({"instruction_set": name, "march": march, "nanoseconds": json.loads(done.stdout)})
        print(rows[-1], flush=True)
    write(options.output, environment() | {"threads": 1, "rows": rows})
    print(f"written to {options.output}")
    return 0


def _runs(march: str) -> bool:
    have = build.instruction_set()
    return {"x86-64-v4": "avx512f", "x86-64-v3": "avx2", "x86-64-v2": "sse4_2"}[march] in have


if __name__ == "__main__":
    sys.exit(main())
