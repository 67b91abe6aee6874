"""Everything that only a GPU can tell, in one command: ``make gpu-check``.

Runs the CUDA tests, compute-sanitizer over them, the card's own ceilings, every kernel against its floor, the dense
and the exact incremental sweep against plain PyTorch, the triplet loss against its matrix products, PDSN
identification against the matrix rate, and training; writes one JSON and prints one table.  Settings of the card are
read, never changed.  ``--device cpu`` is a dry run of the timing parts with small workloads.

A kernel's floor is the time that the card's measured copy bandwidth needs for the bytes that the op must read and
write; its share is floor / time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from occfast import BatchTripletLoss, pdsn
from occfast.models import PaperNet
from occfast.native import build, ops
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.geometry import SweepGrid
from occfast.sweep.precision import float32_as

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "sanitizer", "ceilings", "kernels", "sweep", "exact", "triplet", "identify", "training")
Clock = Callable[[Callable[[], Any]], float]


# -- clocks --------------------------------------------------------------------------------------------


def gpu_seconds(function: Callable[[], Any], target: float = 0.15) -> float:
    """Median time of a call on the device, by events, after warming up; about ``target`` seconds of calls."""

    def timed() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    for _ in range(3):
        once = timed()
    repeats = max(5, min(200, int(target / max(once, 1e-6))))
    return statistics.median(timed() for _ in range(repeats))


def cpu_seconds(function: Callable[[], Any]) -> float:
    """Median of three calls after one: for dry runs, no measurement."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


# -- environment ---------------------------------------------------------------------------------------


def environment(device: str) -> dict[str, Any]:
    """Versions, and the card's name, driver and clocks as they are."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": build.nvcc(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": "cpu (dry run)",
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "device": card.name,
            "capability": f"{card.major}.{card.minor}",
            "sms": card.multi_processor_count,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "cudnn": torch.backends.cudnn.version(),
        }
    if smi := shutil.which("nvidia-smi"):
        fields = (
            "name",
            "driver_version",
            "clocks.sm",
            "clocks.mem",
            "clocks.max.sm",
            "clocks.max.mem",
            "power.limit",
            "temperature.gpu",
            "ecc.mode.current",
            "mig.mode.current",
        )
        asked = subprocess.run(
            [smi, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        if asked.returncode == 0 and asked.stdout.strip():
            values = [value.strip() for value in asked.stdout.splitlines()[0].split(",")]
            found["nvidia_smi"] = dict(zip(fields, values, strict=False))
    return found


# -- tests ---------------------------------------------------------------------------------------------


def _stopped(output: str | bytes | None) -> str:
    return (output.decode(errors="replace") if isinstance(output, bytes) else output or "")[-3000:]


def read_junit(path: Path) -> dict[str, Any]:
    """Counts and the names of what failed from a JUnit file."""
    suite = next(ElementTree.parse(path).getroot().iter("testsuite"))
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": failed, "seconds": round(float(suite.get("time", 0)), 1)}


def run_tests(limit: float) -> dict[str, Any]:
    """``pytest -m cuda``; ok if some ran and none failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            "-m",
            "cuda",
            f"--junitxml={report}",
            "tests",
        ]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            return {"ok": False, "error": f"stopped after {limit:.0f} s", "output": _stopped(error.stdout)}
        if not report.exists():
            return {"ok": False, "error": "pytest wrote no report", "output": (done.stdout + done.stderr)[-3000:]}
        found = read_junit(report)
    ran = found["tests"] - found["skipped"]
    return {
        "ok": done.returncode == 0 and ran > 0,
        "ran": ran,
        **found,
        **({} if done.returncode == 0 else {"output": done.stdout[-3000:]}),
    }


def find_sanitizer() -> str | None:
    """compute-sanitizer, on the path or beside nvcc."""
    near = [str(Path(nvcc).resolve().parent) for nvcc in (build.nvcc(),) if nvcc]
    for folder in (None, *near, "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"):
        if path := shutil.which("compute-sanitizer", path=folder):
            return path
    return None


