"""``python -m bench.stages``: the three stages of training on ORL, A → A20x40 → C, for docs/guides/training.md.

Each seed has its own held-out people, weights and batches. Verification accuracy and d′ are those of each stage's first
and last validation. Runs are kept in ``--folder``; the same command continues them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from bench.harness import RESULTS, environment, write
from occfast import occlusion_map
from occfast.data import ORL, Subset
from occfast.train import Result, load_network, load_recipe, train
from occfast.train.log import read_rows

STAGES = ("A", "A20x40", "C")


def chain(
    folder: Path, people: int, width: float, epochs: tuple[int, int, int], batch: int, stride: int, seed: int = 0
) -> tuple[Result, ...]:
    """Run the paper's stages on the first people of ORL.

    They train on eight images of each person, without the fifth of the people that evaluates all three stages. The
    other two images serve for the map.
    """
    orl = ORL()
    number = torch.arange(10 * people)
    known = Subset(orl, number[number % 10 < 8])
    common = [
        "data.name=orl",
        "data.std=0.25",
        f"network.arguments={{width: {width}, batch_norm: true}}",
        "jitter={flip: 0.5, shift: 0.05, scale: 0.1, turn: 8.0, gain: 0.2, offset: 0.1}",
        "optimizer.name=adamw",
        "optimizer.weight_decay=1e-4",
        "validation.by=people",
        "validation.metric=verification",
        "validation.share=0.2",
        "validation.every=2",
        "log.tensorboard=false",
        f"batch.size={batch}",
        f"seed={seed}",
    ]

    def stage(recipe: str, name: str, *overrides: str) -> Result:
        return train(
            load_recipe(recipe, [*common, *overrides]), folder / name, faces=known, resume=True, progress=False
        )

    a = stage("A", "A", f"epochs={epochs[0]}", "optimizer.learning_rate=4e-3")
    network = load_network(a.weights)
    labels = {person: k for k, person in enumerate(network.people)}
    shown = [face for face in Subset(orl, number[number % 10 >= 8]) if orl.people[face.label] in labels]
    m = occlusion_map(
        network.classifier(),
        network.preprocessing(torch.stack([face.image for face in shown])),
        torch.tensor([labels[orl.people[face.label]] for face in shown]),
        occluder=(20, 40),
        stride=stride,
        progress=False,
    )
    placed = f"occluder.locations={m.save(folder / 'map.npz')}"
    b = stage("A20x40", "A20x40", f"start={a.weights}", placed, f"epochs={epochs[1]}", "optimizer.learning_rate=2e-3")
    # The best of few validations on few people is partly luck, which the next stage would have to live up to.
    c = stage(
        "C",
        "C",
        f"start={folder / 'A20x40' / 'last.safetensors'}",
        f"epochs={epochs[2]}",
        "optimizer.learning_rate=3e-4",
        f"batch.size={8 * len(network.people)}",
        "validation.every=4",
    )
    return a, b, c


def measure(folder: Path, seeds: list[int]) -> dict[str, Any]:
    """Run the stages for each seed and return the first and last validation of each stage."""
    runs = []
    for seed in seeds:
        here = folder / f"seed-{seed}"
        results = chain(here, people=40, width=0.25, epochs=(40, 16, 24), batch=32, stride=8, seed=seed)
        print(f"seed {seed}: {[result.best for result in results]}", flush=True)
        rows = {name: read_rows(here / name / "validations.csv") for name in STAGES}
        runs.append(
            {
                "seed": seed,
                **{
                    name: {
                        "epochs": int(found[-1]["epoch"]),
                        "accuracy": [found[0]["verification"], found[-1]["verification"]],
                        "decidability": [found[0]["decidability"], found[-1]["decidability"]],
                    }
                    for name, found in rows.items()
                },
            }
        )
    return {"runs": runs}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stages", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=Path("stages"), help="runs are kept here")
    parser.add_argument("--output", type=Path, default=RESULTS / "stages.json")
    options = parser.parse_args()
    result = environment() | measure(options.folder, options.seeds)
    write(options.output, result)
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
