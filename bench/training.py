"""``python -m bench.training``: the overhead of the training loop over bare training steps.

    python -m bench.training                       # the paper's network and ResNet-18; takes minutes
    python -m bench.training --quick               # a quarter of the paper's width; takes half a minute
    python -m bench.training --device cuda --output my.json

Four ratios are measured, the first three in one process:

- loop: ``occfast.train.train`` (uint8 images in memory, jitter, occluders, logs, TensorBoard, a checkpoint every
  ``--steps`` steps) against a bare loop: the same network, loss and optimizer on one batch of floats in memory. On a
  CPU, steps of both alternate; on a GPU, where waiting for each step would distort the result, blocks of steps do.
- disk: the same with JPEG files that are decoded on demand.
- triplets: forward and backward of B = 256 with the batch triplet loss of the normalized features, against forward and
  backward of the network alone.
- memory (CPU): bare steps in processes that keep freed memory (:func:`occfast.allocator.keep_freed_memory`, as the
  commands of occfast do) against bare steps in processes that do not, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import RESULTS, caption, environment, write
from occfast import BatchTripletLoss
from occfast.data import Face, FaceDataset
from occfast.models import build, features
from occfast.train import Recipe, load_recipe, train
from occfast.train.engine import OptimizerConfig


class Noise(FaceDataset):
    """Data set of random images uint8 [channels, *size], ``each`` per person."""

    def __init__(self, people: int, each: int, channels: int, size: tuple[int, int]) -> None:
        random = torch.Generator().manual_seed(0)
        n = people * each
        self.images = torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=random)
        self.labels = torch.arange(people).repeat_interleave(each)
        self.people, self.names = [str(k) for k in range(people)], [str(k) for k in range(n)]

    def __getitem__(self, k: int) -> Face:
        return Face(self.images[k], int(self.labels[k]), self.names[k], None)


#: name -> (network, arguments, channels, size, batch on a CPU, batch on a GPU)
NETWORKS: dict[str, tuple[str, dict[str, Any], int, tuple[int, int], int, int]] = {
    "paper": ("paper", {}, 1, (100, 100), 64, 256),
    "resnet18": ("resnet18", {}, 3, (112, 112), 32, 256),
    "quick": ("paper", {"width": 0.25, "batch_norm": True}, 1, (100, 100), 64, 256),
    "dry run": ("paper", {"width": 0.0625}, 1, (100, 100), 4, 4),
}
_PEOPLE = 100


class Bare:
    """Step of the same network on a batch in memory: forward, backward, optimizer."""

    def __init__(self, recipe: Recipe, channels: int, size: tuple[int, int], device: str) -> None:
        torch.manual_seed(0)
        network = build(recipe.network.name, _PEOPLE, channels=channels, size=size, **recipe.network.arguments)
        self.network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = OptimizerConfig("sgd", 0.01).optimizer(self.network)
        self.images = torch.randn(recipe.batch.size, channels, *size, device=device).contiguous(
            memory_format=torch.channels_last
        )
        self.labels = torch.arange(recipe.batch.size, device=device) % _PEOPLE

    def __call__(self) -> None:
        """Run one step."""
        F.cross_entropy(self.network(self.images), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Enough(Exception):
    """Raised to end a run when enough steps are timed."""


class Turns:
    """Progress callback that times the steps of a run, and bare steps in between."""

    def __init__(self, bare: Bare, batch: int, total: int, steps: int, rounds: int, cuda: bool) -> None:
        self.bare, self.batch, self.total, self.cuda = bare, batch, total, cuda
        self.steps, self.rounds = steps, rounds
        self.loop_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self._since = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        """Record the time since the last call and run bare steps."""
        if total != self.total:
            return  # images are being read
        step = done // self.batch
        if not self.cuda:
            if step > _WARM:
                self.loop_seconds.append(time.perf_counter() - self._since)
                self.bare_seconds.append(_timed(self.bare, 1))
            else:
                self.bare()
            if step >= _WARM + self.steps * self.rounds:
                raise Enough
            self._since = time.perf_counter()
        elif step >= _WARM and (step - _WARM) % self.steps == 0:
            torch.cuda.synchronize()
            if step > _WARM:
                self.loop_seconds.append((time.perf_counter() - self._since) / self.steps)
                _timed(self.bare, 5)
                self.bare_seconds.append(_timed(self.bare, self.steps, cuda=True))
                if len(self.bare_seconds) >= self.rounds:
                    raise Enough
            self._since = time.perf_counter()


_WARM = 3


def _timed(function: Callable[[], None], times: int, cuda: bool = False) -> float:
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        function()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def loop(name: str, device: str, steps: int, disk: bool = False) -> dict[str, Any]:
    """Compare the steps of one run with bare steps."""
    network, arguments, channels, size, on_cpu, on_gpu = NETWORKS[name]
    cuda = device == "cuda"
    batch, rounds = (on_gpu if cuda else on_cpu), (4 if cuda else 1)
    total = _WARM + steps * rounds + 1
    each = -(-batch * 4 // _PEOPLE)
    batches = _PEOPLE * each // batch
    epochs = max(2, -(-total // batches))
    recipe = load_recipe(
        "A",
        [
            "data.name=bench.training:Noise",
            f"data.color={'gray' if channels == 1 else 'RGB'}",
            "data.template=null",
            f"network.name={network}",
            f"network.arguments={json.dumps(arguments)}",
            f"batch.size={batch}",
            f"epochs={epochs}",
            f"device={device}",
            "validation.share=0",
            f"log.checkpoint={steps}",
            "optimizer.learning_rate=0.001",
            "occluder.share=1",
            f"data.in_memory={str(not disk).lower()}",
            "jitter={flip: 0.5, shift: 0.05, scale: 0.1, turn: 8.0, gain: 0.2, offset: 0.1}",
        ],
    )
    faces: FaceDataset = Noise(_PEOPLE, each, channels, size)
    turns = Turns(Bare(recipe, channels, size, device), batch, epochs * batches * batch, steps, rounds, cuda)
    with tempfile.TemporaryDirectory() as folder:
        if disk:
            faces = _as_files(faces, Path(folder) / "images", gray=channels == 1)
        with contextlib.suppress(Enough):
            train(recipe, Path(folder) / "run", progress=turns, faces=faces)
    loops, bares = turns.loop_seconds, turns.bare_seconds
    return {
        "workload": f"{name}, batch {batch}, {'JPEG files' if disk else 'in memory'}",
        "steps": len(loops) * (steps if cuda else 1),
        "bare_images_per_s": batch / statistics.mean(bares),
        "loop_images_per_s": batch / statistics.mean(loops),
        "overhead": statistics.mean(loops) / statistics.mean(bares) - 1,
        "overhead_of_medians": statistics.median(loops) / statistics.median(bares) - 1,
    }


def _as_files(faces: FaceDataset, root: Path, gray: bool) -> FaceDataset:
    from PIL import Image

    from occfast.data import Folder

    for face in faces:
        path = root / str(face.label) / f"{face.name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = face.image[0] if face.image.shape[0] == 1 else face.image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(path, quality=90)
    return Folder(root, gray=gray)


def triplets(name: str, device: str, rounds: int, batch: int = 256) -> dict[str, Any]:
    """Compare forward and backward with the batch triplet loss to forward and backward alone."""
    network_name, arguments, channels, size, _, _ = NETWORKS[name]
    torch.manual_seed(0)
    network: nn.Module = build(network_name, None, channels=channels, size=size, **arguments)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch, channels, *size, device=device).contiguous(memory_format=torch.channels_last)
    labels, loss_fn = torch.arange(batch, device=device) // 8, BatchTripletLoss()
    weight = torch.randn(batch, network.feature_size, device=device)  # type: ignore[call-overload]

    def alone() -> None:
        _backward(network, (features(network)(images) * weight).sum())

    def whole() -> None:
        _backward(network, loss_fn(F.normalize(features(network)(images)), labels))

    cuda = device == "cuda"
    for function in (alone, whole):
        _timed(function, 3 if cuda else 1, cuda)
    times: dict[str, list[float]] = {"alone": [], "whole": []}
    for _ in range(rounds):
        times["alone"].append(_timed(alone, 20 if cuda else 1, cuda))
        times["whole"].append(_timed(whole, 20 if cuda else 1, cuda))
    ratios = [b / a for a, b in zip(times["alone"], times["whole"], strict=True)]
    return {
        "workload": f"{name}, batch {batch}, batch triplet loss",
        "rounds": rounds,
        "alone_seconds": statistics.median(times["alone"]),
        "with_loss_seconds": statistics.median(times["whole"]),
        "ratio": statistics.median(ratios),
    }


_STEPS = """
import statistics, sys, time
import torch
from bench.training import bare_seconds
if sys.argv[2] == "kept":
    from occfast.allocator import keep_freed_memory
    assert keep_freed_memory()
