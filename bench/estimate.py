"""``python -m bench.estimate``: adaptive and sampled maps compared with the full sweep and Captum, on LFW.

    python -m bench.estimate --train w1.pt          # W1 for LFW's people with 10 or more images: at least half an hour
    python -m bench.estimate --train r.pt --occlude # the same with noisy occluders
    python -m bench.estimate --weights w1.pt        # all parts, about ten minutes on two cores
    python -m bench.estimate --weights w1.pt --parts adaptive --occluder 40x40 --output my.json

LFW is read from $OCCFAST_DATA or --lfw. All faces are aligned, held out from training and recognized without an
occluder. The contenders run in turn in one process, Captum at the best of the batch sizes tried.

- adaptive: maps of single images, compared with the full sweep of the same images.
- sampled: the mean map of 1,000 images, up to a standard error of 0.01.
- truth: errors of the mean map of fewer images, known from a full sweep with a larger stride.
- processes: an exact sweep by two processes of one thread each and by one process of two threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from bench.harness import RESULTS, environment, write
from occfast import NoisyOccluder, OcclusionMap, Sampled, occlusion_map
from occfast.data import LFW, Aligned
from occfast.models import PaperNet

BATCHES = (4, 8, 16, 32, 64)  # tried for Captum
_HELD_OUT = 0.35


@dataclass
class Faces:
    """Float32 images [N, 1, 100, 100] in [0, 1] and their labels."""

    images: Tensor
    labels: Tensor


def lfw(root: Path | None) -> Aligned:
    return Aligned(LFW(root, min_images=10), gray=True)


def scaled(images: Tensor) -> Tensor:
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def varied(images: Tensor) -> Tensor:
    """Randomly mirror, rotate, scale and shift each image a little, and change its brightness."""
    count = len(images)
    angle, scale = torch.empty(count).uniform_(-0.09, 0.09), torch.empty(count).uniform_(0.92, 1.08)
    mirror = torch.randint(0, 2, (count,)) * 2 - 1
    shift = torch.empty(2, count).uniform_(-0.08, 0.08)
    rows = [
        scale * mirror * angle.cos(),
        -scale * angle.sin(),
        shift[0],
        scale * mirror * angle.sin(),
        scale * angle.cos(),
        shift[1],
    ]
    where = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, where, padding_mode="border", align_corners=False)
    return (moved * torch.empty(count, 1, 1, 1).uniform_(0.8, 1.2)).clamp(0, 1)


def train(root: Path | None, path: Path, epochs: int, occlude: bool) -> None:
    """Train W1 with batch normalization on 65 % of the images; write its weights and the others' indices.

    With ``occlude``, half of the images get a noisy occluder at a uniform location (model R of trigueros2018).
    """
    torch.manual_seed(0)
    faces = lfw(root)
    images = torch.stack([face.image for face in faces])
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))
    cut = round((1 - _HELD_OUT) * len(faces))
    chosen, held = order[:cut], order[cut:]
    network = PaperNet(len(faces.people), batch_norm=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    occluder = NoisyOccluder(((10, 40), (10, 40)), p=0.5)
    steps, batch = len(chosen) // 32, 32
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.08, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        network.train()
        for part in chosen[torch.randperm(len(chosen))][: steps * batch].split(batch):
            x = varied(images[part].float() / 255)
            if occlude:
                x = occluder(x)
            out = network(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(out, faces.labels[part], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {float(loss):.3f}", flush=True)
    torch.save(
        {"state": network.state_dict(), "held": held, "names": list(faces.names), "people": list(faces.people)}, path
    )


def load(root: Path | None, path: Path) -> tuple[PaperNet, Faces]:
    """Load the network, and the held-out faces that it recognizes, in random order."""
    saved = torch.load(path, weights_only=True)
    network = PaperNet(len(saved["people"]), batch_norm=True)
    network.load_state_dict(saved["state"])
    network.eval()
    source = lfw(root)
    number = {name: k for k, name in enumerate(source.names)}
    numbers = [number[saved["names"][k]] for k in saved["held"].tolist()]
    images = scaled(torch.stack([source[k].image for k in numbers]))
    labels = source.labels[numbers]
    right = torch.cat([network(part).argmax(1) for part in images.split(16)]) == labels
    print(f"{len(right)} faces held out, {float(right.double().mean()):.1%} right uncovered", flush=True)
    return network, Faces(images[right], labels[right])


def captum(network: PaperNet, faces: Faces, occluder: tuple[int, int]) -> tuple[int, float]:
    """Return Captum's best batch size and its positions per second."""
    from captum.attr import Occlusion

    image, label = faces.images[:1].contiguous(), int(faces.labels[0])
    seen: list[int] = []
    handle = network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))

    def run(batch: int) -> float:
        seen.clear()
        started = time.perf_counter()
        Occlusion(network).attribute(
            image,
            sliding_window_shapes=(1, *occluder),
            target=label,
            baselines=0,
            strides=(1, 5, 5),
            perturbations_per_eval=batch,
        )
        return sum(seen) / (time.perf_counter() - started)

    try:
        run(BATCHES[0])
        best = max(BATCHES, key=run)
        return best, statistics.median(run(best) for _ in range(3))
    finally:
        handle.remove()


