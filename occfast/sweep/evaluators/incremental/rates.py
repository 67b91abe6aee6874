"""Speed of this machine at elementary work, measured once and kept in a file.

:func:`rates` measures for two or three seconds the first time that a plan is made for a processor, a number of threads
and a dtype, or for a GPU and its arithmetic. The result lies beside the compiled kernels (``OCCFAST_CACHE``); where
that can't be written, it is kept for the process. ``OCCFAST_CALIBRATION=off`` takes built-in rates instead, which are
the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .... import __version__
from ....errors import NativeUnavailable
from ....files import write_atomically
from ....native import loader, ops, processor
from ....native.build import instruction_set
from .defaults import SECONDS
from .work import INPUTS, OUTPUTS

_log = logging.getLogger("occfast")

#: Seconds for a unit of each kind of work.
Rates = dict[str, float]

_FORMAT = 2  # of the file
_CPU = torch.device("cpu")
_BUDGET = 2.4  # seconds of a calibration
_ROUNDS = 12  # at most; each measures every kind once, so that a disturbance hits all of them alike
_NOISY = 1.5  # a calibration whose rounds differ by more is repeated by later processes,
_TRIES = 3  # at most until it was done this often
_SIDE = 12  # of the results of windows
_MAPS = {3: 64, 16: 28, 64: 16, 256: 7}  # sides of maps, by channels
_COUNTS = {3: 96, 16: 64, 64: 24, 256: 8}  # windows, by input channels
#: Maps by their channels, and runs of an example between two waits, that fill a GPU for longer than launching takes.
_ON_GPU = {3: 64, 16: 256, 32: 256, 64: 512, 256: 1024}
_RUNS_ON_GPU = 10
_MORE_ON_GPU = 32  # times as many windows and rows
_known: dict[str, Rates] = {}


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Return the seconds that a unit of each kind of work takes, measuring them if nobody has.

    Where :func:`is_calibrated` is False they are the built-in ones.

    Raises:
        ValueError: ``OCCFAST_CALIBRATION`` is something else than "on" or "off".
    """
    if not is_calibrated(device):
        return built_in(device, dtype)
    key = _key(dtype, device)
    if key not in _known:
        path = _path(key)
        read = _read(path)
        if read is not None and (read["quiet"] or read["tries"] >= _TRIES):
            _known[key] = read["seconds"]
        else:
            _known[key] = _calibrated(dtype, path, read, device)
    return _known[key]


def is_calibrated(device: torch.device) -> bool:
    """Return whether :func:`rates` are measured: with the native kernels, unless it is switched off.

    Raises:
        ValueError: ``OCCFAST_CALIBRATION`` is something else than "on" or "off".
    """
    wanted = os.environ.get("OCCFAST_CALIBRATION", "on")
    if wanted not in ("on", "off"):
        raise ValueError(f"OCCFAST_CALIBRATION: expected 'on' or 'off', got {wanted!r}")
    if wanted == "off":
        return False
    if device.type == "cuda":
        return ops.has_kernels(device)
    return ops.convolution_block(torch.empty(0)) > 0


def arithmetic(device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of a dtype, or "tf32" where convolutions on a GPU round float32 to it at present."""
    return "tf32" if ops.rounds_to_tf32(device, dtype) else str(dtype).removeprefix("torch.")


def calibrate(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Path | None:
    """Measure the speed of this machine anew, with the present number of threads.

    ``explain`` and ``method="auto"`` use it for their predictions, and measure it themselves the first time. Repeat it
    on an idle machine if predictions are off.

    Args:
        dtype: Of images and weights.
        device: A CPU or a GPU. A GPU is measured in the arithmetic that PyTorch's switches say.

    Returns:
        The file that holds the result; None if the cache folder can't be written, and the result is kept for this
        process alone.

    Raises:
        occfast.NativeUnavailable: The kernels can't be built.
    """
    device = torch.device(device)
    key = _key(dtype, device)
    path = _path(key)
    _known[key] = _calibrated(dtype, path, None, device)
    return path if path is not None and path.is_file() else None


def built_in(device: torch.device, dtype: torch.dtype) -> Rates:
    """Return rates that are the same on every machine: those of one CPU, in float32.

    For a GPU they count multiply-adds of float32: moving a number takes as long as 30 of them, and launching a kernel
    as long as 1e8. This is a guess; no GPU has been measured.
    """
    if device.type == "cpu":
        return {kind: value * (2 if dtype == torch.float64 else 1) for kind, value in SECONDS.items()}
    counted = dict.fromkeys(SECONDS, 30.0)
    for kind in SECONDS:
        if kind.split()[0] in ("conv", "fused", "grouped", "transposed", "linear", "bmm", "weights"):
            counted[kind] = 1.0
        elif kind in ("call", "step", "node"):
            counted[kind] = {"call": 1e8, "step": 5e8, "node": 0.0}[kind]
    return counted


# The file ---------------------------------------------------------------------------------------------


def _key(dtype: torch.dtype, device: torch.device = _CPU) -> str:
    """Return what the rates depend on."""
    own: dict[str, Any] = {}
    if device.type == "cuda":
        own = {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "arithmetic": arithmetic(device, dtype),
        }
    return json.dumps(
        {
            **own,
            "format": _FORMAT,
            "occfast": __version__,
            "torch": torch.__version__,
            "processor": processor.model_name(),
            "instructions": instruction_set(),
            "threads": torch.get_num_threads(),
            "dtype": str(dtype).removeprefix("torch."),
        }
    )


def _path(key: str) -> Path | None:
    try:
        return loader.cache_root() / f"speed-{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"
    except NativeUnavailable:
        return None


def _read(path: Path | None) -> dict[str, Any] | None:
    """Return the content of a file of rates; None if there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text()) if path is not None else None
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("seconds"), dict):
        return None
    seconds = content["seconds"]
    if set(seconds) != set(SECONDS) or not all(isinstance(v, float) and 0 < v < 1 for v in seconds.values()):
        return None
    return content if isinstance(content.get("quiet"), bool) and isinstance(content.get("tries"), int) else None


