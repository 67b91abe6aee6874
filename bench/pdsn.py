"""``python -m bench.pdsn``: PDSN's identification compared with plain loops, and five generators with one.

The result is written to ``bench/results/pdsn.json``. Workloads:

- ``identify``: 650 probes against 2,959 gallery images, maps of 512×8×6 (pdsn-landmarks on LFW), LM2's five regions and
  eight masks, as for bands, face masks and sunglasses. The peers are straightforward loops in PyTorch: one over pairs,
  and one over probes that masks the whole gallery and calls ``F.cosine_similarity``. The loops run on ``--loop-probes``
  probes, in turn with occfast on all probes, and are scaled; the loop over pairs also uses a part of the gallery.
- ``generators``: ``--epochs`` epochs of training with a frozen base (ResNet-34 of half width, maps of 256×8×6;
  ``--width``), for LM2's five regions together and for each of two regions alone, in turn.
- ``till-as-good``: training on ORL with the base network ``--base`` (``occfast reproduce pdsn-landmarks`` writes one to
  ``reproduction/pdsn-landmarks/steps/seed-0-base-plain-…``): each region alone until its validation loss stagnates,
  and five together until each reaches its loss alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import RESULTS, environment, write
from occfast.losses.cosface import LargeMarginCosine
from occfast.models import resnet34
from occfast.pdsn import Regions, as_base, landmark_bands, match, train_generators
from occfast.pdsn import boxes as own_boxes
from occfast.pdsn.base import base_of
from occfast.pdsn.faces import open_faces, read_faces
from occfast.train import load_network


def maps(n: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw maps like the last of a ResNet: rectified, half of the values zero."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)).clamp_min(0)


def masks(shape: tuple[int, ...], probes: int) -> tuple[Tensor, Tensor]:
    """Draw eight products of five masks that discard 30 % each, and the index of each probe's product."""
    random = torch.Generator().manual_seed(1)
    each = torch.rand(5, *shape, generator=random) > 0.3
    sets: list[list[int]] = [[], [0], [1], [2], [3], [4], [1, 2], [2, 3, 4]]
    products = torch.stack([each[chosen].all(0) if chosen else torch.ones_like(each[0]) for chosen in sets])
    return products, torch.randint(0, len(sets), (probes,), generator=random)