torch.set_num_threads(int(sys.argv[3]))
print(bare_seconds(sys.argv[1]))
"""


def bare_seconds(name: str) -> float:
    """Return the median time of ten bare steps."""
    network, arguments, channels, size, batch, _ = NETWORKS[name]
    overrides = [f"network.name={network}", f"network.arguments={json.dumps(arguments)}", f"batch.size={batch}"]
    bare = Bare(load_recipe("A", ["data.name=bench.training:Noise", *overrides]), channels, size, "cpu")
    for _ in range(_WARM):
        bare()
    return statistics.median(_timed(bare, 1) for _ in range(10))


def memory(name: str, rounds: int) -> dict[str, Any]:
    """Compare bare steps with freed memory kept and with freed memory left to the C library."""
    seconds: dict[str, list[float]] = {"left": [], "kept": []}
    for _ in range(rounds):
        for way, found in seconds.items():
            command = [sys.executable, "-c", _STEPS, name, way, str(torch.get_num_threads())]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESULTS.parents[1])
            found.append(float(done.stdout))
    left, kept = (NETWORKS[name][4] / statistics.median(found) for found in seconds.values())
    return {
        "workload": f"{name}, batch {NETWORKS[name][4]}, bare step",
        "rounds": rounds,
        "left_images_per_s": left,
        "kept_images_per_s": kept,
        "ratio": kept / left,
    }


def _backward(network: nn.Module, loss: Tensor) -> None:
    loss.backward()
    for parameter in network.parameters():
        parameter.grad = None


def measure(device: str, names: list[str], steps: int, rounds: int) -> dict[str, Any]:
    """Measure all rows."""
    result: dict[str, Any] = {**environment(device=device), "loop": [], "triplets": [], "memory": []}
    for name in names:
        result["loop"].append(loop(name, device, steps))
        if name != "resnet18":
            result["loop"].append(loop(name, device, steps, disk=True))
            result["triplets"].append(triplets(name, device, rounds))
        if device == "cpu":
            result["memory"].append(memory(name, min(rounds, 3)))
    return result


def table(result: dict[str, Any]) -> str:
    """Return the result as text."""
    lines = [caption(result)]
    for row in result["loop"]:
        lines.append(
            f"{row['workload']:36} bare {row['bare_images_per_s']:9,.1f}  loop {row['loop_images_per_s']:9,.1f} "
            f"images/s  overhead {row['overhead']:6.1%} (medians {row['overhead_of_medians']:6.1%})"
        )
    for row in result["triplets"]:
        lines.append(
            f"{row['workload']:36} alone {row['alone_seconds']:8.4f} s  with loss {row['with_loss_seconds']:8.4f} s  "
            f"ratio {row['ratio']:.3f}"
        )
    for row in result["memory"]:
        lines.append(
            f"{row['workload']:36} freed memory left {row['left_images_per_s']:9,.1f}  kept "
            f"{row['kept_images_per_s']:9,.1f} images/s  ratio {row['ratio']:.2f}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--threads", type=int, help="number of PyTorch's threads on a CPU")
    parser.add_argument("--quick", action="store_true", help="a quarter of the paper's width")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=20, help="steps per round, and between checkpoints")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the triplet step")
    parser.add_argument("--output", type=Path, help="JSON; default bench/results/training-cpu.json or -cuda.json")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    names = ["quick"] if options.quick else ["paper", "resnet18"]
    result = measure(options.device, names, options.steps, options.rounds)
    output = options.output or RESULTS / f"training-{options.device}.json"
    write(output, result)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