def _calibrated(
    dtype: torch.dtype, path: Path | None, before: dict[str, Any] | None, device: torch.device = _CPU
) -> Rates:
    """Measure, combine with an earlier result and write the file."""
    seconds, quiet = measure(dtype, device)
    tries = 1
    if before is not None:  # disturbances only ever add time
        seconds = {kind: min(value, before["seconds"][kind]) for kind, value in seconds.items()}
        tries = before["tries"] + 1
    content = {"quiet": quiet, "tries": tries, "seconds": seconds}
    try:
        if path is not None:
            write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        _log.info("the calibration is kept for this process alone: %s", error)
    return seconds


# Measuring --------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(dtype: torch.dtype, device: torch.device = _CPU) -> tuple[Rates, bool]:
    """Return the seconds for a unit of each kind of work, and whether the machine was quiet meanwhile.

    Every kind takes about a millisecond, shorter than a slice of time that the system gives another process; the
    fastest of several rounds counts.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        tried = {kind: (run, amount) for kind, run, amount in _examples(dtype, device.type == "cuda")}
    times: dict[str, list[float]] = {kind: [] for kind in tried}
    for run, _ in tried.values():
        run()
    began = time.perf_counter()
    for done in range(_ROUNDS):
        if done >= 2 and time.perf_counter() - began > _BUDGET * done / (done + 1):
            break
        for kind, (run, _) in tried.items():
            times[kind].append(_seconds(run) if device.type == "cpu" else _seconds_on_gpu(run, device))
    found = {kind: min(times[kind]) / amount for kind, (_, amount) in tried.items()}
    for kind in found:
        if kind.startswith("fused"):  # without the windows, which are counted on their own
            inputs, amount = int(kind.split()[2]), tried[kind][1]
            side = _SIDE + (0 if kind.startswith("fused 1") else 2)
            count = _COUNTS[inputs] * (_MORE_ON_GPU if device.type == "cuda" else 1)
            gathered = found["gather"] * count * side**2 * inputs
            found[kind] = max(found[kind] / 2, found[kind] - gathered / amount)
    middle = [statistics.median(taken) / min(taken) for taken in times.values()]
    return {**SECONDS, **found}, statistics.median(middle) < _NOISY


def _seconds(run: Callable[[], Any]) -> float:
    """Return the seconds of a call; with one thread those of the process, which others can't lengthen."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    run()
    return max(clock() - began, 1e-9)