def loop_over_pairs(gallery: Tensor, probes: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    nearest = []
    for probe, which in zip(probes, group.tolist(), strict=True):
        p, similarity = (probe * mask[which]).flatten(), []
        for face in gallery:
            similarity.append(float(F.cosine_similarity(p, (face * mask[which]).flatten(), dim=0)))
        nearest.append(max(range(len(gallery)), key=similarity.__getitem__))
    return torch.tensor(nearest)


def loop_over_probes(gallery: Tensor, probes: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    nearest = []
    for probe, which in zip(probes, group.tolist(), strict=True):
        m = mask[which]
        similarity = F.cosine_similarity((probe * m).flatten()[None], (gallery * m).flatten(1))
        nearest.append(int(similarity.argmax()))
    return torch.tensor(nearest)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = work()
    return time.perf_counter() - start, out


def identify(args: argparse.Namespace) -> dict[str, Any]:
    shape = tuple(args.shape)
    gallery, probes = maps(args.gallery, shape, 2), maps(args.probes, shape, 3)
    # Each probe is a gallery image with noise.
    probes = probes + gallery[torch.arange(args.probes) % args.gallery]
    labels = torch.arange(args.gallery)
    products, group = masks(shape, args.probes)
    few, part = args.loop_probes, min(args.gallery, args.loop_gallery)
    times: dict[str, list[float]] = {"occfast": [], "loop over probes": [], "loop over pairs": []}
    agree = True
    for _ in range(args.rounds):
        taken, found = seconds(lambda: match(gallery, labels, probes, (products, group), k=5))
        times["occfast"].append(taken)
        taken, nearest = seconds(lambda: loop_over_probes(gallery, probes[:few], products, group[:few]))
        times["loop over probes"].append(taken * args.probes / few)
        agree &= torch.equal(nearest, found.neighbors[:few, 0])
        taken, nearest = seconds(lambda: loop_over_pairs(gallery[:part], probes[:few], products, group[:few]))
        times["loop over pairs"].append(taken * args.probes / few * args.gallery / part)
    best = {name: min(values) for name, values in times.items()}
    return {
        "workload": f"identify, {args.probes} probes, {args.gallery} gallery, maps {'×'.join(map(str, shape))}",
        "same nearest neighbors": agree,
        "groups": int(group.unique().numel()),
        "timed part of the loops": {"probes": few, "gallery of the loop over pairs": part},
        "seconds": best,
        "ratio": {name: best[name] / best["occfast"] for name in best},
    }


def faces(n: int) -> tuple[Tensor, Tensor, Regions]:
    random = torch.Generator().manual_seed(0)
    places = torch.tensor([[50.0, 30.0], [50.0, 66.0], [72.0, 48.0], [96.0, 33.0], [96.0, 63.0]], dtype=torch.float64)
    landmarks = places + 3 * torch.randn(n, 5, 2, generator=random, dtype=torch.float64)
    images = torch.randint(0, 256, (n, 3, 128, 96), generator=random, dtype=torch.uint8)
    return images, torch.arange(n) % 16, landmark_bands(landmarks, (128, 96))


def generators(args: argparse.Namespace) -> dict[str, Any]:
    """Time epochs of five regions together and of two regions alone, with random weights and images."""
    torch.manual_seed(0)
    network = resnet34(None, channels=3, width=args.width, stem_pool=False)
    base = as_base(network, LargeMarginCosine(network.feature_size, 16)).eval()
    images, labels, together = faces(args.images)
    count = args.images * 799 // 2959  # the proportion of LFW
    held = images[:count], labels[:count]
    sets = {"five together": together, **{f"{name} alone": one for name, one in alone(together, ("eyes", "mouth"))}}
    times: dict[str, list[float]] = {title: [] for title in sets}
    for _ in range(args.rounds):
        for title, regions in sets.items():
            taken, _ = seconds(
                lambda regions=regions: train_generators(
                    base,
                    regions,
                    images,
                    labels,
                    validation=held,
                    epochs=args.epochs,
                    patience=args.epochs,
                    batch_size=60,
                    progress=False,
                )
            )
            times[title].append(taken)
    best = {title: min(values) for title, values in times.items()}
    return {
        "workload": f"{args.epochs} epochs of {args.images} images, base ResNet-34 of width {args.width}",
        "seconds": best,
        "ratio, five together to one": 2 * best["five together"] / (best["eyes alone"] + best["mouth alone"]),
    }


def till_as_good(args: argparse.Namespace) -> dict[str, Any]:
    """Train each region alone until it stagnates, and five together until each has reached its loss alone (ORL)."""
    trained = load_network(args.base)
    base, size = base_of(trained), trained.preprocessing.size
    found = read_faces(open_faces("orl", size=size), 0, progress=False)
    together = landmark_bands(found.landmarks[found.train], size)
    data = found.images[found.train], found.labels[found.train]
    held = found.images[found.validation], found.labels[found.validation]
    common: dict[str, Any] = {"validation": held, "batch_size": 60, "progress": False}
    goal, took = {}, {}
    for name, one in alone(together, together.names):
        took[name], done = seconds(lambda one=one: train_generators(base, one, *data, epochs=60, patience=3, **common))
        goal[name] = min(epoch.loss[0] for epoch in done.history)
    missing, reached, start = set(together.names), {}, time.perf_counter()

    class Reached(Exception):
        pass

    def watch(epoch: Any) -> None:
        for k, name in enumerate(together.names):
            if name in missing and epoch.loss[k] <= goal[name]:
                missing.remove(name)
                reached[name] = epoch.number
        if not missing:
            raise Reached

    with contextlib.suppress(Reached):
        train_generators(base, together, *data, epochs=120, patience=120, on_epoch=watch, **common)
    whole = time.perf_counter() - start
    return {
        "workload": f"till as good as alone, {len(data[0])} ORL faces, {size[0]}×{size[1]}",
        "alone": {"seconds": took, "validation loss": goal},
        "five together": {"seconds": whole, "epoch by which as good": reached, "never": sorted(missing)},
        "ratio, five together to the mean of one": whole / (sum(took.values()) / len(took)),
        "ratio, five together to the five one after the other": whole / sum(took.values()),
    }


def alone(regions: Regions, names: Sequence[str]) -> list[tuple[str, Regions]]:
    found = dict(zip(regions.names, regions.boxes.tolist(), strict=True))
    return [(name, own_boxes({name: found[name]}, regions.size)) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("identify", "generators", "till-as-good"))
    parser.add_argument("--probes", type=int, default=650)
    parser.add_argument("--gallery", type=int, default=2959)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 8, 6), metavar=("C", "H", "W"))
    parser.add_argument("--loop-probes", type=int, default=10)
    parser.add_argument("--loop-gallery", type=int, default=500)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "pdsn.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = {"identify": identify, "generators": generators}
    if args.base is not None:
        work["till-as-good"] = till_as_good
    rows = [run(args) for name, run in work.items() if args.only in (None, name)]
    content = {**environment(), "rows": rows}
    write(args.output, content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