def run_sanitizer(limit: float) -> dict[str, Any]:
    """memcheck and racecheck over the device tests, our kernels only, each within half the limit."""
    program = find_sanitizer()
    if program is None:
        return {"ok": True, "skipped": "compute-sanitizer is neither on the path nor beside nvcc"}
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60).stdout
    # The option to look at some kernels only has had several names.
    option = next((o for o in ("--kernel-name", "--kernel-regex", "--filter") if o in help_text), None)
    found: dict[str, Any] = {"ok": True}
    for tool in ("memcheck", "racecheck"):
        command = [
            program,
            "--tool",
            tool,
            "--error-exitcode",
            "86",
            *([option, "kns=occfast"] if option else []),
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            "tests/native/test_cuda_device.py",
            "-k",
            "copies or scores or sums or draws or paint or words",
        ]
        started = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=limit / 2,
                env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
        except subprocess.TimeoutExpired as error:
            found[tool] = {"ok": None, "error": f"stopped after {limit / 2:.0f} s", "output": _stopped(error.stdout)}
            continue
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", done.stdout)
        passed = re.search(r"(\d+) passed", done.stdout)
        ok = done.returncode == 0 and bool(summary) and passed is not None
        found[tool] = {
            "ok": ok,
            "summary": summary[-1:],
            "passed": int(passed[1]) if passed else 0,
            "seconds": round(time.perf_counter() - started, 1),
            **({} if ok else {"output": (done.stdout + done.stderr)[-3000:]}),
        }
        found["ok"] = found["ok"] and ok
    return found


# -- ceilings ------------------------------------------------------------------------------------------


def ceilings(device: str, clock: Clock) -> dict[str, float]:
    """Copy bandwidth (bytes read and written a second) and matrix rates (multiply and add as two)."""
    small = device == "cpu"
    source = torch.empty(2**24 if small else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"copy_bytes_per_s": 2 * source.numel() / clock(lambda: target.copy_(source))}
    size = 256 if small else 8192
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            found[f"{name}_flop_per_s"] = 2 * size**3 / clock(lambda a=a, b=b: a @ b)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return found


# -- kernels -------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One op on one workload: the bytes it must move, and whether to time the PyTorch twin as well."""

    op: str
    workload: str
    bytes: int
    run: Callable[[], Any]
    twin: bool = False


