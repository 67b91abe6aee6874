"""``python -m bench.scaling``: the predicted cost of the papers' full scale, for docs/guides/scaling.md.

Operations are counted; the rate, operations per second of one process in training and in forward passes, is assumed.
Data sets count with their published sizes. Nothing is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, environment, write
from occfast.losses import PartialFC
from occfast.reproduce import Paper, prepare
from occfast.reproduce.cost import Rates, predict

#: Parts of an experiment by the beginnings of their steps' names.
PARTS = {
    "train ": "fine-tunings",
    "map ": "maps for P",
    "table ": "Table 1",
    "verify ": "Table 2, Figure 6",
    "roc ": "Table 2, Figure 6",
}


#: The papers, whose scale "paper" is predicted.
PAPERS: tuple[Paper, ...] = ("trigueros2018", "pdsn-landmarks")
#: WebFace42M: people, size of the features of the paper's network, and images of a step.
PEOPLE, FEATURES, BATCH = 2_059_906, 320, 256


def part_of(step: str) -> str:
    """Return the part that a step belongs to: "seed 0: map A 20x20" is one of the maps for P."""
    name = step.partition(": ")[2]
    if name == "train A":
        return name
    return next((part for begins, part in PARTS.items() if name.startswith(begins)), "other")


def scaling(paper: Paper, rate: float) -> dict[str, Any]:
    """Predict a paper's full scale on one process and on eight, with and without ``--spread``."""
    rates = Rates(rate, rate, "assumed")
    with tempfile.TemporaryDirectory() as folder:
        graph = prepare(paper, scale="paper", output=folder).graph
        one = predict(graph, rates, known=False)
        eight = predict(graph, rates, 8, known=False)["seconds"]
        spread = predict(graph.spread(), rates, 8, known=False)["seconds"]
    parts: dict[str, dict[str, float]] = {}
    for step in one["steps"]:
        found = parts.setdefault(part_of(step["name"]), {"steps": 0, "images": 0, "flops": 0.0, "seconds": 0.0})
        found["steps"] += 1
        found["images"] += step["images"]
        found["flops"] += step["flops"]
        found["seconds"] += step["seconds"] or 0.0
    return {
        "paper": paper,
        "rate": rate,
        "parts": parts,
        "seconds": one["seconds"],
        "seconds_of_eight": eight,
        "seconds_of_eight_spread": spread,
        "disk": one["disk"],
    }


def webface42m(processes: int, sampling: float) -> dict[str, Any]:
    """Calculate what each process holds and sends of WebFace42M's classifier, in bytes of float32."""
    held = PartialFC.elements(FEATURES, PEOPLE, BATCH, processes=processes, sampling=sampling)
    return {
        "processes": processes,
        "sampling": sampling,
        "weights": 4 * held.weights,
        "logits": 4 * held.logits,
        "features": 4 * held.features,
        # The backward pass: unit rows and a product; of sampled rows also a copy and its gradient.
        "temporary": round(
            4 * held.weights * (2 if sampling == 1 else 4 * held.logits / BATCH * FEATURES / held.weights)
        ),
        # Gathered features and the sum of their gradients; of each image, seven sums and maxima in float64.
        "exchanged": 0 if processes == 1 else 8 * held.features + 7 * 8 * BATCH,
        "flops_per_image": 6 * FEATURES * held.logits / BATCH * processes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1e14, help="operations per second of one process")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    os.environ.pop("OCCFAST_DATA", None)
    result = environment() | {
        "rows": [scaling(paper, options.rate) for paper in PAPERS],
        "webface42m": [webface42m(1, 1.0), webface42m(8, 1.0), webface42m(8, 0.1)],
    }
    write(options.output, result)
    for row in result["rows"]:
        one, eight = row["seconds"] / 3600, row["seconds_of_eight_spread"] / 60
        print(f"{row['paper']}: {one:.1f} h on one process, {eight:.0f} min on eight")
    return 0


if __name__ == "__main__":
    sys.exit(main())