def adaptive(network: PaperNet, faces: Faces, occluder: tuple[int, int], images: int) -> dict[str, Any]:
    x, y = faces.images[:images], faces.labels[:images]
    occlusion_map(network, x[:1], y[:1], occluder, method="adaptive", progress=False)  # load modules
    batch, rate = captum(network, faces, occluder)
    estimate = occlusion_map(network, x, y, occluder, method="adaptive", progress=False)
    single = [
        occlusion_map(network, x[k : k + 1], y[k : k + 1], occluder, method="adaptive", progress=False).seconds
        for k in range(min(3, images))
    ]
    full = occlusion_map(network, x, y, occluder, progress=False)
    again = captum(network, faces, occluder)[1]
    rate = max(rate, again)
    assert full.per_image is not None and estimate.per_image is not None
    agree = (full.per_image == estimate.per_image).mean((1, 2))
    return {
        "images": images,
        "captum_batch": batch,
        "captum_positions_per_second": rate,
        "full": {
            "evaluations": full.n_evaluations,
            "seconds": full.seconds,
            "method": full.method,
            "times_captum": full.n_evaluations / rate / full.seconds,
        },
        "adaptive": {
            "evaluations": estimate.n_evaluations,
            "seconds": estimate.seconds,
            "times_captum": full.n_evaluations / rate / estimate.seconds,
            "one_image_at_a_time_times_captum": full.n_evaluations / images / rate / statistics.mean(single),
            "fewer_evaluations": full.n_evaluations / estimate.n_evaluations,
            "agreement": float(agree.mean()),
            "agreement_of_the_worst_image": float(agree.min()),
            "stated": str(estimate.estimate),
        },
    }


def sampled(network: PaperNet, faces: Faces, occluder: tuple[int, int], images: int, rate: float) -> dict[str, Any]:
    x, y = faces.images[:images], faces.labels[:images]
    m = occlusion_map(network, x, y, occluder, method=Sampled(tolerance=0.01), progress=False)
    positions = m.grid.positions * len(x)
    return {
        "images": len(x),
        "used": m.n_images,
        "evaluations": m.n_evaluations,
        "seconds": m.seconds,
        "fewer_evaluations": positions / m.n_evaluations,
        "times_captum": positions / rate / m.seconds,
        "highest": float(m.values.max()),
        "stated": str(m.estimate),
    }