def _seconds_on_gpu(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one of many calls, from the first launch until the device is done."""
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(_RUNS_ON_GPU):
        run()
    torch.cuda.synchronize(device)
    return max((time.perf_counter() - began) / _RUNS_ON_GPU, 1e-9)


def _examples(dtype: torch.dtype, on_gpu: bool = False) -> list[tuple[str, Callable[[], Any], float]]:
    """Return (kind, call, amount of work in the call) for every kind; on a GPU of more work."""
    found: list[tuple[str, Callable[[], Any], float]] = []

    def maps(channels: int, side: int, count: int = 0) -> Tensor:
        count = count or (_ON_GPU[channels] if on_gpu else 8)
        return torch.randn(count, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def weights(*shape: int) -> Tensor:
        return (torch.randn(shape, dtype=dtype) / 30).contiguous(memory_format=torch.channels_last)

    block = ops.convolution_block(torch.empty(0, dtype=dtype))
    more = _MORE_ON_GPU if on_gpu else 1
    for inputs in INPUTS:
        side = _MAPS[inputs]
        for outputs in OUTPUTS:
            for kernel in (1, 3):
                x, w = maps(inputs, side), weights(outputs, inputs, kernel, kernel)
                name = f"{kernel**2} {inputs} {outputs}"
                found.append((f"conv {name}", _conv(x, w, kernel // 2), w.numel() * len(x) * side**2))
                if block:
                    packed = (*ops.pack_convolution(w, None, block), outputs, [kernel, kernel, 1, 1, 1, 1, 1])
                    count, padded = _COUNTS[inputs] * more, -(-outputs // block) * block
                    window = maps(inputs, 28, 4), *_windows(count), _SIDE + kernel - 1, _SIDE + kernel - 1
                    macs = w.numel() * padded // outputs * count * _SIDE**2
                    found.append((f"fused {name}", _gather(*window, packed), macs))
    x, y = maps(32, 40), maps(32, 40)
    n = x.numel()
    mean, scale = torch.zeros(32, dtype=dtype), torch.ones(32, dtype=dtype)
    last = torch.randn(len(x) * 1600, 32, dtype=dtype)
    found += [
        ("relu", lambda: F.relu(x), n),
        ("add", lambda: x + y, n),
        ("sigmoid", lambda: x.sigmoid(), n),
        ("gelu", lambda: F.gelu(x), n),
        ("batch_norm", lambda: F.batch_norm(x, mean, scale, scale, mean), n),
        ("group_norm", lambda: F.group_norm(x, 8, scale, mean), n),
        ("layer_norm", lambda: F.layer_norm(last, (32,), scale, mean), n),
        ("mean", lambda: x.mean((2, 3)), n),
        ("copy", lambda: torch.cat((x, y), 1), 2 * n),
        ("transpose", lambda: x.contiguous(), n),
        ("bilinear", lambda: F.interpolate(x, scale_factor=2, mode="bilinear"), 4 * n),
        ("max_pool", lambda: F.max_pool2d(x, 2), n),
        ("avg_pool", lambda: F.avg_pool2d(x, 2), n),
    ]
    small = maps(32, 28)
    for kernel in (3, 7):
        w = weights(32, 1, kernel, kernel)
        found.append((f"depthwise {kernel**2}", _conv(small, w, kernel // 2, 32), small.numel()))
    w, middle = weights(64, 8, 3, 3), maps(64, 14)
    found.append(("grouped", _conv(middle, w, 1, 8), w.numel() * len(middle) * 196))
    w, z = weights(64, 32, 2, 2), maps(64, 14)
    found.append(("transposed", lambda: F.conv_transpose2d(z, w, stride=2), w.numel() * len(z) * 196))
    rows, dense = torch.randn(64 * more, 512, dtype=dtype), torch.randn(512, 512, dtype=dtype) / 30
    found.append(("linear", lambda: F.linear(rows, dense), 64 * more * 512 * 512))
    wide = torch.randn(512, 8192, dtype=dtype)
    one = torch.randn(1, 8192, dtype=dtype)
    found.append(("weights", lambda: F.linear(one, wide), wide.numel()))
    q = torch.randn(16 * more, 128, 32, dtype=dtype)
    k = torch.randn(16 * more, 32, 128, dtype=dtype)
    found.append(("bmm", lambda: q @ k, 16 * more * 128 * 128 * 32))
    gathered = maps(32, 28, 4), *_windows(128 * more), _SIDE, _SIDE
    found.append(("gather", _gather(*gathered, ()), 128 * more * _SIDE**2 * 32))
    tiny = torch.zeros(8, dtype=dtype)
    found.append(("call", lambda: [F.relu(tiny) for _ in range(200)], 200))
    piece = maps(4, 4, 1), torch.zeros(1, dtype=torch.int64), torch.zeros((1, 2), dtype=torch.int64), 2, 2
    few = _gather(*piece, ())
    found.append(("step", lambda: [few() for _ in range(20)], 20))
    return found


def _conv(x: Tensor, weight: Tensor, padding: int, groups: int = 1) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, weight, None, 1, padding, 1, groups)


def _windows(count: int) -> tuple[Tensor, Tensor]:
    """Return the images and the origins of some windows of maps [4, C, 28, 28]."""
    at = torch.arange(count)
    return at % 4, torch.stack((at % 14, at * 5 % 14), 1)


def _gather(
    maps: Tensor, images: Tensor, origins: Tensor, height: int, width: int, conv: tuple[Any, ...]
) -> Callable[[], Tensor]:
    return lambda: ops.gather_windows(maps, images, origins, height, width, None, None, 0.0, *conv)