def _pixels(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    if dtype.is_floating_point:
        return torch.rand(shape, device=device).to(dtype)
    return torch.randint(0, 256, shape, device=device, dtype=dtype)


def _drawing(n: int, channels: int, height: int, width: int, device: str) -> tuple[Any, ...]:
    """Arguments of draw_occluders: a 20x40 occluder in every image, three noises, as in the workload of augment."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    cdf = torch.linspace(0, 1, height * width + 1, dtype=torch.float64, device=device)[1:].contiguous()
    return (
        torch.arange(n, device=device),
        cdf,
        rows,
        columns,
        channels,
        height,
        width,
        7,
        1.0,
        [20, 20, 40, 40],
        [0.05, 0.6, 0.0, 1.0],
        [0, 1, 2],
        False,
    )


def kernel_cases(device: str) -> Iterator[Case]:
    """Every op on workloads well above a GPU's cache, and the training batch of 256 images."""
    scale = 128 if device == "cpu" else 1
    grid = [100, 100, 0, 0, 1, 1, 20, 20]
    for dtype, shape, layout in (
        (torch.float32, (64, 1, 100, 100), torch.contiguous_format),
        (torch.uint8, (64, 1, 100, 100), torch.contiguous_format),
        (torch.bfloat16, (64, 3, 112, 112), torch.channels_last),
        (torch.float32, (64, 3, 101, 99), torch.contiguous_format),
    ):
        images = _pixels(shape, dtype, device).contiguous(memory_format=layout)
        fill = _pixels((1, shape[1], 1, 1), dtype, device)
        each = images[0].numel() * images.element_size()
        count = 2**29 // scale // each
        positions = torch.randint(0, shape[0] * 10_000, (count,), device=device).sort().values
        yield Case(
            "occlude_positions",
            f"{count} copies of {list(shape[1:])} {_name(dtype)} {_name(layout)}",
            (count + shape[0]) * each,
            lambda i=images, f=fill, p=positions: ops.occlude_positions(i, f, p, grid),
        )

    count, classes, images_n = 2**17 // scale, 1000, 64
    positions = torch.randperm(count, device=device)
    for kind, code in ops.SCORES.items():
        outputs = torch.randn(count, classes, device=device)
        labels = torch.randint(0, classes, (images_n,), device=device)
        references = torch.rand(images_n, classes, device=device, dtype=torch.float64)
        baseline = torch.rand(images_n, device=device, dtype=torch.float64)
        per_image = count // images_n
        scores, bad = (
            torch.zeros(images_n, per_image, dtype=torch.float64, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
        )
        yield Case(
            "sweep_score",
            f"{kind}, {count} x {classes} float32",
            outputs.numel() * 4 + count * 16,
            lambda a=(outputs, positions, per_image, code, scores, bad, labels, references, baseline): ops.sweep_score(
                *a
            ),
            twin=True,
        )
    scores = torch.rand(8000 // scale, 10_000, dtype=torch.float64, device=device)
    total, squares = torch.zeros(2, 10_000, dtype=torch.float64, device=device)
    yield Case(
        "sweep_accumulate",
        f"{list(scores.shape)} float64",
        scores.numel() * 8,
        lambda: ops.sweep_accumulate(scores, total, squares),
    )

    for dtype, channels, side in ((torch.float32, 64, 50), (torch.float32, 256, 13), (torch.bfloat16, 128, 25)):
        size = dtype.itemsize
        maps = _pixels((4, channels, side, side), dtype, device).contiguous(memory_format=torch.channels_last)
        window, patch = side // 2, side // 2 - 2
        count = 2**29 // scale // (channels * window * window * size)
        patches = _pixels((count, channels, patch, patch), dtype, device).contiguous(memory_format=torch.channels_last)
        images = torch.arange(count, device=device) % 4
        origins = torch.randint(-2, side - patch, (count, 2), device=device)
        out = count * channels * window * window * size
        yield Case(
            "gather_windows",
            f"{count} windows {window}x{window} of {channels}x{side}x{side} {_name(dtype)}",
            2 * out,
            lambda a=(maps, images, origins, window, window, patches, origins + 1, 0.0): ops.gather_windows(*a),
        )

    n = 2**20 // scale
    drawing = _drawing(n, 3, 112, 112, device)
    yield Case(
        "draw_occluders",
        f"{n} samples, 3 channels",
        n * (8 + 16 + 1 + 4 + 12),
        lambda: ops.draw_occluders(*drawing),
        twin=True,
    )

    for dtype, shape, layout in (
        (torch.uint8, (2**15, 1, 100, 100), torch.contiguous_format),
        (torch.float32, (2**13, 1, 100, 100), torch.contiguous_format),
        (torch.uint8, (2**13, 3, 112, 112), torch.channels_last),
        (torch.float32, (2**11, 3, 112, 112), torch.contiguous_format),
        (torch.float32, (256 * scale, 1, 100, 100), torch.contiguous_format),
        (torch.uint8, (256 * scale, 3, 112, 112), torch.contiguous_format),
    ):
        n = shape[0] // scale
        images = _pixels((n, *shape[1:]), dtype, device).contiguous(memory_format=layout)
        ids, *law = _drawing(n, *shape[1:], device)
        ends = (0.0, 255.0 if dtype == torch.uint8 else 1.0)
        arguments = (images, ids, *ops.draw_occluders(ids, *law), 7, *ends)
        yield Case(
            "paint_occluders",
            f"{[n, *shape[1:]]} {_name(dtype)} {_name(layout)}",
            2 * images.numel() * images.element_size(),
            lambda a=arguments: ops.paint_occluders(*a),
            twin=n == 256,
        )


def _name(thing: Any) -> str:
    return {"torch.contiguous_format": "NCHW", "torch.channels_last": "NHWC"}.get(
        str(thing), str(thing).removeprefix("torch.")
    )


def time_kernels(device: str, clock: Clock, bandwidth: float) -> list[dict[str, Any]]:
    """One row a case: seconds, bytes a second, share of the floor, and how much slower the twin is."""
    rows = []
    for case in kernel_cases(device):
        seconds = clock(case.run)
        row = {
            "op": case.op,
            "workload": case.workload,
            "seconds": seconds,
            "bytes": case.bytes,
            "bytes_per_s": case.bytes / seconds,
            "share_of_floor": case.bytes / bandwidth / seconds,
        }
        if case.twin:
            before = os.environ.get("OCCFAST_BACKEND")
            os.environ["OCCFAST_BACKEND"] = "reference"
            try:
                row["twin_seconds"] = clock(case.run)
            finally:
                os.environ.pop("OCCFAST_BACKEND")
                if before is not None:
                    os.environ["OCCFAST_BACKEND"] = before
        rows.append(row)
    return rows


# -- dense sweep ---------------------------------------------------------------------------------------


def w1_network(width: float = 1.0) -> nn.Module:
    """The network of workload W1: the paper's, 1,000 classes."""
    torch.manual_seed(0)
    return PaperNet(1000, width=width).eval()


def _graphed(function: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The same work as one CUDA graph."""
    if device == "cpu":
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _sweepers(network: nn.Module, images: Tensor, positions: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Score one batch of positions of a 20x20 occluder with a center on every pixel: both ways, the same result."""
    n_images, _, height, width = images.shape
    per_image, device = height * width, images.device
    grid = [height, width, 0, 0, 1, 1, 20, 20]
    fill = torch.zeros(1, 1, 1, 1, dtype=images.dtype, device=device)
    labels = torch.zeros(n_images, dtype=torch.int64, device=device)
    scores = torch.zeros(n_images, per_image, dtype=torch.float64, device=device)
    bad = torch.zeros(1, dtype=torch.int32, device=device)
    i, j = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device).view(1, -1)

    def pytorch() -> Tensor:
        n, place = positions // per_image, positions % per_image
        top, left = ((edge - 10).view(-1, 1, 1, 1) for edge in (place // width, place % width))
        inside = (i >= top) & (i < top + 20) & (j >= left) & (j < left + 20)
        outputs = network(images[n].masked_fill_(inside, 0))
        scores.view(-1)[positions] = (outputs.argmax(1) != labels[n]).double()
        return scores

    def occfast() -> Tensor:
        outputs = network(ops.occlude_positions(images, fill, positions, grid)).float()
        ops.sweep_score(outputs, positions, per_image, 0, scores, bad, labels, None, None)
        return scores

    return {"pytorch": pytorch, "occfast": occfast}


@torch.no_grad()
def dense_sweep(device: str, clock: Clock) -> list[dict[str, Any]]:
    """Positions a second of a dense sweep of W1: plain PyTorch against occfast's dense ops, the same network,
    precision and batch, channels_last, each as a CUDA graph."""
    small = device == "cpu"
    rows = []
    for dtype in (torch.float32,) if small else (torch.float32, torch.bfloat16):
        network = w1_network(0.125 if small else 1.0).to(device, dtype, memory_format=torch.channels_last)
        images = _pixels((4, 1, 100, 100), dtype, device)
        for batch in (8,) if small else (256, 1024):
            positions = torch.randint(0, 40_000, (batch,), device=device)
            row: dict[str, Any] = {"network": "W1", "dtype": _name(dtype), "batch": batch}
            with float32_as("ieee"):
                for name, function in _sweepers(network, images, positions).items():
                    row[f"{name}_positions_per_s"] = batch / clock(_graphed(function, device))
            rows.append(row)
    return rows


# -- exact sweep ---------------------------------------------------------------------------------------


# What the exact sweep is run as: dtype, whether in TF32, whether as CUDA graphs.
EXACT: dict[str, tuple[torch.dtype, bool, bool]] = {
    "float32": (torch.float32, False, False),
    "float32, graphs": (torch.float32, False, True),
    "tf32": (torch.float32, True, False),
    "tf32, graphs": (torch.float32, True, True),
    "bf16": (torch.bfloat16, False, False),
    "bf16, graphs": (torch.bfloat16, False, True),
}


@torch.no_grad()
def exact_sweep(device: str, clock: Clock) -> list[dict[str, Any]]:
    """Positions a second of the exact incremental sweep of W1, beside the dense one in PyTorch of the same precision at
    its better batch, and how far its outputs are from the dense ones in float32."""
    small = device == "cpu"
    network = w1_network(0.125 if small else 1.0).to(device)
    image = _pixels((1, 1, 100, 100), torch.float32, device)
    dense: dict[tuple[torch.dtype, bool], float] = {}
    rows = []
    for occluder in ((20, 20),) if small else ((20, 20), (20, 40), (40, 40)):
        grid = SweepGrid.over((100, 100), occluder, 25 if small else 1)
        everything, some = (torch.arange(grid.positions, device=device)[::step] for step in (1, 1 if small else 97))
        with float32_as("ieee"):
            fill = torch.zeros(1, 1, 1, 1, device=device)
            expected = network(ops.occlude_positions(image, fill, some, grid.native()))
        for name, (dtype, tf32, graphs) in EXACT.items():
            if occluder != (20, 20) and not name.startswith("float32"):
                continue
            low, given, nothing = copy.deepcopy(network).to(dtype), image.to(dtype), fill.to(dtype)
            with float32_as("tf32" if tf32 else "ieee"):
                if (dtype, tf32) not in dense:
                    dense[dtype, tf32] = _dense_rate(low, given, (8,) if small else (256, 1024), clock)
                evaluator = IncrementalEvaluator(low, grid, given, cuda_graphs=graphs)
                evaluator.start(given, nothing)
                evaluator.outputs(everything)  # warms up what a graph records the second time
                outputs = evaluator.outputs(everything)[some].float()

                def whole(
                    e: IncrementalEvaluator = evaluator, x: Tensor = given, f: Tensor = nothing, p: Tensor = everything
                ) -> None:
                    e.start(x, f)
                    e.outputs(p)

                rate = grid.positions / clock(whole)
            rows.append(
                {
                    "network": "W1",
                    "occluder": f"{occluder[0]}x{occluder[1]}",
                    "as": name,
                    "predicted": evaluator.plan.predicted_speedup,
                    "dense_positions_per_s": dense[dtype, tf32],
                    "positions_per_s": rate,
                    "replayed": evaluator.graphs.replayed if evaluator.graphs else 0,
                    "difference": float((outputs - expected).abs().max() / expected.abs().max()),
                    "same_class": float((outputs.argmax(1) == expected.argmax(1)).double().mean()),
                }
            )
    return rows


def _dense_rate(network: nn.Module, image: Tensor, batches: tuple[int, ...], clock: Clock) -> float:
    """Positions a second of the dense sweep in PyTorch, channels_last and as a CUDA graph, at its better batch."""
    network, best = network.to(memory_format=torch.channels_last), 0.0
    for batch in batches:
        positions = torch.randint(0, 10_000, (batch,), device=image.device)
        sweep = _graphed(_sweepers(network, image, positions)["pytorch"], image.device.type)
        best = max(best, batch / clock(sweep))
    return best


# -- triplet loss and identification -------------------------------------------------------------------


def triplet_loss(device: str, clock: Clock) -> list[dict[str, Any]]:
    """Forward and backward of the batch triplet loss beside its two matrix products alone."""
    count, dim = (64, 16) if device == "cpu" else (4096, 512)
    x = torch.nn.functional.normalize(torch.randn(count, dim, device=device)).requires_grad_()
    labels = torch.arange(count, device=device) // 8
    square = torch.randn(count, count, device=device)

    def products() -> None:
        with torch.no_grad():
            x @ x.T
            square @ x

    alone, rows = clock(products), []
    for mining in ("violating", "all", "semihard"):
        loss_fn = BatchTripletLoss(mining=mining)
        seconds = clock(lambda f=loss_fn: f(x, labels).backward())
        rows.append({"mining": mining, "batch": count, "dim": dim, "seconds": seconds, "products_seconds": alone})
    return rows


def identify(device: str, clock: Clock, rate: float) -> dict[str, Any]:
    """650 probes in eight groups against 2,959 faces, maps of 512×8×6: share of the card's own fp32 matrix rate."""
    probes, faces, shape, groups = (8, 32, (4, 2, 2), 2) if device == "cpu" else (650, 2959, (512, 8, 6), 8)
    maps = torch.rand(faces, *shape, device=device), torch.rand(probes, *shape, device=device)
    masks = torch.rand(groups, *shape, device=device) > 0.3
    group = torch.arange(probes) % groups
    labels = torch.arange(faces, device=device)
    seconds = clock(lambda: pdsn.match(maps[0], labels, maps[1], (masks, group)))
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


# -- training ------------------------------------------------------------------------------------------


def training(device: str) -> dict[str, Any]:
    """What the training loop costs beyond the network's own step, and the batch triplet loss: see bench/training.py."""
    from bench.training import measure

    small = device == "cpu"
    return measure(device, ["dry run"] if small else ["paper", "resnet18"], 2 if small else 40, 1 if small else 5)


# -- report --------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The whole result as text."""
    found = result["environment"]
    lines = [f"{found['device']}, torch {found['torch']}, CUDA {found['cuda']}, {found['time']}"]
    if smi := found.get("nvidia_smi"):
        lines.append("  " + ", ".join(f"{key} {value}" for key, value in smi.items()))
    for part in PARTS:
        if part in result.get("errors", {}):
            lines.append(f"{part}: FAILED: {result['errors'][part].strip().splitlines()[-1]}")
    if tests := result.get("tests"):
        verdict, what = "ok" if tests["ok"] else "FAILED", tests.get("failed") or tests.get("error") or ""
        lines.append(f"tests: {verdict}, {tests.get('ran', 0)} ran, {tests.get('skipped', 0)} skipped {what}")
    if sanitizer := result.get("sanitizer"):
        for tool in ("memcheck", "racecheck"):
            if tool in sanitizer:
                said = sanitizer[tool]
                word = {True: "ok", False: "FAILED", None: "not finished"}[said["ok"]]
                what = said.get("summary") or said.get("error")
                lines.append(f"{tool}: {word}, {said.get('passed', 0)} tests {what}")
        if "skipped" in sanitizer:
            lines.append(f"sanitizer: skipped, {sanitizer['skipped']}")
    for name, value in result.get("ceilings", {}).items():
        unit = ("GB/s", 1e9) if "bytes" in name else ("TFLOP/s", 1e12)
        lines.append(f"ceiling {name.split('_')[0]:<6} {value / unit[1]:10.1f} {unit[0]}")
    if rows := result.get("kernels"):
        lines.append(f"{'op':<18} {'workload':<48} {'ms':>9} {'GB/s':>8} {'of floor':>8} {'twin':>7}")
        for row in rows:
            twin = f"{row['twin_seconds'] / row['seconds']:6.1f}x" if "twin_seconds" in row else ""
            lines.append(
                f"{row['op']:<18} {row['workload']:<48} {row['seconds'] * 1e3:9.4f} "
                f"{row['bytes_per_s'] / 1e9:8.1f} {row['share_of_floor']:7.0%} {twin:>8}"
            )
    for row in result.get("sweep", []):
        plain, ours = row["pytorch_positions_per_s"], row["occfast_positions_per_s"]
        lines.append(
            f"dense sweep {row['network']} {row['dtype']} batch {row['batch']}: PyTorch {plain:,.0f}, "
            f"occfast {ours:,.0f} positions/s ({ours / plain:.2f}x)"
        )
    for row in result.get("exact", []):
        ratio = row["positions_per_s"] / row["dense_positions_per_s"]
        lines.append(
            f"exact sweep {row['network']} {row['occluder']} {row['as']}: {row['positions_per_s']:,.0f} "
            f"positions/s, {ratio:.2f}x the dense PyTorch sweep in it ({row['predicted']:.1f}x less work); "
            f"{row['replayed']} batches replayed; outputs {row['difference']:.1e} from dense float32, "
            f"{row['same_class']:.1%} of the classes the same"
        )
    for row in result.get("triplet", []):
        of_products = row["seconds"] / row["products_seconds"]
        lines.append(
            f"batch triplet loss {row['mining']}, B {row['batch']}, D {row['dim']}: "
            f"{row['seconds'] * 1e3:.2f} ms, {of_products:.1f}x its matrix products"
        )
    if row := result.get("identify"):
        lines.append(
            f"identify {row['probes']} probes, {row['faces']} faces: {row['seconds'] * 1e3:.1f} ms, "
            f"{row['of_matrix_rate']:.0%} of the fp32 matrix rate"
        )
    if found := result.get("training"):
        from bench.training import table as rows_of_training

        lines.append(rows_of_training(found))
    lines.append(f"{result['seconds']:.0f} s in all")
    return "\n".join(lines)


def check(device: str, skip: set[str], clock: Clock, budget: float = 450.0) -> dict[str, Any]:
    """Run the parts; an error in one is kept in ``errors`` and the others go on."""
    started = time.perf_counter()
    result: dict[str, Any] = {"environment": environment(device), "skipped": sorted(skip), "errors": {}}
    parts: dict[str, Callable[[], Any]] = {
        "ceilings": lambda: ceilings(device, clock),
        "kernels": lambda: time_kernels(device, clock, ceiling("copy_bytes_per_s")),
        "sweep": lambda: dense_sweep(device, clock),
        "exact": lambda: exact_sweep(device, clock),
        "triplet": lambda: triplet_loss(device, clock),
        "identify": lambda: identify(device, clock, ceiling("fp32_flop_per_s")),
        "training": lambda: training(device),
        # Last, with what time is left: the sanitizer may take as long as it likes.
        "tests": lambda: run_tests(max(30.0, min(180.0, left()))),
        "sanitizer": lambda: run_sanitizer(max(60.0, left())),
    }

    def left() -> float:
        return budget - (time.perf_counter() - started)

    def ceiling(name: str) -> float:
        if "ceilings" not in result:
            result["ceilings"] = ceilings(device, clock)
        return float(result["ceilings"][name])

    for part, function in parts.items():
        if part in skip:
            continue
        print(f"gpu-check: {part} ...", file=sys.stderr, flush=True)
        try:
            result[part] = function()
        except Exception as error:  # what the other parts found is not lost
            result["errors"][part] = f"{type(error).__name__}: {error}"
    result["seconds"] = time.perf_counter() - started
    return result


def succeeded(result: dict[str, Any]) -> bool:
    return not result["errors"] and all(result.get(part, {}).get("ok", True) for part in ("tests", "sanitizer"))


def main(arguments: list[str] | None = None, clock: Clock | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--skip", default="", help=f"parts to leave out, with commas: {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run of the timing parts")
    parser.add_argument("--output", type=Path, help="default: bench/results/gpu-<device>.json")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds in all (default 450)")
    options = parser.parse_args(arguments)
    skip = {part.strip() for part in options.skip.split(",") if part.strip()}
    if unknown := skip - set(PARTS):
        parser.error(f"--skip: expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if options.device == "cpu":
        skip |= {"tests", "sanitizer"}
    elif not torch.cuda.is_available():
        reason = "this PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no GPU (try nvidia-smi)"
        print(f"gpu-check: no GPU: {reason}; nothing was run", file=sys.stderr)
        return 1
    result = check(
        options.device, skip, clock or (gpu_seconds if options.device == "cuda" else cpu_seconds), options.budget
    )
    name = re.sub(r"[^a-z0-9]+", "-", result["environment"]["device"].lower()).strip("-")
    output = options.output or ROOT / "bench" / "results" / f"gpu-{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"written: {output}")
    return 0 if succeeded(result) else 1


if __name__ == "__main__":
    sys.exit(main())