def truth(network: PaperNet, faces: Faces, occluder: tuple[int, int], images: int, stride: int) -> dict[str, Any]:
    """Compare the sampled map of some images with their full sweep at every ``stride``-th position."""
    x, y = faces.images[:images], faces.labels[:images]
    full = occlusion_map(network, x, y, occluder, stride=stride, progress=False)
    found: dict[str, Any] = {"images": len(x), "stride_of_the_full_sweep": stride, "seconds_of_it": full.seconds}
    m = occlusion_map(network, x, y, occluder, method="sampled", progress=False)
    assert m.interval is not None and m.bias is not None
    at = np.ix_(range(0, 100, stride), range(0, 100, stride))
    off, low, high = m.values[at] - full.values, m.interval[0][at], m.interval[1][at]
    p, q = (np.exp(v / 0.4) / np.exp(v / 0.4).sum() for v in (m.values[at], full.values))
    found |= {
        "evaluations": m.n_evaluations,
        "seconds": m.seconds,
        "rms_error": float(np.sqrt((off**2).mean())),
        "largest_error": float(np.abs(off).max()),
        "rms_stated": float(np.sqrt((m.standard_error[at] ** 2 + m.bias[at] ** 2).mean())),
        "covered_by_95_percent_intervals": float(((low <= full.values) & (full.values <= high)).mean()),
        "total_variation_of_P": float(np.abs(p - q).sum() / 2),
        "stated": str(m.estimate),
    }
    return found


def _sweep_in_process(rank: int, ranks: int, folder: str, work: Any) -> None:
    import torch.distributed as dist

    torch.set_num_threads(2 // ranks)
    torch.set_grad_enabled(False)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    network, faces, occluder = work
    occlusion_map(network, faces.images[:2], faces.labels[:2], occluder, stride=20, progress=False)
    m = occlusion_map(network, faces.images, faces.labels, occluder, stride=2, progress=False)
    if rank == 0:
        m.save(Path(folder) / "map.npz")
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def processes(network: PaperNet, faces: Faces, occluder: tuple[int, int], images: int, rounds: int) -> dict[str, Any]:
    """Measure positions per second of an exact sweep by one process of two threads and two processes of one."""
    work = network, Faces(faces.images[:images], faces.labels[:images]), occluder
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for ranks, found in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                spawn(_sweep_in_process, (ranks, folder, work), nprocs=ranks)
                m = OcclusionMap.load(Path(folder) / "map.npz")
                found.append(m.n_evaluations / m.seconds)
    one, two = (statistics.median(found) for found in rates.values())
    return {"one_process_two_threads": one, "two_processes": two, "ratio": two / one, "rounds": rounds}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.estimate", description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, metavar="FILE", help="train the network, write it, and stop")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--occlude", action="store_true", help="train with noisy occluders")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="file written by --train")
    parser.add_argument("--lfw", type=Path, default=None)
    parts = ("adaptive", "sampled", "truth", "processes")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--occluder", default="20x40", metavar="HxW")
    parser.add_argument("--single", type=int, default=16, help="images of the part adaptive")
    parser.add_argument("--images", type=int, default=1000, help="images of the part sampled")
    parser.add_argument("--known", type=int, default=200, help="images of the part truth")
    parser.add_argument("--stride", type=int, default=5, help="stride of the full sweep of the part truth")
    parser.add_argument("--swept", type=int, default=12, help="images of the part processes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the part processes")
    parser.add_argument("--output", type=Path, default=RESULTS / "estimate-cpu.json")
    options = parser.parse_args()
    if options.train:
        train(options.lfw, options.train, options.epochs, options.occlude)
        return 0
    if options.weights is None:
        parser.error("--weights: expected a file written by --train")
    torch.set_grad_enabled(False)
    height, width = (int(v) for v in options.occluder.split("x"))
    occluder = height, width
    network, faces = load(options.lfw, options.weights)
    rate: list[float] = []

    def captum_rate() -> float:
        if not rate:
            rate.append(captum(network, faces, occluder)[1])
        return rate[0]

    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "adaptive": lambda: adaptive(network, faces, occluder, options.single),
        "sampled": lambda: sampled(network, faces, occluder, options.images, captum_rate()),
        "truth": lambda: truth(network, faces, occluder, options.known, options.stride),
        "processes": lambda: processes(network, faces, occluder, options.swept, options.rounds),
    }
    result: dict[str, Any] = {**environment("captum"), "occluder": options.occluder}
    for part in options.parts:
        began = time.perf_counter()
        result[part] = runs[part]()
        print(f"{part}, {time.perf_counter() - began:.0f} s: {json.dumps(result[part], indent=1)}", flush=True)
        write(options.output, result)
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
